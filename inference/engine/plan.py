"""Which samples run together: windows, units, buckets and batches. Needs no JAX.

    samples -> windows of 4,096 -> sorted by length -> units -> each process takes its own
            -> batches of one shape a bucket

The *units* are a pure function of the samples and the settings, and do not depend on the number of
processes and devices. Unit u is committed as batch u + 1, whole, by the process that runs it.
Process p of P runs the units u with u % P == p that have no commit record yet. Processes need not
ask each other, so a run can be resumed with any number of them.

Within a window the samples are cut, from the longest down, into groups. A group has as many samples
as one device runs at a time in the bucket of the group's longest sample. If a bucket's samples do
not fill a group, the next shorter ones join them, which costs a little padding instead of dummy
sequences; so only the last group, the cheapest, has dummy sequences. Groups become units of at most
`rows_per_unit` planned rows.

With a `pack_length`, samples up to that length are packed into sequences of that length, which then
have hardly any padding. The unit records which samples share a sequence, so that running it again
gives the same rows.
"""

import bisect
import dataclasses
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby, islice

from inference.engine.buckets import bucket_length

SAVE_EVERY, LARGE_FILE = 512, 64 << 20
"""Default rows (or samples, in fast formats) in a file; and most bytes of a file then."""

WINDOW = 4_096
"""Samples that are sorted together, so that a stream need not be read to its end first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Settings of the plan.

    Attributes:
        tokens_per_batch: padded tokens that one device runs at a time.
        max_batch_size: most sequences that one device runs at a time.
        rows_per_unit: most rows of a hook point in a unit; a sample with more has its own unit.
        window: samples that are sorted together.
        pack_length: slots of a packed sequence; 0: every sample has its own sequence.
    """

    tokens_per_batch: int
    max_batch_size: int
    rows_per_unit: int
    window: int = WINDOW
    pack_length: int = 0

    def batch_size(self, bucket: int) -> int:
        """Return how many sequences of a bucket one device runs at a time; at least one."""
        return max(1, min(self.max_batch_size, self.tokens_per_batch // bucket))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedSample:
    """The properties of a sample that the plan depends on.

    Attributes:
        number: number of the sample in the run, from 0.
        tokens: tokens of the prompt; 0 if the sample is skipped.
        rows: most rows that it may give for each hook point.
    """

    number: int
    tokens: int
    rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """Samples that are committed together.

    Attributes:
        number: number of the unit, from 0: its batch id minus one.
        bucket: length that the prompts are padded to; 0 for a unit of skipped samples.
        samples: numbers of the samples, ascending.
        packed: the samples of each sequence, if they are packed; None: one sample each.
    """

    number: int
    bucket: int
    samples: tuple[int, ...]
    packed: tuple[tuple[int, ...], ...] | None = None

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """The samples of each sequence of a batch."""
        return tuple((n,) for n in self.samples) if self.packed is None else self.packed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences that the devices of a process run at a time; dummy sequences fill short batches.

    Attributes:
        bucket: length that the prompts are padded to.
        rows: unit number and samples of each sequence that is not a dummy.
    """

    bucket: int
    rows: tuple[tuple[int, tuple[int, ...]], ...]


def rows_per_file(samples: Iterable[PlannedSample], row_bytes: int) -> int:
    """Return the default rows of a unit, for formats whose files may be large.

    These are the rows of 512 samples, at least 512 and at most 64 MiB of a hook point: for small
    files the overhead of a file costs more than its content.

    Args:
        samples: samples of the run.
        row_bytes: bytes of a row of the widest hook point.
    """
    rows = [sample.rows for sample in samples if sample.tokens]
    of_samples = SAVE_EVERY * sum(rows) // max(1, len(rows))
    return max(SAVE_EVERY, min(of_samples, LARGE_FILE // row_bytes))


def plan_units(samples: Iterable[PlannedSample], settings: PlanSettings) -> Iterator[Unit]:
    """Yield all units of a run, in order."""
    stream, number = iter(samples), 0
    while window := list(islice(stream, settings.window)):
        for bucket, members in _cut_window(window, settings):
            yield Unit(
                number=number,
                bucket=bucket,
                samples=tuple(sorted(s.number for s in members)),
                packed=_pack(members, bucket) if 0 < bucket <= settings.pack_length else None,
            )
            number += 1


def _cut_window(
    window: Sequence[PlannedSample], settings: PlanSettings
) -> Iterator[tuple[int, list[PlannedSample]]]:
    """Yield bucket and samples of each unit of a window."""
    alone = [s for s in window if s.tokens > settings.pack_length]
    running = sorted(alone, key=lambda s: (-s.tokens, s.number))
    bucketed: list[tuple[int, PlannedSample]] = []
    while len(bucketed) < len(running):
        start = len(bucketed)
        bucket = bucket_length(running[start].tokens)
        group = running[start : start + settings.batch_size(bucket)]
        bucketed += [(bucket, sample) for sample in group]
    # In input order, since a mixture of short and long samples packs best.
    bucketed += [(settings.pack_length, s) for s in window if 0 < s.tokens <= settings.pack_length]
    for bucket, group in groupby(bucketed, key=lambda entry: entry[0]):
        members: list[PlannedSample] = []
        planned = 0
        for _, sample in group:
            if members and planned + sample.rows > settings.rows_per_unit:
                yield bucket, members
                members, planned = [], 0
            members.append(sample)
            planned += sample.rows
        yield bucket, members
    skipped = [s for s in window if not s.tokens]
    if skipped:
        yield 0, skipped


def _pack(samples: Sequence[PlannedSample], length: int) -> tuple[tuple[int, ...], ...]:
    """Return the samples of each packed sequence of `length` slots, by best fit decreasing."""
    rows: list[list[int]] = []
    gaps: list[tuple[int, int]] = []  # free slots of each sequence, and its index; ascending
    for sample in sorted(samples, key=lambda s: (-s.tokens, s.number)):
        at = bisect.bisect_left(gaps, (sample.tokens, 0))
        if at < len(gaps):
            gap, row = gaps.pop(at)
            rows[row].append(sample.number)
        else:
            gap, row = length, len(rows)
            rows.append([sample.number])
        bisect.insort(gaps, (gap - sample.tokens, row))
    return tuple(tuple(row) for row in rows)


def plan_in_order(
    samples: Iterable[PlannedSample], rows_per_unit: int, window: int = WINDOW
) -> Iterator[Unit]:
    """Yield units of consecutive samples, including skipped ones, for loops without batches.

    Args:
        samples: samples of the run.
        rows_per_unit: as in `PlanSettings`.
        window: a new unit begins at every multiple of it.
    """
    members: list[PlannedSample] = []
    number = 0

    def unit() -> Unit:
        longest = max(sample.tokens for sample in members)
        bucket = bucket_length(longest) if longest else 0
        return Unit(number=number, bucket=bucket, samples=tuple(s.number for s in members))

    for sample in samples:
        rows = sum(s.rows for s in members if s.tokens) + (sample.rows if sample.tokens else 0)
        if members and (rows > rows_per_unit or sample.number % window == 0):
            yield unit()
            number += 1
            members = []
        members.append(sample)
    if members:
        yield unit()


def own_units(
    units: Iterable[Unit], process: int, processes: int, committed: Container[int]
) -> Iterator[Unit]:
    """Yield the units that a process has to run.

    Args:
        units: units of the plan.
        process: number of the process, from 0.
        processes: number of processes.
        committed: numbers of the units that have a commit record.
    """
    for unit in units:
        if unit.number % processes == process and unit.number not in committed:
            yield unit


def pack_batches(units: Iterable[Unit], settings: PlanSettings, devices: int) -> Iterator[Batch]:
    """Yield a process's units as batches for its devices; every sample is in exactly one.

    A bucket's sequences wait until they fill a batch, across units and windows, so that only the
    last batch of a bucket has dummy sequences. Less than one batch for each bucket waits.

    Args:
        units: units to run; units of skipped samples give no batch.
        settings: settings of the plan.
        devices: length of the data axis; each index gets `settings.batch_size(bucket)` sequences.
    """
    waiting: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for unit in units:
        if not unit.bucket:
            continue
        rows = waiting.setdefault(unit.bucket, [])
        rows += [(unit.number, members) for members in unit.rows]
        size = settings.batch_size(unit.bucket) * devices
        while len(rows) >= size:
            yield Batch(bucket=unit.bucket, rows=tuple(rows[:size]))
            del rows[:size]
    for bucket, rows in sorted(waiting.items(), reverse=True):
        if rows:
            yield Batch(bucket=bucket, rows=tuple(rows))


def padding_efficiency(
    batches: Iterable[Batch], tokens: Sequence[int], settings: PlanSettings, devices: int
) -> float:
    """Return the share of the computed prompt tokens that are not padding.

    Args:
        batches: batches of `pack_batches`.
        tokens: prompt length of each sample, by its number.
        settings: settings of the plan.
        devices: length of the data axis.
    """
    real = computed = 0
    for batch in batches:
        real += sum(tokens[sample] for _, members in batch.rows for sample in members)
        computed += batch.bucket * settings.batch_size(batch.bucket) * devices
    return real / computed if computed else math.nan
