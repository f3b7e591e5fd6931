"""From units to committed batches: dispatch here, fetch and write in a thread.

The main thread builds a batch, hands it to the devices and goes on to the next while they compute;
the copies to the host are started at once and awaited by the draining thread alone. That thread
puts the rows of each sample together, and when a unit's last sample is there it is committed.
Two batches may be on the way at a time, so memory is bounded, and a slow disk slows the devices
down instead of filling the host.
"""

import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from extraction.interruption import ends_at_once
from extraction.run.rows import RowBlock, text_column, timestamp
from inference.engine.plan import Batch, PlanSettings, Unit
from inference.engine.programs import (
    BatchInput,
    BatchOutput,
    GenerationSettings,
    batch_sharding,
    generate_batch,
)
from inference.inputs.positions import ChooseGenerated, choose_all
from inference.inputs.samples import Sample
from qwen_hooks import QwenModelWithActivations
from qwen_hooks.interventions import Interventions
from qwen_hooks.model import Params

log = logging.getLogger(__name__)

BATCHES_ON_THE_WAY = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleResult:
    """What one sample gave.

    Attributes:
        sample: it.
        token_ids: generated, a stop token included.
        positions: int32 `[rows]`, of the tokens whose rows these are, ascending.
        rows: `[rows, width]` of each hook point.
    """

    sample: Sample
    token_ids: list[int]
    positions: np.ndarray
    rows: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What runs a batch.

    Attributes:
        model: captures its hook points.
        params: on the mesh.
        generation: settings of the program.
        mesh: to run on.
        row_slots: of each bucket, how many slots of a row are captured; see `row_slots`.
    """

    model: QwenModelWithActivations
    params: Params
    generation: GenerationSettings
    mesh: Mesh
    row_slots: Mapping[int, int]

    def run(self, batch: BatchInput, interventions: Interventions | None = None) -> BatchOutput:
        """Hands a batch to the devices; what it gives is still being computed."""
        return generate_batch(
            self.model,
            self.params,
            batch,
            settings=self.generation,
            mesh=self.mesh,
            interventions=interventions,
        )


CommitUnit = Callable[[Unit, list[SampleResult]], None]


class Drain:
    """The thread that fetches batches from the devices and commits units.

    Args:
        units: all that will be drained, by number.
        samples: by number.
        commit: called with each unit and its results, in the order of the unit's samples.
        keep: numbers of samples whose results `take_kept` gives to the main thread.
        choose_generated: says of which generated tokens the rows are kept.
    """

    def __init__(
        self,
        units: Mapping[int, Unit],
        samples: Mapping[int, Sample] | Sequence[Sample],
        commit: CommitUnit,
        keep: Iterable[int] = (),
        choose_generated: ChooseGenerated = choose_all,
    ):
        self._units = units
        self._samples = samples
        self._commit = commit
        self._keep = set(keep)
        self._choose_generated = choose_generated
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
        prompt_rows = {hook: np.asarray(rows) for hook, rows in output.prompt_rows.items()}
        later_rows = {hook: np.asarray(rows) for hook, rows in output.generated_rows.items()}
        predicts = tokens.shape[1] > 0
        has_later_rows = any(rows.shape[0] for rows in later_rows.values())
        for i, (unit, numbers) in enumerate(batch.rows):
            token_ids = tokens[i, : counts[i]].tolist()
            for place in lay_out([self._samples[n] for n in numbers], predicts):
                sample = place.sample
                chosen: Sequence[int] = ()
                if has_later_rows:
                    chosen = self._choose_generated(len(sample.token_ids), token_ids[:-1])
                later = [len(sample.token_ids) + number for number in chosen]
                result = SampleResult(
                    sample=sample,
                    token_ids=token_ids,
                    positions=np.array([*sample.positions, *later], np.int32),
                    rows={
                        hook: np.concatenate(
                            [
                                rows[i, rows.shape[1] - place.behind :][: len(sample.positions)],
                                later_rows[hook][list(chosen), i] if chosen else rows[i, :0],
                            ]
                        )
                        for hook, rows in prompt_rows.items()
                    },
                )
                self._take(self._units[unit], result)

    def _take(self, unit: Unit, result: SampleResult) -> None:
        """Commits the unit when all its results are there."""
        if result.sample.number in self._keep:
            self._kept.put(result)
        waiting = self._results.setdefault(unit.number, {})
        waiting[result.sample.number] = result
        if len(waiting) == len(unit.samples):
            del self._results[unit.number]
            self._commit(unit, [waiting[member] for member in unit.samples])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sample stands in a row of a batch.

    Attributes:
        sample: it.
        start: slot of its first token.
        slots: that are captured: those of the chosen tokens, and of the last where it predicts.
        behind: place of the first of them among all of the row, counted from the end, where they
            stand.
    """

    sample: Sample
    start: int
    slots: list[int]
    behind: int


