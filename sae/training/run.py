"""A training from its settings to its files: read, step, keep, end.

Autoencoders of several settings and hook points are trained on one read of the rows, each as if
alone. What decides the weights is written to `training.json` first; a training is only continued
with the same. Everything is published through `open_storage`, so that a folder and a bucket are
alike.
"""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from extraction.documents import is_count
from extraction.errors import StoreError
from extraction.interruption import stop_flag
from extraction.progress import Progress, silent
from extraction.run.identity import RunLock, read_identity
from extraction.setting_names import setting
from extraction.storage import Storage, open_storage
from extraction.storage.local import LocalStorage
from extraction.version import __version__
from extraction.writing.disk_retry import patiently
from inference.engine.hosts import start_distributed
from sae.autoencoder import SparseAutoencoder
from sae.files import save
from sae.files.hook_names import spellings
from sae.training.autoencoder_training import AutoencoderTraining, Counters
from sae.training.beginning import RESUME, Turn, as_begun, begun, recorded, refuse_run
from sae.training.checkpoints import Checkpoints
from sae.training.processes import any_of, mesh_of, sum_of, told_by_all, whole
from sae.training.row_stream import RowStream
from sae.training.run_settings import DataSettings, TrainSettings
from sae.training.sweep import Entry

METRICS_FILE = "metrics.jsonl"

log = logging.getLogger(__name__)


def run(
    settings: TrainSettings, entries: Sequence[Entry], progress: Progress = silent
) -> dict[str, SparseAutoencoder]:
    """Train autoencoders on a run, and write them; return them by name.

    Args:
        settings: rows, steps and output.
        entries: the autoencoders.
        progress: told about finished rows.

    Raises:
        InputError: settings do not fit the run.
        StoreError: the run or the output cannot be used.
        Interrupted: it was stopped; a checkpoint is written.
    """
    start_distributed(
        settings.coordinator_address,
        settings.num_processes,
        settings.process_id,
        settings.initialization_timeout,
    )
    with contextlib.ExitStack() as stack:
        training = Training(settings, entries, stack)
        training.begin()
        with stop_flag() as stop:
            while training.step < training.steps:
                training.advance()
                progress("rows trained on", training.rows, training.steps * settings.batch_size)
                if any_of(stop.is_set()):
                    training.checkpoint()
                    training.checkpoints.wait()
                    stop.set()
                    stop.check(f"stopped after {training.rows:,} rows; {RESUME}")
                if training.due():
                    training.checkpoint()
        return training.end()


