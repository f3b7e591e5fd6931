"""The self-check: a few rows of every run, computed again on their own.

The sample's prompt and generated tokens run once more through the whole model, alone and without a
KV cache, and the rows must agree. This catches what no test can: a faulty chip, a miscompiled
kernel, a driver that rounds differently. All samples are padded to one length, so that only one
program is compiled.
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
from qwen_hooks.interventions import Interventions
from qwen_hooks.model import Params, forward

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest max|a - b| / max|b| of a row. bfloat16 has 8 bits, and errors add up over the layers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckPlan:
    """The rows that a process checks.

    Attributes:
        rows: most rows of each hook point to compute again.
        samples: numbers of their samples, in the order in which they run.
        slots: length that the samples are padded to.
    """

    rows: int
    samples: tuple[int, ...]
    slots: int

    @property
    def rows_of_a_sample(self) -> int:
        """Most rows checked of one sample, a power of two; the program is compiled for it."""
        if not self.samples:
            return 0
        return 1 << (-(-self.rows // len(self.samples)) - 1).bit_length()


def plan_check(batches: Sequence[Batch], rows: int, max_new_tokens: int) -> CheckPlan:
    """Choose samples spread over a process's batches, one for each row if there are enough.

    Args:
        batches: batches, in the order in which they run.
        rows: number of rows to compute again.
        max_new_tokens: most tokens that a sample may generate.
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
    """Computes rows of finished samples again and compares them.

    Args:
        model: model that captures the same hook points, with plain XLA attention, so that attention
            kernels are checked too.
        params: parameters of the run.
        plan: samples and rows to check.
        interventions: those of the run, for all samples; None: none.

    Attributes:
        rows: number of rows compared so far.
        largest_error: largest relative error of a row.
    """

    def __init__(
        self,
        model: QwenModelWithActivations,
        params: Params,
        plan: CheckPlan,
        interventions: Interventions | None = None,
    ):
        self.rows, self.largest_error = 0, 0.0
        self._model, self._params, self._plan = model, params, plan
        self._interventions = interventions
        self._samples_left = len(plan.samples)

    def check(self, result: SampleResult) -> None:
        """Compute rows of a planned sample again, the last row and others, and compare them.

        Args:
            result: the sample's result in the run.

        Raises:
            SelfCheckError: a row differs by more than the tolerance of the dtype, or a number is
                finite in only one of the two computations.
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
        edits = None
        if self._interventions is not None:
            edits = self._interventions.of_samples(np.array([result.sample.number]))
        length = np.int32(len(sequence))
        alone = _rows_alone(self._model, self._params, input_ids, length, slots, edits)
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
                f" alone; at most {TOLERANCES[dtype]} is allowed for {dtype}"
            )


@functools.partial(jax.jit, static_argnames=("model",))
def _rows_alone(
    model: QwenModelWithActivations,
    params: Params,
    input_ids: jax.Array,
    length: jax.Array,
    slots: jax.Array,
    interventions: Interventions | None,
) -> dict[str, jax.Array]:
    """Return the rows of some slots of one sequence, int32 `[1, S]`, with `length` tokens."""
    at = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
    positions = jnp.where(at < length, at, -1)
    output = forward(
        model,
        params,
        input_ids,
        positions,
        num_layers=model.blocks_needed,
        interventions=interventions,
    )
    return {hook: values[0][slots] for hook, values in output.activations.items()}


def _row_error(captured: np.ndarray, alone: np.ndarray) -> float:
    """Return the largest max|a - b| / max|b| of a row; infinite if only one of them is finite."""
    finite = np.isfinite(alone)
    if not np.array_equal(finite, np.isfinite(captured)):
        return math.inf
    captured, alone = np.where(finite, captured, 0), np.where(finite, alone, 0)
    scale = np.maximum(np.abs(alone).max(axis=-1), np.finfo(np.float32).tiny)
    return float((np.abs(alone - captured).max(axis=-1) / scale).max())
