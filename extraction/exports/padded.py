"""Samples as items of one array, padded with zeros to the longest: the arrays of npz and pt.

    <hook point>     [N, S, D]  [n, s] is the row of sample n at position s
    attention_mask   [N, S]     int32, 1 where there is a row
    input_ids        [N, S]     int32, the prompt's tokens and the generated ones, then -1

The last generated token has no row, because the model never read it.
"""

from collections.abc import Callable

import numpy as np

from extraction.exports.run_rows import RunRows
from extraction.exports.samples import refuse_unknown_positions
from extraction.exports.tokens import Tokens
from extraction.run.rows import UNKNOWN
from extraction.setting_names import setting

NO_TOKEN = UNKNOWN
"""Value of `input_ids` after the end of a sample, and for unknown tokens."""

Allocate = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]
"""Returns zeros of a shape and dtype for the array of a name."""


def padded_arrays(run: RunRows, allocate: Allocate) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the arrays above, filled, and notes for the user.

    Args:
        run: rows of the run; bfloat16 rows become uint16 arrays of their bits.
        allocate: allocates each array.

    Raises:
        StoreError: rows have no position.
    """
    samples = run.samples
    others = [setting("to", to) for to in ("memmap", "huggingface", "mi_crow")]
    refuse_unknown_positions(samples, f"a padded array needs; {', '.join(others)} do not need it")
    tokens = Tokens(run)
    N, S = len(samples), int(tokens.lengths.max())
    dtype = np.dtype(np.uint16 if run.dtype == "bfloat16" else np.float32)
    arrays = {hook: allocate(hook, (N, S, width), dtype) for hook, width in run.widths.items()}
    mask = allocate("attention_mask", (N, S), np.dtype(np.int32))
    mask[samples.sample, samples.position] = 1
    input_ids = allocate("input_ids", (N, S), np.dtype(np.int32))
    input_ids[:] = NO_TOKEN
    tokens.write(input_ids, np.zeros(N, np.int64))
    for rows, values in run.stream():
        for hook, array in arrays.items():
            array[samples.sample[rows], samples.position[rows]] = values[hook]
    shape = f"[{N}, {S}, width], {len(run):,} of the {N * S:,} positions have a row"
    return arrays | {"attention_mask": mask, "input_ids": input_ids}, [shape, *tokens.notes]
