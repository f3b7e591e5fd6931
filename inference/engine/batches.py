"""Samples into the arrays of a batch, and the batch's results back into samples.

A row of a batch holds one sample, or several packed one after the other. The slots whose rows are
captured are counted from the end of each row, so that rows with fewer of them are padded in front.
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
"""By number."""


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
class Place:
    """Where a sample stands in a row of a batch.

    Attributes:
        sample: it.
        start: slot of its first token.
        slots: that are captured: those of the chosen tokens, and of the last where it predicts.
        from_end: place of the first of them among all of the row, counted from the end.
    """

    sample: Sample
    start: int
    slots: list[int]
    from_end: int


def lay_out(members: Sequence[Sample], predicts: bool) -> list[Place]:
    """Return where the samples of a row stand, one after the other."""
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
    """Return of each bucket how many slots of a row are captured: a power of two, or all.

    One number for each, so that there are no more programs than buckets.
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
    """Return a batch over the mesh: as many rows on each part of its data axis, dummies at the end.

    Every process that shares the mesh has the whole batch and gives its own devices their part.

    Args:
        batch: rows of sample numbers.
        samples: by number.
        plan: that the batch comes from.
        mesh: to run on.
        row_slots: captured slots of a row, by bucket.
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
    """Yield the result of each sample of a batch; waits for the devices.

    Args:
        batch: that was run.
        output: of the devices.
        samples: by number.
        choose_generated: says of which generated tokens the rows are kept.
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
    """Yield each unit when its last result has come, with the results in the unit's order."""
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
    """Return a unit's rows with their keys, sample by sample, token by token; None without any."""
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