def lay_out(members: Sequence[Sample], predicts: bool) -> list[Place]:
    """The samples of a row, one behind the other."""
    slots, start = [], 0
    for sample in members:
        captured = [start + position for position in sample.positions]
        start += len(sample.token_ids)
        if predicts and captured[-1:] != [start - 1]:
            captured.append(start - 1)
        slots.append(captured)
    places, start, behind = [], 0, sum(map(len, slots))
    for sample, captured in zip(members, slots, strict=True):
        places.append(Place(sample=sample, start=start, slots=captured, behind=behind))
        start, behind = start + len(sample.token_ids), behind - len(captured)
    return places


def row_slots(units: Iterable[Unit], samples: Sequence[Sample], predicts: bool) -> dict[int, int]:
    """Of each bucket how many slots of a row are captured: a power of two, or all.

    One number for each, so that there are no more programs than buckets.
    """
    most: dict[int, int] = {}
    for unit in units:
        if unit.bucket:
            rows = ([samples[n] for n in members] for members in unit.rows)
            counts = (lay_out(row, predicts)[0].behind for row in rows)
            most[unit.bucket] = max(most.get(unit.bucket, 1), *counts)
    return {bucket: min(bucket, 1 << (n - 1).bit_length()) for bucket, n in most.items()}


def run_batches(
    program: Program,
    batches: Iterable[Batch],
    samples: Mapping[int, Sample] | Sequence[Sample],
    plan: PlanSettings,
    drain: Drain,
    goes_on: Callable[[Batch], bool],
) -> None:
    """Dispatches every batch and hands it to the drain.

    Args:
        program: to run.
        batches: to run, in order.
        samples: by number.
        plan: that the batches come from.
        drain: started.
        goes_on: called in this thread with each batch that was dispatched; False ends the loop.
    """
    for number, batch in enumerate(batches):
        placed = place_batch(program, batch, samples, plan)
        # Nothing may wait for the devices here: the drain's thread does.
        with jax.transfer_guard_device_to_host("disallow"):
            with ends_at_once() if number == 0 else contextlib.nullcontext():
                output = program.run(placed)  # the first one compiles, and nothing runs yet
            with jax.transfer_guard_device_to_host("allow"):  # begun, not waited for
                for array in jax.tree.leaves(output):
                    array.copy_to_host_async()
            drain.put(batch, output)
        if not goes_on(batch):
            return


def place_batch(
    program: Program,
    batch: Batch,
    samples: Mapping[int, Sample] | Sequence[Sample],
    plan: PlanSettings,
) -> BatchInput:
    """A batch over the mesh, as many rows on each place of its data axis, dummies at the end.

    Every process that shares the mesh has the whole batch and gives its own devices their part.
    """
    mesh, predicts = program.mesh, program.generation.max_new_tokens > 0
    total = plan.batch_size(batch.bucket) * mesh.shape["data"]
    input_ids, starts = np.zeros((2, total, batch.bucket), np.int32)
    lengths, numbers = np.zeros(total, np.int32), np.zeros(total, np.int32)
    rows = np.zeros((total, program.row_slots[batch.bucket]), np.int32)
    for i, (_, members) in enumerate(batch.rows):
        numbers[i] = members[0]
        for place in lay_out([samples[n] for n in members], predicts):
            end = lengths[i] = place.start + len(place.sample.token_ids)
            input_ids[i, place.start : end] = place.sample.token_ids
            starts[i, place.start : end] = place.start
            at = rows.shape[1] - place.behind
            rows[i, at : at + len(place.slots)] = place.slots

    def put(array: np.ndarray) -> jax.Array:
        sharding = batch_sharding(mesh)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return BatchInput(
        input_ids=put(input_ids),
        lengths=put(lengths),
        numbers=put(numbers),
        rows=put(rows),
        starts=put(starts) if batch.bucket == plan.pack_length else None,
    )


def unit_rows(results: Sequence[SampleResult]) -> RowBlock | None:
    """The rows of a unit with their keys, sample by sample and token by token; None without any."""
    counts = [len(result.positions) for result in results]
    if not sum(counts):
        return None
    position = np.concatenate([result.positions for result in results])
    last = np.array([len(result.sample.token_ids) - 1 for result in results], np.int32)
    step = np.maximum(position - np.repeat(last, counts), 0)
    sequences = [[*result.sample.token_ids, *result.token_ids] for result in results]
    owner = np.repeat(np.arange(len(results)), counts).tolist()
    return RowBlock(
        task_ids=text_column([results[i].sample.task_id for i in owner]),
        sample_idx=np.array([results[i].sample.sample_idx for i in owner], np.int64),
        step=step,
        position=position,
        token_id=np.array(
            [sequences[i][p] for i, p in zip(owner, position.tolist(), strict=True)], np.int32
        ),
        timestamps=text_column([timestamp()] * len(step)),
        activations={
            hook: np.concatenate([result.rows[hook] for result in results])
            for hook in results[0].rows
        },
    )
