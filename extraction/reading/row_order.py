"""The order in which a stream gives rows: a pure function of seed, epoch and the batches.

Without a seed it is the stored order. With one, the batches of an epoch are put in a random order
and cut into pools of a few batches; within a pool all rows are mixed. So files are read whole, one
behind the other, a pool is all that must be held, and every row comes once in an epoch.

    batches   1 2 3 4 5 6 7  ->  5 2 7 | 1 6 4 | 3  ->  rows of 5, 2 and 7 mixed | ...

Several streams can share the batches: in each epoch part p of n takes every n-th batch of the
(random) order, from the p-th on, and mixes rows within its own pools. So every row comes once in an
epoch of all parts together, and no file is read by two of them.

The random numbers are PCG64's raw ones from a SeedSequence, which numpy promises never to change
(NEP 19); it does not promise that of `Generator.permutation`. So an order is the same on every
machine and with every numpy.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from extraction.errors import StoreError


def permutation(count: int, seed: int, *key: int) -> np.ndarray:
    """`[count]` int64: the numbers below `count` in random order.

    Args:
        count: how many.
        seed: any whole number from 0.
        key: further numbers; other ones give an order that is independent of the first.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return np.argsort(np.random.PCG64(sequence).random_raw(count), kind="stable")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """Some batches whose rows are given together.

    Attributes:
        epoch: from 0.
        number: of the pool in its epoch.
        batches: which of the stream's batches.
        first_row: rows of the epoch before the pool.
        rows: in the pool.
        last: of its epoch.
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
        sizes: rows of each of the run's batches, none without rows.
        seed: None: as they are stored.
        pool_rows: that a pool of several batches may have.
        part: which of the parts this is, and how many parts there are.
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
        """The pools of an epoch, one behind the other."""
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
        """For each batch of a shuffled pool, where in the pool its rows go."""
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
    """Numbers in their order as `[first, last]` of runs without a gap, for JSON."""
    ranges: list[list[int]] = []
    for number in ids:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def ids_of(ranges: object, known: Iterable[int]) -> list[int]:
    """The numbers of `id_ranges`.

    Args:
        ranges: as it made them; it may be anything.
        known: numbers that there are.

    Raises:
        StoreError: it did not make them, or a number is not known.
    """
    known = set(known)
    ids: list[int] = []
    if type(ranges) is not list:
        raise StoreError(f"a position's batches are {str(ranges)[:50]}, no list of ranges")
    for entry in ranges:
        if type(entry) is not list or len(entry) != 2 or any(type(n) is not int for n in entry):
            raise StoreError(f"{str(entry)[:50]} is no range of batches")
        first, last = entry
        # Bounded by what is known, however far the range reaches.
        missing = next((n for n in range(first, last + 1) if n not in known), None)
        if missing is not None:
            raise StoreError(
                f"the position is one in a run with a batch {missing}, which is not here"
            )
        ids.extend(range(first, last + 1))
    if len(set(ids)) < len(ids):
        raise StoreError("a position's batches overlap")
    return ids
