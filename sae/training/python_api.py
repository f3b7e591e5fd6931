"""`train` from Python: on a run, or on any iterator of rows."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.progress import Progress, silent
from inference.errors import InputError
from sae.autoencoder import SparseAutoencoder
from sae.training.autoencoder_training import AutoencoderTraining
from sae.training.run_settings import TrainSettings
from sae.training.settings import SaeSettings


def train(
    rows: str | Path | Iterable[np.ndarray],
    output_dir: str | Path | None = None,
    *,
    train_rows: float | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> SparseAutoencoder | dict[str, SparseAutoencoder]:
    """Train sparse autoencoders, and return them.

        sae = train("./activations", "./saes", hook_points=["layer_12"], d_sae="8x", k=64)
        sae = train(batches, train_rows=1e6, d_sae="4096", architecture="topk", k=32)

    Args:
        rows: a run: folder, `gs://` or `s3://` address; or batches `[B, width]` of one size B, as
            numpy takes them.
        output_dir: where a run's training is kept; it is continued with `resume=True`. None with
            batches, which are trained on in memory.
        train_rows: rows to train on; needed with batches, whose schedule depends on it.
        progress: called with the progress.
        settings: the flags of `python -m sae train`, by name.

    Returns:
        The autoencoder; with several hook points a dictionary by name.

    Raises:
        InputError: a setting cannot be used.
        StoreError: the run or the output cannot be used; batches differ in shape or end too early.
    """
    if isinstance(rows, str | Path):
        from sae.training.run import run
        from sae.training.sweep import Entry

        if output_dir is None:
            raise InputError("a training on a run needs output_dir, where it is kept")
        chosen = TrainSettings(
            activations_dir=str(rows),
            output_dir=str(output_dir),
            train_rows=None if train_rows is None else float(train_rows),
            **settings,
        )
        found = run(chosen, [Entry("", chosen.autoencoder())], progress)
        return found if len(found) > 1 else next(iter(found.values()))
    if output_dir is not None or train_rows is None:
        raise InputError("a training on batches needs train_rows and takes no output_dir")
    return _train_on_batches(iter(rows), float(train_rows), SaeSettings(**settings), progress)


def _train_on_batches(
    batches: Iterator[Any], train_rows: float, settings: SaeSettings, progress: Progress
) -> SparseAutoencoder:
    first = next(batches, None)
    if first is None:
        raise StoreError("there is no batch to train on")
    first = _batch(first)
    count, width = first.shape
    resolved = settings.resolved(width)
    steps = max(1, int(train_rows) // count)
    scale = _scale(first, resolved.normalize)
    training = AutoencoderTraining(resolved, width, None, count, steps, (scale, scale))
    for number, batch in enumerate(itertools.islice(itertools.chain([first], batches), steps), 1):
        rows = _batch(batch)
        if rows.shape != first.shape:
            raise StoreError(
                f"batch {number} is {list(rows.shape)}, the first {[count, width]}; leave out"
                " batches that are not full (drop_last=True)"
            )
        training.step(rows)
        progress("rows trained on", number * count, steps * count)
    training.close()
    if training.counters.steps < steps:
        raise StoreError(
            f"the batches ended after {training.counters.rows:,} of {steps * count:,} rows"
        )
    return training.autoencoder({"rows_trained_on": training.counters.rows})


def _batch(batch: Any) -> np.ndarray:
    rows = np.asarray(batch, np.float32)
    if rows.ndim != 2 or not rows.size:
        raise StoreError(f"a batch must be [rows, width], not {list(rows.shape)}")
    if not np.isfinite(rows).all():
        raise StoreError("a batch has numbers that are not finite")
    return rows


def _scale(rows: np.ndarray, normalize: str | None) -> float:
    """Return the scale by which the first batch has the norm that `normalize` asks for."""
    squares = (rows.astype(np.float64) ** 2).sum(1)
    if normalize == "mean_norm" and squares.any():
        return float(np.sqrt(rows.shape[1]) / np.sqrt(squares).mean())
    if normalize == "mean_square" and squares.any():
        return float(1 / np.sqrt(squares.mean()))
    return 1.0
