"""Runs of samples with labels, and an autoencoder of which some latents follow the labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extraction.run.identity import RunIdentity, begin
from extraction.run.rows import RowBlock, text_column
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata
from sae import SparseAutoencoder

HOOK, OTHER_HOOK = "layer_1", "layer_2"
D_IN, D_SAE = 12, 48
TYPES = ("city", "movie")


def autoencoder(seed: int = 0, d_in: int = D_IN, **metadata: Any) -> SparseAutoencoder:
    """A jumprelu autoencoder whose latents are active in a tenth to a half of normal rows."""
    draw = np.random.default_rng(seed)
    encoder = draw.standard_normal((d_in, D_SAE)).astype(np.float32)
    return SparseAutoencoder(
        architecture="jumprelu",
        W_enc=encoder,
        W_dec=encoder.T.copy(),
        b_enc=draw.uniform(-2, 0, D_SAE).astype(np.float32),
        b_dec=np.zeros(d_in, np.float32),
        threshold=draw.uniform(0, 2, D_SAE).astype(np.float32),
        metadata={"hook_point": HOOK, **metadata},
    )


def samples(count: int, seed: int = 0) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Output lines with `known` and `type`, and one row `[count, D_IN]` of each sample.

    Rows of known samples lie further along the first axis, and cities along the second.
    """
    draw = np.random.default_rng(seed)
    known, kind = draw.random(count) < 0.4, draw.integers(len(TYPES), size=count)
    rows = draw.standard_normal((count, D_IN)).astype(np.float32)
    rows[known, 0] += 1
    rows[kind == 0, 1] += 1
    lines = [
        {
            "task_id": f"task {seed}.{number}",
            "sample_idx": 0,
            "prompt": "",
            "known": bool(known[number]),
            "type": TYPES[kind[number]],
        }
        for number in range(count)
    ]
    return lines, rows


def write_run(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    rows: Mapping[str, np.ndarray],
    *,
    rows_per_file: int = 1000,
    file_format: str = "safetensors",
    fingerprint: Mapping[str, Any] | None = None,
) -> Path:
    """A run with one row for each line; return its folder."""
    storage = LocalStorage(folder)
    count = len(lines)
    units = -(-count // rows_per_file)
    identity = RunIdentity.new(
        model_name="m",
        hook_points=tuple(rows),
        hidden_dim=D_IN,
        file_format=file_format,
        planned_batches=units,
        fingerprint=fingerprint,
    )
    begin(storage, identity)
    committer = Committer(storage, tuple(rows), file_format, "float32")
    for unit in range(units):
        part = slice(unit * rows_per_file, min((unit + 1) * rows_per_file, count))
        size = part.stop - part.start
        block = RowBlock(
            task_ids=text_column([line["task_id"] for line in lines[part]]),
            sample_idx=np.array([line["sample_idx"] for line in lines[part]], np.int64),
            step=np.zeros(size, np.int32),
            position=np.full(size, 3, np.int32),
            token_id=np.arange(size, dtype=np.int32),
            timestamps=text_column(["2026-01-15T10:30:00+00:00"] * size),
            activations={hook: values[part] for hook, values in rows.items()},
        )
        committer.commit(unit + 1, block, [dict(line) for line in lines[part]])
    write_metadata(storage)
    return folder
