"""From units to committed batches: dispatch here, fetch and write in a thread.

The main thread builds a batch, hands it to the devices and goes on to the next while they compute;
the copies to the host are started at once and awaited by the draining thread alone. That thread
puts the rows of each sample together, and when a unit's last sample is there it is committed.
Two batches may be on the way at a time, so memory is bounded, and a slow disk slows the devices
down instead of filling the host.
"""

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from extraction.rows import RowBlock, text_column, timestamp
from inference.batch_plan import Batch, PlanSettings, Unit
from inference.generation import (
    BatchInput,
    BatchOutput,
    GenerationSettings,
    batch_sharding,
    generate_batch,
)
from inference.samples import Sample
from qwen_hooks import QwenModelWithActivations
from qwen_hooks.model import Params

log = logging.getLogger(__name__)

BATCHES_ON_THE_WAY = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleResult:
    """What one sample gave.

    Attributes:
        sample: it.
        token_ids: generated, a stop token included.
        rows: `[steps, layers, D]`.
    """

    sample: Sample
    token_ids: list[int]
    rows: np.ndarray


CommitUnit = Callable[[Unit, list[SampleResult]], None]


class Drain:
    """The thread that fetches batches from the devices and commits units.

    Args:
        units: all that will be drained, by number.
        samples: by number.
        commit: called with each unit and its results, in the order of the unit's samples.
        keep: numbers of samples whose results `take_kept` gives to the main thread.
    """

    def __init__(
        self,
        units: Mapping[int, Unit],
        samples: Mapping[int, Sample] | Sequence[Sample],
        commit: CommitUnit,
        keep: Iterable[int] = (),
    ):
        self._units = units
        self._samples = samples
        self._commit = commit
        self._keep = set(keep)
        self._kept: queue.SimpleQueue[SampleResult] = queue.SimpleQueue()
        self._queue: queue.Queue[tuple[Batch, BatchOutput] | None] = queue.Queue(BATCHES_ON_THE_WAY)
        self._results: dict[int, dict[int, SampleResult]] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)

    def __enter__(self) -> "Drain":
        self._thread.start()
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        self._queue.put(None)
        self._thread.join()
        if exception_type is None:
            self._raise_failure()

    def put(self, batch: Batch, output: BatchOutput) -> None:
        """Hands over a dispatched batch; blocks while two are on the way.

        Raises:
            BaseException: what ended the thread, if something did.
        """
        self._raise_failure()
        self._queue.put((batch, output))

    def take_kept(self) -> list[SampleResult]:
        """Results of kept samples that have arrived since the last call."""
        return [self._kept.get() for _ in range(self._kept.qsize())]

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            if self._failure is None:  # after a failure only the queue is emptied
                try:
                    self._drain(*work)
                except BaseException as error:
                    self._failure = error

    def _drain(self, batch: Batch, output: BatchOutput) -> None:
        counts, tokens = np.asarray(output.counts), np.asarray(output.tokens)
        rows = np.asarray(output.rows)
        for i, (unit, number) in enumerate(batch.rows):
            count = int(counts[i])
            result = SampleResult(
                sample=self._samples[number],
                token_ids=tokens[i, :count].tolist(),
                rows=rows[: max(count, 1), :, i],
            )
            if number in self._keep:
                self._kept.put(result)
            waiting = self._results.setdefault(unit, {})
            waiting[number] = result
            if len(waiting) == len(self._units[unit].samples):
                del self._results[unit]
                members = self._units[unit].samples
                self._commit(self._units[unit], [waiting[member] for member in members])


def run_batches(
    model: QwenModelWithActivations,
    params: Params,
    batches: Iterable[Batch],
    samples: Mapping[int, Sample] | Sequence[Sample],
    plan: PlanSettings,
    generation: GenerationSettings,
    mesh: Mesh,
    drain: Drain,
    goes_on: Callable[[], bool],
) -> None:
    """Dispatches every batch and hands it to the drain.

    Args:
        model: captures its layers.
        params: on the mesh.
        batches: to run, in order.
        samples: by number.
        plan: that the batches come from.
        generation: settings of the program.
        mesh: to run on.
        drain: started.
        goes_on: called in this thread after each dispatch; False ends the loop.
    """
    for batch in batches:
        placed = place_batch(batch, samples, plan.batch_size(batch.bucket), mesh)
        # Nothing may wait for the devices here: the drain's thread does.
        with jax.transfer_guard_device_to_host("disallow"):
            output = generate_batch(model, params, placed, settings=generation, mesh=mesh)
            for array in jax.tree.leaves(output):
                array.copy_to_host_async()
            drain.put(batch, output)
        if not goes_on():
            return


def place_batch(
    batch: Batch, samples: Mapping[int, Sample] | Sequence[Sample], size: int, mesh: Mesh
) -> BatchInput:
    """A batch over the mesh, `size` rows for each place on its data axis, dummies at the end.

    Every process that shares the mesh has the whole batch and gives its own devices their part.
    """
    total = size * mesh.shape["data"]
    input_ids = np.zeros((total, batch.bucket), np.int32)
    lengths, numbers = np.zeros(total, np.int32), np.zeros(total, np.int32)
    for i, (_, number) in enumerate(batch.rows):
        token_ids = samples[number].token_ids
        input_ids[i, : len(token_ids)] = token_ids
        lengths[i], numbers[i] = len(token_ids), number

    def place(array: np.ndarray) -> jax.Array:
        sharding = batch_sharding(mesh)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return BatchInput(input_ids=place(input_ids), lengths=place(lengths), numbers=place(numbers))


def unit_rows(results: Sequence[SampleResult], layers: Sequence[int]) -> RowBlock | None:
    """The rows of a unit with their keys, sample by sample and step by step."""
    if not results:
        return None
    steps = [len(result.rows) for result in results]
    step = np.concatenate([np.arange(n, dtype=np.int32) for n in steps])
    first = np.array([len(result.sample.token_ids) - 1 for result in results], np.int32)
    position = np.repeat(first, steps) + step
    sequences = [[*result.sample.token_ids, *result.token_ids] for result in results]
    owner = np.repeat(np.arange(len(results)), steps).tolist()
    rows = np.concatenate([result.rows for result in results])
    return RowBlock(
        task_ids=text_column([results[i].sample.task_id for i in owner]),
        sample_idx=np.array([results[i].sample.sample_idx for i in owner], np.int64),
        step=step,
        position=position,
        token_id=np.array(
            [sequences[i][p] for i, p in zip(owner, position.tolist(), strict=True)], np.int32
        ),
        timestamps=text_column([timestamp()] * len(step)),
        activations={f"layer_{layer}": rows[:, i] for i, layer in enumerate(layers)},
    )
