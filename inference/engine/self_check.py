"""A few rows of every run, computed again on their own.

The sample's prompt and generated tokens run once more through the whole model, alone and without a
cache, and rows captured from it must agree. It catches what no test can: a faulty chip, a
miscompiled kernel, a driver that rounds differently. All sequences are padded to one length, so
that one program is compiled.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from inference.engine.batches import SampleResult
from inference.engine.buckets import bucket_length
from inference.engine.plan import Batch
from inference.errors import SelfCheckError
from qwen_hooks import QwenModelWithActivations
from qwen_hooks.model import Params, forward

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest max|a - b| / max|b| of a row. bfloat16 has 8 bits, and errors add up over the layers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """What a process checks.

    Attributes:
        rows: to compute again, at most, of each hook point.
        samples: numbers of the samples that they are of, in the order in which they run.
        slots: length that their sequences are padded to.
    """

    rows: int
    samples: tuple[int, ...]
    slots: int

    @property
    def rows_of_a_sample(self) -> int:
        """Rows of one sample at most: a power of two, with which the program is compiled."""
        if not self.samples:
            return 0
        return 1 << (-(-self.rows // len(self.samples)) - 1).bit_length()


def plan_check(batches: Sequence[Batch], rows: int, max_new_tokens: int) -> CheckPlan:
    """Chooses samples all over the batches of a process, one for each row if there are enough.

    Args:
        batches: in the order in which they run.
        rows: to compute again.
        max_new_tokens: that a sample may generate.
    """
    running = [
        (number, batch.bucket)
        for batch in batches
        for _, members in batch.rows
        for number in members
    ]
    count = min(rows, len(running))
    chosen = [running[(2 * i + 1) * len(running) // (2 * count)] for i in range(count)]
    longest = max((bucket for _, bucket in chosen), default=0)
    return CheckPlan(
        rows=rows,
        samples=tuple(number for number, _ in chosen),
        slots=bucket_length(longest + max(max_new_tokens, 1) - 1),
    )


class SelfCheck:
    """Compares rows of finished samples, and counts them.

    Args:
        model: that captures the same hook points; with plain XLA attention, to check the kernels
            too.
        params: as the run uses them.
        plan: what is checked.

    Attributes:
        rows: compared so far.
        largest_error: relative, of any of them.
    """

    def __init__(self, model: QwenModelWithActivations, params: Params, plan: CheckPlan):
        self.rows, self.largest_error = 0, 0.0
        self._model, self._params, self._plan = model, params, plan
        self._samples_left = len(plan.samples)

    def check(self, result: SampleResult) -> None:
        """Computes rows of a sample of the plan again: the last, and others before it.

        Args:
            result: of the run.

        Raises:
            SelfCheckError: one differs by more than the tolerance of the dtype, or a number is not
                finite in one of the two computations only.
        """
        count, plan = len(result.positions), self._plan
        share = -(-(plan.rows - self.rows) // max(1, self._samples_left))
        share = min(share, count, plan.rows_of_a_sample)
        self._samples_left -= 1
        if not share:
            return
        chosen = count - 1 - np.arange(share) * count // share
        sequence = [*result.sample.token_ids, *result.token_ids[:-1]]
        input_ids = np.zeros((1, plan.slots), np.int32)
        input_ids[0, : len(sequence)] = sequence
        slots = np.zeros(plan.rows_of_a_sample, np.int32)
        slots[:share] = result.positions[chosen]
        alone = _rows_alone(self._model, self._params, input_ids, np.int32(len(sequence)), slots)
        error = max(
            _row_error(
                rows[chosen].astype(np.float32),
                np.asarray(alone[hook], np.float32)[:share].reshape(share, -1),
            )
            for hook, rows in result.rows.items()
        )
        self.rows += share
        self.largest_error = max(self.largest_error, error)
        dtype = str(jax.tree.leaves(self._params)[0].dtype)
        if error > TOLERANCES[dtype]:
            name = f"{result.sample.task_id!r}, sample_idx {result.sample.sample_idx}"
            raise SelfCheckError(
                f"self-check: rows of task {name} differ by {error:.2g} from the same rows computed"
                f" alone; at most {TOLERANCES[dtype]} is right for {dtype}"
            )


@functools.partial(jax.jit, static_argnames=("model",))
def _rows_alone(
    model: QwenModelWithActivations,
    params: Params,
    input_ids: jax.Array,
    length: jax.Array,
    slots: jax.Array,
) -> dict[str, jax.Array]:
    """Rows of some slots of one sequence, int32 `[1, S]`, of which `length` are tokens."""
    at = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
    positions = jnp.where(at < length, at, -1)
    output = forward(model, params, input_ids, positions, num_layers=model.blocks_needed)
    return {hook: values[0][slots] for hook, values in output.activations.items()}


def _row_error(captured: np.ndarray, alone: np.ndarray) -> float:
    """The largest max|a - b| / max|b| of any row; infinite where only one of them is finite."""
    finite = np.isfinite(alone)
    if not np.array_equal(finite, np.isfinite(captured)):
        return math.inf
    captured, alone = np.where(finite, captured, 0), np.where(finite, alone, 0)
    scale = np.maximum(np.abs(alone).max(axis=-1), np.finfo(np.float32).tiny)
    return float((np.abs(alone - captured).max(axis=-1) / scale).max())
