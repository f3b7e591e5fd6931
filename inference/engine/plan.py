"""Which samples run together: windows, units, buckets and batches. No JAX here.

    samples -> windows of 4,096 -> sorted by length -> units -> each process takes its own
            -> batches of one shape a bucket

The *units* are a pure function of the samples and the settings, whatever the number of processes
and devices: unit u is committed as batch u + 1, whole, by whichever process runs it. Process p of
P runs the units u with u % P == p that have no commit record yet; no process asks another, so a
run can go on with any number of them.

Within a window the samples are cut, from the longest down, into groups of as many as one device
runs at a time in the bucket of the group's longest. So no group but the last, the cheapest, needs
dummy rows: where a bucket's samples do not fill a group, the longest ones below join them, which
costs a little padding instead of whole rows. Groups become units of at most
`rows_per_unit` planned rows.

With a `pack_length`, samples up to that length share rows of the batch instead, which then have
hardly any padding. Which ones do is part of the unit, so a unit that runs again runs the same.
"""

import bisect
import dataclasses
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby, islice

from inference.engine.buckets import bucket_length

SAVE_EVERY, LARGE_FILE = 512, 64 << 20
"""Rows in a file, or samples whose rows are in one; and bytes that it then has at most."""

WINDOW = 4_096
"""Samples that are sorted together: a stream never has to be read to its end first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What the plan depends on besides the samples.

    Attributes:
        tokens_per_batch: padded tokens that one device runs at a time.
        max_batch_size: rows that one device runs at a time, at most.
        rows_per_unit: rows per hook point that a unit may hold; a sample with more is alone.
        window: samples that are sorted together.
        pack_length: slots of the rows that samples share; 0: every sample has a row of its own.
    """

    tokens_per_batch: int
    max_batch_size: int
    rows_per_unit: int
    window: int = WINDOW
    pack_length: int = 0

    def batch_size(self, bucket: int) -> int:
        """Rows that one device runs at a time in a bucket; at least one."""
        return max(1, min(self.max_batch_size, self.tokens_per_batch // bucket))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedSample:
    """What the plan needs to know of a sample.

    Attributes:
        number: place in the run, from 0.
        tokens: of the prompt; 0 if the sample is skipped.
        rows: that it may give per hook point.
    """

    number: int
    tokens: int
    rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """Samples that are committed together.

    Attributes:
        number: from 0; the batch id less one.
        bucket: length that their prompts are padded to; 0 for a unit of skipped samples.
        samples: their numbers, ascending.
        packed: the samples of each row, where they share rows; None: a row for each.
    """

    number: int
    bucket: int
    samples: tuple[int, ...]
    packed: tuple[tuple[int, ...], ...] | None = None

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """The samples of each row of a batch."""
        return tuple((n,) for n in self.samples) if self.packed is None else self.packed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What the devices of a process run at a time; shorter batches are filled with dummy rows.

    Attributes:
        bucket: length that the prompts are padded to.
        rows: of each row that is no dummy its unit, and its samples.
    """

    bucket: int
    rows: tuple[tuple[int, tuple[int, ...]], ...]


def rows_per_file(samples: Iterable[PlannedSample], row_bytes: int) -> int:
    """Rows that a unit holds if nobody says how many, for formats whose files may be large.

    512 where samples have a row each. Where they have many, the rows of 512 samples, up to 64 MiB
    of a hook point: small files cost more than what is in them.

    Args:
        samples: of the run.
        row_bytes: of the widest hook point.
    """
    rows = [sample.rows for sample in samples if sample.tokens]
    of_samples = SAVE_EVERY * sum(rows) // max(1, len(rows))
    return max(SAVE_EVERY, min(of_samples, LARGE_FILE // row_bytes))


def plan_units(samples: Iterable[PlannedSample], settings: PlanSettings) -> Iterator[Unit]:
    """All units of a run, in order."""
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
    """Bucket and samples of each unit."""
    alone = [s for s in window if s.tokens > settings.pack_length]
    running = sorted(alone, key=lambda s: (-s.tokens, s.number))
    bucketed: list[tuple[int, PlannedSample]] = []
    while len(bucketed) < len(running):
        start = len(bucketed)
        bucket = bucket_length(running[start].tokens)
        group = running[start : start + settings.batch_size(bucket)]
        bucketed += [(bucket, sample) for sample in group]
    # Short and long ones mixed, as they come, fill shared rows best.
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
    """Rows of samples that fit together into so many slots: the longest first, each where it fits
    best (best fit decreasing).
    """
    rows: list[list[int]] = []
    gaps: list[tuple[int, int]] = []  # of each row that has one, and the row; ascending
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
    """Units of neighbouring samples, skipped ones among them, for loops without batches.

    Args:
        samples: of the run.
        rows_per_unit: as in `PlanSettings`.
        window: samples after which a new unit begins in any case.
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
    """The units that a process has to run.

    Args:
        units: of the plan.
        process: its number, from 0.
        processes: how many there are.
        committed: numbers of the units that have a commit record.
    """
    for unit in units:
        if unit.number % processes == process and unit.number not in committed:
            yield unit


def pack_batches(units: Iterable[Unit], settings: PlanSettings, devices: int) -> Iterator[Batch]:
    """A process's units as batches for its devices; every sample stands in exactly one.

    A bucket's rows wait until they fill a batch, across units and windows, so that only the
    last batch of a bucket has dummy rows. No more than one batch for each bucket waits.

    Args:
        units: to run; those of skipped samples give no batch.
        settings: of the plan.
        devices: over which a batch is spread, `settings.batch_size(bucket)` rows on each.
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
    """Share of the computed prompt tokens that are real.

    Args:
        batches: as packed.
        tokens: prompt length of each sample, by its number.
        settings: of the plan.
        devices: over which the batches are spread.
    """
    real = computed = 0
    for batch in batches:
        real += sum(tokens[sample] for _, members in batch.rows for sample in members)
        computed += batch.bucket * settings.batch_size(batch.bucket) * devices
    return real / computed if computed else math.nan
