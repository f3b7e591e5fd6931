"""The engine: planned batches of samples in, results out, one after the other.

    engine = Engine(model=model, params=params, mesh=mesh, generation=..., plan=..., row_slots=...)
    for result in engine.run(batches, samples):
        result.rows["layer_12"]

Both `capture` and the distributed command run on it, and so do the planner's measurements. Two
batches are on their way at a time: while the host takes one batch's rows apart, the devices compute
the next, and memory stays bounded.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from extraction.interruption import ends_at_once
from inference.engine.batches import SampleResult, Samples, place_batch, results_of
from inference.engine.plan import Batch, PlanSettings
from inference.engine.programs import BatchInput, BatchOutput, GenerationSettings, generate_batch
from inference.inputs.positions import ChooseGenerated, choose_all
from qwen_hooks import QwenModelWithActivations
from qwen_hooks.interventions import Interventions
from qwen_hooks.model import Params

BATCHES_ON_THE_WAY = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """Runs batches on a mesh.

    Attributes:
        model: captures its hook points.
        params: the full `{'params': ...}`, on the mesh.
        mesh: axes `data` and `model`.
        generation: settings of the compiled programs.
        plan: settings of the plan that the batches come from.
        row_slots: of each bucket, how many slots of a row are captured; see `batches.row_slots`.
        choose_generated: says of which generated tokens the rows are kept.
    """

    model: QwenModelWithActivations
    params: Params
    mesh: Mesh
    generation: GenerationSettings
    plan: PlanSettings
    row_slots: Mapping[int, int]
    choose_generated: ChooseGenerated = choose_all

    def run(
        self,
        batches: Iterable[Batch],
        samples: Samples,
        *,
        interventions: Interventions | None = None,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> Iterator[SampleResult]:
        """Yield the result of each sample, in the order of the batches.

        Args:
            batches: to run.
            samples: by number.
            interventions: of all samples; None: none.
            goes_on: asked before each batch; after False, the batches on their way are the last.
        """
        running: deque[tuple[Batch, BatchOutput]] = deque()
        is_first = True
        for batch in batches:
            if not goes_on():
                break
            if len(running) == BATCHES_ON_THE_WAY:
                yield from self._results(*running.popleft(), samples)
            placed = self.place(batch, samples)
            edits = None
            if interventions is not None:
                edits = interventions.of_samples(np.asarray(placed.numbers))
            # The first one compiles, and nothing else is under way that a stop would lose.
            with ends_at_once() if is_first else contextlib.nullcontext():
                running.append((batch, self.start(placed, edits)))
            is_first = False
        while running:
            yield from self._results(*running.popleft(), samples)

    def _results(
        self, batch: Batch, output: BatchOutput, samples: Samples
    ) -> Iterator[SampleResult]:
        return results_of(batch, output, samples, self.choose_generated)

    def place(self, batch: Batch, samples: Samples) -> BatchInput:
        """Return a batch's arrays, on the mesh."""
        return place_batch(
            batch,
            samples,
            self.plan,
            mesh=self.mesh,
            row_slots=self.row_slots,
            predicts=self.generation.max_new_tokens > 0,
        )

    def start(self, batch: BatchInput, interventions: Interventions | None = None) -> BatchOutput:
        """Hand a batch to the devices and begin the copies to the host; waits for neither."""
        with jax.transfer_guard_device_to_host("disallow"):
            output = generate_batch(
                self.model,
                self.params,
                batch,
                settings=self.generation,
                mesh=self.mesh,
                interventions=interventions,
            )
            with jax.transfer_guard_device_to_host("allow"):  # begun, not waited for
                for array in jax.tree.leaves(output):
                    array.copy_to_host_async()
        return output
