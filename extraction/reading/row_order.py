"""The order of a stream's rows: a pure function of seed, epoch and the batches.

Without a seed it is the stored order. With a seed, the batches of an epoch are put in a random
order and grouped into shuffle buffers (class `Pool`) of a few batches; within a buffer all rows are
shuffled. So files are read whole, one after the other, only one buffer must be in memory, and every
row comes once in an epoch.

    batches   1 2 3 4 5 6 7  ->  5 2 7 | 1 6 4 | 3  ->  rows of 5, 2 and 7 mixed | ...

Several streams can share the batches: in each epoch part p of n takes every n-th batch of the
order, from the p-th on, and shuffles rows within its own buffers. So all parts together yield every
row once in an epoch, and no two of them read the same file.

The random numbers are raw numbers of PCG64 with a SeedSequence, which numpy promises never to
change (NEP 19), unlike `Generator.permutation`. So an order is the same on every machine and with
every version of numpy.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from extraction.errors import StoreError


def permutation(count: int, seed: int, *key: int) -> np.ndarray:
    """Return `[count]` int64: the numbers below `count` in random order.

    Args:
        count: length of the permutation.
        seed: any whole number from 0.
        key: further numbers; each key gives an independent order.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return np.argsort(np.random.PCG64(sequence).random_raw(count), kind="stable")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """A shuffle buffer: batches whose rows are shuffled together.

    Attributes:
        epoch: number of the epoch, from 0.
        number: number of the buffer in its epoch, from 0.
        batches: indices of its batches among the stream's.
        first_row: rows of the epoch before the buffer.
        rows: rows in the buffer.
        last: whether it is the last of its epoch.
    """

    epoch: int
    number: int
    batches: tuple[int, ...]
    first_row: int
    rows: int
    last: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOrder:
    """The order of a stream's rows.

    Attributes:
        sizes: number of rows of each of the run's batches, at least 1.
        seed: seed of the shuffle; None: stored order.
        pool_rows: most rows of a shuffle buffer of several batches.
        part: number of this part, from 0, and the number of parts.
    """

    sizes: tuple[int, ...]
    seed: int | None
    pool_rows: int
    part: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        """Return how many batches this part has in each epoch."""
        return len(range(self.part[0], len(self.sizes), self.part[1]))

    def rows(self, epoch: int) -> int:
        """Return how many rows this part has in an epoch."""
        return sum(self.sizes[batch] for batch in self._batches(epoch))

    def pools(self, epoch: int) -> Iterator[Pool]:
        """Yield the shuffle buffers of an epoch, in order."""
        groups = list(self._groups(epoch))
        first_row = 0
        for number, batches in enumerate(groups):
            rows = sum(self.sizes[batch] for batch in batches)
            yield Pool(
                epoch=epoch,
                number=number,
                batches=tuple(batches),
                first_row=first_row,
                rows=rows,
                last=number == len(groups) - 1,
            )
            first_row += rows

    def places(self, pool: Pool) -> list[np.ndarray]:
        """Return for each batch of a shuffle buffer the indices of its rows in the buffer."""
        assert self.seed is not None
        part, parts = self.part
        key = 1 + pool.number * parts + part
        order = permutation(pool.rows, self.seed, pool.epoch, key)
        ends = np.cumsum([self.sizes[batch] for batch in pool.batches])
        return np.split(order, ends[:-1])

    def _groups(self, epoch: int) -> Iterator[list[int]]:
        if self.seed is None:
            yield from ([batch] for batch in self._batches(epoch))
            return
        group: list[int] = []
        rows = 0
        for batch in self._batches(epoch):
            if group and rows + self.sizes[batch] > self.pool_rows:
                yield group
                group, rows = [], 0
            group.append(batch)
            rows += self.sizes[batch]
        if group:
            yield group

    def _batches(self, epoch: int) -> list[int]:
        """Return this part's batches in their order."""
        order = range(len(self.sizes))
        if self.seed is not None:
            order = permutation(len(self.sizes), self.seed, epoch, 0).tolist()
        part, parts = self.part
        return list(order[part::parts])


def id_ranges(ids: Iterable[int]) -> list[list[int]]:
    """Return numbers as `[first, last]` of each range without a gap, in their order, for JSON."""
    ranges: list[list[int]] = []
    for number in ids:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def ids_of(ranges: object, known: Iterable[int]) -> list[int]:
    """Return the numbers that `id_ranges` made ranges of.

    Args:
        ranges: the ranges; any value, since it may come from a file.
        known: numbers that exist.

    Raises:
        StoreError: `ranges` is something else, or a number does not exist.
    """
    known = set(known)
    ids: list[int] = []
    if type(ranges) is not list:
        raise StoreError(f"start: batches must be a list of ranges, not {str(ranges)[:50]}")
    for entry in ranges:
        if type(entry) is not list or len(entry) != 2 or any(type(n) is not int for n in entry):
            raise StoreError(f"start: {str(entry)[:50]} must be a range of batches [first, last]")
        first, last = entry
        # Stops at the first unknown number, so a huge range costs nothing.
        missing = next((n for n in range(first, last + 1) if n not in known), None)
        if missing is not None:
            raise StoreError(
                f"start is a position in a run with batch {missing}, which this run does not have"
            )
        ids.extend(range(first, last + 1))
    if len(set(ids)) < len(ids):
        raise StoreError("start: the ranges of batches overlap")
    return ids
