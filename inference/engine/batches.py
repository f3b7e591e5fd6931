"""From samples to the arrays of a batch, and from the batch's output back to samples.

A sequence of a batch holds one sample, or several packed one after the other. Captured slots are
aligned to the right end of the array, so sequences with fewer of them are padded on the left.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from extraction.run.rows import RowBlock, text_column, timestamp
from inference.engine.plan import Batch, PlanSettings, Unit
from inference.engine.programs import BatchInput, BatchOutput, batch_sharding
from inference.inputs.positions import ChooseGenerated
from inference.inputs.samples import Sample

Samples = Mapping[int, Sample] | Sequence[Sample]
"""Samples by their numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleResult:
    """The result of one sample.

    Attributes:
        sample: the sample.
        token_ids: the generated token ids, including a stop token.
        positions: int32 `[rows]`, position of each row's token, ascending.
        rows: `[rows, width]` of each hook point.
    """

    sample: Sample
    token_ids: list[int]
    positions: np.ndarray
    rows: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The slots of a sample within a sequence of a batch.

    Attributes:
        sample: the sample.
        start: slot of its first token.
        slots: captured slots: those of the chosen tokens, and of the last token if it predicts.
        from_end: offset of its first captured slot from the end of the sequence's captured slots.
    """

    sample: Sample
    start: int
    slots: list[int]
    from_end: int


def lay_out(members: Sequence[Sample], predicts: bool) -> list[Place]:
    """Return the slots of each sample of a sequence, one sample after the other."""
    slots, start = [], 0
    for sample in members:
        captured = [start + position for position in sample.positions]
        start += len(sample.token_ids)
        if predicts and captured[-1:] != [start - 1]:
            captured.append(start - 1)
        slots.append(captured)
    places, start, from_end = [], 0, sum(map(len, slots))
    for sample, captured in zip(members, slots, strict=True):
        places.append(Place(sample=sample, start=start, slots=captured, from_end=from_end))
        start, from_end = start + len(sample.token_ids), from_end - len(captured)
    return places


def row_slots(units: Iterable[Unit], samples: Sequence[Sample], predicts: bool) -> dict[int, int]:
    """Return the number of captured slots of a sequence in each bucket: a power of two, or all.

    One number for each bucket, so that there are no more programs than buckets.
    """
    most: dict[int, int] = {}
    for unit in units:
        if unit.bucket:
            rows = ([samples[n] for n in members] for members in unit.rows)
            counts = (lay_out(row, predicts)[0].from_end for row in rows)
            most[unit.bucket] = max(most.get(unit.bucket, 1), *counts)
    return {bucket: min(bucket, 1 << (n - 1).bit_length()) for bucket, n in most.items()}


def place_batch(
    batch: Batch,
    samples: Samples,
    plan: PlanSettings,
    *,
    mesh: Mesh,
    row_slots: Mapping[int, int],
    predicts: bool,
) -> BatchInput:
    """Return a batch on the mesh, with dummy sequences at the end.

    Every part of the mesh's data axis gets equally many sequences. Every process that shares the
    mesh has the whole batch, and gives its own devices their part.

    Args:
        batch: sample numbers of each sequence.
        samples: samples by number.
        plan: settings of the plan that the batch comes from.
        mesh: mesh to run on.
        row_slots: captured slots of a sequence, by bucket.
        predicts: whether a token is predicted after each prompt.
    """
    total = plan.batch_size(batch.bucket) * mesh.shape["data"]
    input_ids, starts = np.zeros((2, total, batch.bucket), np.int32)
    lengths, numbers = np.zeros(total, np.int32), np.zeros(total, np.int32)
    rows = np.zeros((total, row_slots[batch.bucket]), np.int32)
    for i, (_, members) in enumerate(batch.rows):
        numbers[i] = members[0]
        for place in lay_out([samples[n] for n in members], predicts):
            end = lengths[i] = place.start + len(place.sample.token_ids)
            input_ids[i, place.start : end] = place.sample.token_ids
            starts[i, place.start : end] = place.start
            at = rows.shape[1] - place.from_end
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


def results_of(
    batch: Batch, output: BatchOutput, samples: Samples, choose_generated: ChooseGenerated
) -> Iterator[SampleResult]:
    """Yield the result of each sample of a batch; wait for the devices.

    Args:
        batch: the batch.
        output: output of the batch, on the devices.
        samples: samples by number.
        choose_generated: chooses the generated tokens whose rows are kept.
    """
    counts, tokens = np.asarray(output.counts), np.asarray(output.tokens)
    prompt_rows = {hook: np.asarray(rows) for hook, rows in output.prompt_rows.items()}
    later_rows = {hook: np.asarray(rows) for hook, rows in output.generated_rows.items()}
    predicts = tokens.shape[1] > 0
    has_later_rows = any(rows.shape[0] for rows in later_rows.values())
    for i, (_, members) in enumerate(batch.rows):
        token_ids = tokens[i, : counts[i]].tolist()
        for place in lay_out([samples[n] for n in members], predicts):
            sample = place.sample
            chosen: Sequence[int] = ()
            if has_later_rows:
                chosen = choose_generated(len(sample.token_ids), token_ids[:-1])
            later = [len(sample.token_ids) + number for number in chosen]
            yield SampleResult(
                sample=sample,
                token_ids=token_ids,
                positions=np.array([*sample.positions, *later], np.int32),
                rows={
                    hook: np.concatenate(
                        [
                            rows[i, rows.shape[1] - place.from_end :][: len(sample.positions)],
                            later_rows[hook][list(chosen), i] if chosen else rows[i, :0],
                        ]
                    )
                    for hook, rows in prompt_rows.items()
                },
            )


def by_unit(
    results: Iterable[SampleResult], units: Iterable[Unit]
) -> Iterator[tuple[Unit, list[SampleResult]]]:
    """Yield each unit when its last result arrives, with the results in the unit's order."""
    unit_of = {number: unit for unit in units for number in unit.samples}
    waiting: dict[int, dict[int, SampleResult]] = {}
    for result in results:
        unit = unit_of[result.sample.number]
        found = waiting.setdefault(unit.number, {})
        found[result.sample.number] = result
        if len(found) == len(unit.samples):
            del waiting[unit.number]
            yield unit, [found[number] for number in unit.samples]


def unit_rows(results: Sequence[SampleResult]) -> RowBlock | None:
    """Return a unit's rows with their keys, by sample and token; None if there are none."""
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
