"""A few rows of every run, computed again on their own.

The sample's prompt and generated tokens run once more through the whole model, alone, unpadded and
without a cache, and every row captured from it must agree. It catches what no test can: a faulty
chip, a miscompiled kernel, a driver that rounds differently.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from inference.run_loop import SampleResult
from qwen_hooks import QwenModelWithActivations
from qwen_hooks.model import Params, forward

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest max|a - b| / max|b| of a row. bfloat16 has 8 bits, and errors add up over the layers."""


class SelfCheckError(RuntimeError):
    """Rows of the fast path disagree with the same rows computed on their own."""


@functools.partial(jax.jit, static_argnames=("model",))
def _rows_alone(
    model: QwenModelWithActivations, params: Params, input_ids: jax.Array
) -> dict[str, jax.Array]:
    positions = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
    output = forward(model, params, input_ids, positions, num_layers=model.blocks_needed)
    return {hook: values[0] for hook, values in output.activations.items()}


def check_sample(model: QwenModelWithActivations, params: Params, result: SampleResult) -> float:
    """Computes a sample's rows again and gives the largest relative error of a row.

    Args:
        model: that captures the same hook points; with plain XLA attention, to check the kernels
            too.
        params: as the run uses them.
        result: of the run.

    Raises:
        SelfCheckError: it is beyond the tolerance of the dtype, or a number is not finite in one
            of the two computations only.
    """
    if not len(result.positions):
        return 0.0
    input_ids = np.array([[*result.sample.token_ids, *result.token_ids[:-1]]], np.int32)
    every = _rows_alone(model, params, input_ids)
    errors = []
    for hook, rows in result.rows.items():
        alone = np.asarray(every[hook], np.float32)[result.positions]
        errors.append(_row_error(rows.astype(np.float32), alone.reshape(rows.shape)))
    error, dtype = max(errors), str(jax.tree.leaves(params)[0].dtype)
    tolerance = TOLERANCES[dtype]
    if error > tolerance:
        name = f"{result.sample.task_id!r}, sample_idx {result.sample.sample_idx}"
        raise SelfCheckError(
            f"self-check: rows of task {name} differ by {error:.2g} from the same rows computed"
            f" alone; at most {tolerance} is right for {dtype}"
        )
    return error


def _row_error(captured: np.ndarray, alone: np.ndarray) -> float:
    """The largest max|a - b| / max|b| of any row; infinite where only one of them is finite."""
    finite = np.isfinite(alone)
    if not np.array_equal(finite, np.isfinite(captured)):
        return math.inf
    captured, alone = np.where(finite, captured, 0), np.where(finite, alone, 0)
    scale = np.maximum(np.abs(alone).max(axis=-1), np.finfo(np.float32).tiny)
    return float((np.abs(alone - captured).max(axis=-1) / scale).max())
