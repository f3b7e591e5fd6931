"""A small run of two hook points, for tests of training."""

from pathlib import Path

import numpy as np

from extraction import ActivationWriter
from extraction.run.rows import RowBlock

HOOK, TARGET = "layer_1", "layers.1.mlp"
WIDTHS = {HOOK: 16, TARGET: 12}


def features(rows: int, seed: int, width: int) -> np.ndarray:
    """Return `[rows, width]` float32: sparse sums of 40 directions, a mean and a little noise."""
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((40, width))
    active = random.random((rows, 40)) < 0.1
    values = (active * random.random((rows, 40))) @ directions + 0.2
    return (values + 0.01 * random.standard_normal(values.shape)).astype(np.float32)


def write_run(folder: Path, rows: int = 600, rows_per_file: int = 100, bad: int = 0) -> Path:
    """Write a run, whose first `bad` rows of `layer_1` have a NaN; return its folder."""
    values = {
        hook: features(rows, seed, width) for seed, (hook, width) in enumerate(WIDTHS.items())
    }
    values[HOOK][:bad, 0] = np.nan
    block = RowBlock.of(
        values, ["t"] * rows, position=np.arange(rows), token_id=np.arange(rows) % 7
    )
    with ActivationWriter(
        folder, WIDTHS, store_format="safetensors", rows_per_file=rows_per_file, model_name="m"
    ) as writer:
        writer.add(block)
    return folder
