"""Reading ahead: threads fill the next pools with rows while one is given away.

Pools of several batches are filled in two sets of arrays by turns, so that rows are copied into
memory that is warm already; fresh memory costs as much time as the reading.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from extraction.reading.frameworks import Rows
from extraction.reading.reading_threads import ReadingThreads
from extraction.reading.row_order import Pool, RowOrder
from extraction.reading.run_contents import StoredBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSource:
    """What a stream reads from.

    Attributes:
        read: all rows of a batch; None: it is damaged, and left out.
        present: batches as the user wants them.
        widths: of each hook point's rows.
        dtype: of the rows that `read` gives.
        threads: that read.
    """

    read: Callable[[StoredBatch], Rows | None]
    present: Callable[[Rows], object]
    widths: Mapping[str, int]
    dtype: np.dtype
    threads: int

    def empty(self, rows: int) -> Rows:
        """Arrays for so many rows, whose content is not set."""
        return {hook: np.empty((rows, width), self.dtype) for hook, width in self.widths.items()}


@dataclasses.dataclass(kw_only=True)
class FilledPool:
    """A pool's rows in the order in which they are given.

    Attributes:
        rows: those that could be read.
        numbers: of each, its number in the pool; None: none was left out.
        own: whether the arrays stay as they are when the next pool is asked for.
    """

    rows: Rows
    numbers: np.ndarray | None = None
    own: bool

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def end(self, count: int) -> int:
        """The number in the pool behind the first `count` rows, of which there is at least one."""
        return count if self.numbers is None else int(self.numbers[count - 1]) + 1

    def start(self, number: int) -> int:
        """How many of the rows come before the pool's row of this number."""
        return number if self.numbers is None else int(np.searchsorted(self.numbers, number))


def filled_pools(
    source: RowSource,
    batches: Sequence[StoredBatch],
    order: RowOrder,
    pools: Iterator[Pool],
    threads: ReadingThreads,
) -> Iterator[tuple[Pool, FilledPool]]:
    """Yield the pools, each with its rows.

    Args:
        source: of the rows.
        batches: of the stream.
        order: of their rows.
        pools: that are wanted.
        threads: that read; whoever made them ends them.
    """
    if order.seed is None:
        return _single_pools(source, batches, pools, threads)
    return _mixed_pools(source, batches, order, pools, threads)


def _single_pools(
    source: RowSource,
    batches: Sequence[StoredBatch],
    pools: Iterator[Pool],
    threads: ReadingThreads,
) -> Iterator[tuple[Pool, FilledPool]]:
    """Pools of one batch each: the arrays that were read are what is given."""

    def finished(pool: Pool, future: Future[Rows | None]) -> tuple[Pool, FilledPool]:
        rows = future.result()
        if rows is None:
            rows = {hook: np.empty((0, width)) for hook, width in source.widths.items()}
        return pool, FilledPool(rows=rows, own=True)

    waiting: deque[tuple[Pool, Future[Rows | None]]] = deque()
    for pool in pools:
        (batch,) = pool.batches
        waiting.append((pool, threads.submit(source.read, batches[batch])))
        if len(waiting) > source.threads:
            yield finished(*waiting.popleft())
    while waiting:
        yield finished(*waiting.popleft())


def _mixed_pools(
    source: RowSource,
    batches: Sequence[StoredBatch],
    order: RowOrder,
    pools: Iterator[Pool],
    threads: ReadingThreads,
) -> Iterator[tuple[Pool, FilledPool]]:
    """Pools whose rows are put in their places as they arrive."""

    def fill(batch: int, arrays: Rows, places: np.ndarray) -> bool:
        rows = source.read(batches[batch])
        if rows is None:
            return False
        for hook, values in rows.items():
            arrays[hook][places] = values
        return True

    def finished(
        pool: Pool, arrays: Rows, places: list[np.ndarray], futures: list[Future[bool]]
    ) -> tuple[Pool, FilledPool]:
        read = [future.result() for future in futures]
        if all(read):
            rows = {hook: values[: pool.rows] for hook, values in arrays.items()}
            return pool, FilledPool(rows=rows, own=False)
        good = [place for place, whole in zip(places, read, strict=True) if whole]
        numbers = np.sort(np.concatenate([np.zeros(0, np.int64), *good]))
        rows = {hook: values[numbers] for hook, values in arrays.items()}
        return pool, FilledPool(rows=rows, numbers=numbers, own=True)

    most = min(sum(order.sizes), max(order.pool_rows, *order.sizes, 0))  # in any epoch
    free: list[Rows] = []
    filling: deque[tuple[Pool, Rows, list[np.ndarray], list[Future[bool]]]] = deque()
    for pool in pools:
        arrays = free.pop() if free else source.empty(most)
        places = order.places(pool)
        futures = [
            threads.submit(fill, batch, arrays, place)
            for batch, place in zip(pool.batches, places, strict=True)
        ]
        filling.append((pool, arrays, places, futures))
        if len(filling) == 2:
            yield finished(*filling[0])
            free.append(filling.popleft()[1])
    while filling:
        yield finished(*filling.popleft())
