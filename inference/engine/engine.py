"""The engine: planned batches of samples in, results out, one after the other.

    engine = Engine(model=model, params=params, mesh=mesh, generation=..., plan=..., row_slots=...)
    for result in engine.run(batches, samples):
        result.rows["layer_12"]

`capture`, the distributed command and the planner's measurements all run on it. Two batches are in
flight at a time: while the host splits one batch's rows, the devices compute the next, and memory
stays bounded.
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
        model: the model, which captures its hook points.
        params: the full `{'params': ...}`, on the mesh.
        mesh: axes `data` and `model`.
        generation: settings of the compiled programs.
        plan: settings of the plan that the batches come from.
        row_slots: captured slots of a sequence in each bucket; see `batches.row_slots`.
        choose_generated: chooses the generated tokens whose rows are kept.
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
            batches: batches to run.
            samples: samples by number.
            interventions: interventions for all samples; None: none.
            goes_on: called before each batch; after False no further batch is started.
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
            # The first batch compiles; ending the process then loses no result.
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
        """Return a batch's arrays on the mesh."""
        return place_batch(
            batch,
            samples,
            self.plan,
            mesh=self.mesh,
            row_slots=self.row_slots,
            predicts=self.generation.max_new_tokens > 0,
        )

    def start(self, batch: BatchInput, interventions: Interventions | None = None) -> BatchOutput:
        """Start a batch on the devices and its copies to the host; wait for neither."""
        with jax.transfer_guard_device_to_host("disallow"):
            output = generate_batch(
                self.model,
                self.params,
                batch,
                settings=self.generation,
                mesh=self.mesh,
                interventions=interventions,
            )
            with jax.transfer_guard_device_to_host("allow"):  # starts the copies without waiting
                for array in jax.tree.leaves(output):
                    array.copy_to_host_async()
        return output
