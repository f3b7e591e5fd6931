"""The padded arrays of `ragged_runs`, written down row by row."""

import numpy as np

from tests.extraction.exports.ragged_runs import HOOKS, WIDTHS, WITH_ROWS, known_row

LONGEST = 6


def expected_arrays(dtype: str = "float32", samples=WITH_ROWS, hooks=HOOKS) -> dict:
    """What npz and pt hold, float32 rounded as it is stored."""
    shape = len(samples), LONGEST
    arrays = {hook: np.zeros((*shape, WIDTHS[hook]), np.float32) for hook in hooks}
    mask, ids = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    for number, sample in enumerate(samples):
        ids[number, : len(sample.tokens)] = sample.tokens
        for position in sample.positions:
            mask[number, position] = 1
            for hook in hooks:
                arrays[hook][number, position] = known_row(sample, position, hook, dtype)
    return arrays | {
        "attention_mask": mask,
        "input_ids": ids,
        "task_ids": [sample.task_id for sample in samples],
        "sample_idx": np.array([sample.sample_idx for sample in samples], np.int64),
    }