class Training:
    """The state of a run of trainings.

    Args:
        settings: rows, steps and output.
        entries: the autoencoders.
        stack: closes what it opens.

    Attributes:
        trainings: the training of each autoencoder, by name.
        steps: steps of the whole training.
    """

    def __init__(
        self, settings: TrainSettings, entries: Sequence[Entry], stack: contextlib.ExitStack
    ):
        self.storage: Storage = open_storage(settings.output_dir)
        refuse_run(self.storage)
        self._recorded = (recorded(self.storage) if settings.resume else None) or {}
        if self._recorded:
            settings = as_begun(settings, self._recorded)
        self.settings = settings
        self.stream, self.target = _opened_rows(settings)
        stack.callback(self.stream.close)
        rows = settings.train_rows or len(self.stream.dataset)
        self.steps = max(1, int(rows) // settings.batch_size)
        self.hooks: dict[str, str] = {}
        self.trainings: dict[str, AutoencoderTraining] = {}
        for name, hook, entry in _named(self.stream.hook_points, self.target, entries):
            self.hooks[name] = hook
            self.trainings[name] = self._training(name, entry, hook)
            stack.callback(self.trainings[name].close)
        self.writes = jax.process_index() == 0
        if isinstance(self.storage, LocalStorage) and self.writes:
            stack.callback(RunLock(self.storage.folder).release)
            self.storage.remove_left_overs()
        self._turn = Turn(self.storage)
        self.checkpoints = Checkpoints(
            self.storage, settings.keep_checkpoints, before_publishing=self._turn.check
        )
        stack.callback(self.checkpoints.close)
        self.metrics: list[dict[str, Any]] = []
        self._positions: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._resumed_rows = 0
        self._began = time.monotonic()

    def _training(self, name: str, entry: Entry, hook: str) -> AutoencoderTraining:
        width = self.stream.dataset.info.width
        resolved = entry.settings.resolved(width[hook])
        mesh = mesh_of(self.settings.mesh_axes(), self.settings.batch_size, resolved.latents)
        assert resolved.normalize is not None
        to = self.target
        begun_with = self._recorded.get("autoencoders", {}).get(name, {}).get("scales")
        if begun_with is None:
            scale = self.stream.scale(hook, resolved.normalize)
            scales = (scale, scale if to is None else self.stream.scale(to, resolved.normalize))
        else:
            scales = _scales(begun_with)
        return AutoencoderTraining(
            resolved,
            width[hook],
            None if to is None else width[to],
            self.settings.batch_size,
            self.steps,
            scales,
            mesh,
        )

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return next(iter(self.trainings.values())).counters.steps

    @property
    def rows(self) -> int:
        """Number of rows trained on."""
        return next(iter(self.trainings.values())).counters.rows

    def begin(self) -> None:
        """Claim the output, and go on from its last checkpoint, if there is one."""
        self.stream.begin()  # refuses filters that the run cannot serve, before anything is written
        found = self.writes and begun(self.storage, self.identity(), resume=self.settings.resume)
        if self.writes:
            self._turn.take()
        found = any_of(found)  # and the others wait
        abstract = {name: one.abstract_state() for name, one in self.trainings.items()}
        checkpoint = self.checkpoints.restore(abstract, self._check) if found else None
        if checkpoint is None:
            return
        self.metrics = checkpoint.progress["metrics"]
        self._positions = checkpoint.progress["positions"]
        self.stream.begin(self._positions)
        for name, one in self.trainings.items():
            one.restore(checkpoint.states[name], Counters(*checkpoint.progress["counters"]))
        self._resumed_rows = self.rows
        log.info("going on after %s rows", f"{self.rows:,}")

    def _check(self, step: int, progress: Mapping[str, Any]) -> None:
        """Raise ValueError if what a checkpoint of a step tells is not of this training."""
        counts, batch = progress["counters"], self.settings.batch_size
        if type(counts) is not list or len(counts) != 3 or not all(map(is_count, counts)):
            raise ValueError(f"counters {counts!r:.100}")
        if counts[:2] != [step, step * batch] or step > self.steps or counts[2] > counts[1]:
            raise ValueError(f"counters {counts!r} of step {step} of {self.steps}")
        positions = progress["positions"]
        if type(positions) is not list or len(positions) != self.stream.streams:
            raise ValueError(f"it must hold positions of {self.stream.streams} streams")
        for position in positions:
            if type(position["stream"]) is not dict or type(position["left_out"]) is not dict:
                raise ValueError(f"position {position!r:.100}")
            if not all(map(is_count, position["left_out"].values())):
                raise ValueError(f"rows left out {position['left_out']!r:.100}")
        metrics = progress["metrics"]
        if type(metrics) is not list or not all(type(line) is dict for line in metrics):
            raise ValueError("metrics must be a list of dictionaries")

    def identity(self) -> dict[str, Any]:
        """Return what decides the weights, JSON."""
        data = {
            entry.name: getattr(self.settings, entry.name)
            for entry in dataclasses.fields(DataSettings)
            if entry.metadata["decides"] == "rows"
        }
        return {
            "run_id": self.stream.dataset.info.run_id,
            "data": data
            | {
                "train_rows": self.steps * self.settings.batch_size,
                "read_streams": self.stream.streams,
            },
            "autoencoders": {
                name: {
                    "hook_point": self.hooks[name],
                    "scales": list(one.scales),
                    **dataclasses.asdict(one.settings),
                }
                for name, one in self.trainings.items()
            },
        }

    def advance(self) -> None:
        """Read a batch, and train every autoencoder on it."""
        batch = next(self.stream)
        targets = None if self.target is None else batch[self.target]
        for name, one in self.trainings.items():
            one.step(batch[self.hooks[name]], targets)
        if self.step % self.settings.log_steps == 0 or self.step == self.steps:
            self._log(batch)

    def _log(self, batch: Mapping[str, np.ndarray]) -> None:
        spent = time.monotonic() - self._began
        for name, one in self.trainings.items():
            aimed = batch[self.target or self.hooks[name]] * np.float32(one.scales[1])
            spread = _spread(aimed)
            found = one.metrics()
            line = {"autoencoder": name, **found, "fvu": found["mse"] / spread}
            line["rows_per_second"] = round((self.rows - self._resumed_rows) / spent, 1)
            self.metrics.append(line)

    def due(self) -> bool:
        """Return whether it is time for a checkpoint."""
        waited, busy = time.monotonic() - self._written, self.checkpoints.busy()
        seconds = self.settings.checkpoint_seconds
        return any_of(self.writes and waited >= seconds and (seconds == 0 or not busy))

    def checkpoint(self) -> None:
        """Write a checkpoint in the background."""
        counters = next(iter(self.trainings.values())).counters
        self._positions = [place for told in told_by_all(self.stream.positions()) for place in told]
        states = {name: whole(one.state) for name, one in self.trainings.items()}
        if self.writes:
            progress = {
                "counters": list(counters),
                "positions": self._positions,
                "metrics": self.metrics,
            }
            self.checkpoints.save(self.step, states, progress)
            lines = "".join(json.dumps(line) + "\n" for line in self.metrics)
            data = lines.encode()
            patiently(self.storage.address, lambda: self.storage.replace(METRICS_FILE, data))
        self._written = time.monotonic()

    def end(self) -> dict[str, SparseAutoencoder]:
        """Write the last checkpoint and the autoencoders, and return these."""
        self.checkpoint()
        self.checkpoints.wait()
        if self.writes:
            self._turn.check()
        found = {}
        for name, one in self.trainings.items():
            sae = one.autoencoder(self._metadata(name, one))
            if self.writes:
                save(sae, f"{self.settings.output_dir}/{name}", replace=True)
            found[name] = sae
        any_of(False)  # no process ends before the files are there
        return found

    def _metadata(self, name: str, one: AutoencoderTraining) -> dict[str, Any]:
        """Return what an autoencoder's files tell about it."""
        info = self.stream.dataset.info
        identity = read_identity(open_storage(self.settings.activations_dir, writable=False))
        fingerprint = identity.fingerprint if identity is not None else {}
        densities = one.densities()
        return {
            "model_name": info.model_name,
            "weights_sha256": fingerprint.get("weights_sha256"),
            **spellings(self.hooks[name]),
            **({} if self.target is None else spellings(self.target, "_out")),
            "run_id": info.run_id,
            "prepend_bos": False,
            "normalization": {"kind": one.settings.normalize, "scales": list(one.scales)},
            "filters": self.settings.filters,
            "rows_left_out": self.stream.left_out(self._positions),
            "rows_trained_on": self.rows,
            "batch_size": self.settings.batch_size,
            "training_architecture": one.settings.architecture,
            "training_settings": dataclasses.asdict(one.settings),
            "l0": float(densities.sum()),
            "num_dead_features": one.dead(),
            "software": f"qwen-activation-extraction {__version__}",
            "densities": densities.tolist(),
        }


def _scales(found: Any) -> tuple[float, float]:
    """Return the scales of rows and targets that a training began with."""
    if type(found) is not list or [type(scale) for scale in found] != [float, float]:
        raise StoreError(f"training.json is damaged: scales {found!r:.100}")
    return found[0], found[1]


def _opened_rows(settings: TrainSettings) -> tuple[RowStream, str | None]:
    """Return the stream of rows, and the name in the run of the hook point of the targets."""
    asked, process = settings.hook_points, (jax.process_index(), jax.process_count())
    if settings.target_hook_point is None:
        return RowStream(settings, asked, process), None
    if asked is None:
        raise StoreError(f"{setting('target_hook_point')} needs {setting('hook_points')}")
    stream = RowStream(settings, [*asked, settings.target_hook_point], process)
    return stream, stream.hook_points[-1]


def _named(
    hooks: Sequence[str], target: str | None, entries: Sequence[Entry]
) -> Iterator[tuple[str, str, Entry]]:
    """Yield the name of each autoencoder's folder, its hook point and its entry."""
    for hook in hooks:
        if hook == target:
            continue
        for entry in entries:
            yield (f"{hook}.{entry.name}" if entry.name else hook), hook, entry


def _spread(rows: np.ndarray) -> float:
    """Return the mean squared distance of all processes' rows from their mean."""
    rows = rows.astype(np.float64)
    sums = sum_of(np.concatenate([[len(rows), (rows**2).sum()], rows.sum(0)]))
    count, squares, total = sums[0], sums[1], sums[2:]
    return float(squares / count - (total @ total) / count**2)
