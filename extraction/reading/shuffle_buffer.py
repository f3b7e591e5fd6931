"""Shuffle buffers: threads fill the next one while the rows of the current one are used.

Two sets of arrays are filled in turn, so that rows are copied into memory that is already mapped;
with fresh memory each time, page faults would take as long as reading.
"""

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from extraction.reading.frameworks import Rows
from extraction.reading.reading_threads import ReadingThreads
from extraction.reading.row_filters import ReadBatch
from extraction.reading.row_order import Pool, RowOrder
from extraction.reading.run_contents import StoredBatch

Filled = tuple[np.ndarray, Mapping[str, int]]
"""Where in its pool the rows of a batch went, and how many were left out, by filters' names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSource:
    """The source of a stream's rows.

    Attributes:
        read: returns the rows of a batch; None if it is damaged and skipped.
        present: converts a batch to what the user gets.
        widths: width of each hook point's rows.
        dtype: dtype of the rows that `read` returns.
        threads: number of threads that read.
    """

    read: Callable[[StoredBatch], ReadBatch | None]
    present: Callable[[Rows], object]
    widths: Mapping[str, int]
    dtype: np.dtype
    threads: int

    def empty(self, rows: int) -> Rows:
        """Return uninitialised arrays for so many rows."""
        return {hook: np.empty((rows, width), self.dtype) for hook, width in self.widths.items()}


@dataclasses.dataclass(kw_only=True)
class FilledPool:
    """A shuffle buffer's rows, in the order of the stream.

    Attributes:
        rows: the rows that could be read.
        numbers: index of each row in the buffer; None if no row was skipped.
        own: whether the arrays stay valid when the next buffer is filled.
        left_out: number of rows that filters left out, by the filters' names.
    """

    rows: Rows
    numbers: np.ndarray | None = None
    own: bool
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def end(self, count: int) -> int:
        """Return the index in the buffer after its first `count` rows; `count` is at least 1."""
        return count if self.numbers is None else int(self.numbers[count - 1]) + 1

    def start(self, number: int) -> int:
        """Return how many of the rows come before index `number` of the buffer."""
        return number if self.numbers is None else int(np.searchsorted(self.numbers, number))


def filled_pools(
    source: RowSource,
    batches: Sequence[StoredBatch],
    order: RowOrder,
    pools: Iterator[Pool],
    threads: ReadingThreads,
) -> Iterator[tuple[Pool, FilledPool]]:
    """Yield the shuffle buffers, each with its rows.

    Args:
        source: source of the rows.
        batches: batches of the stream.
        order: order of their rows.
        pools: the buffers to fill.
        threads: threads that read; their maker ends them.
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
    """Yield buffers of one batch each, with the arrays that were read."""

    def finished(pool: Pool, future: Future[ReadBatch | None]) -> tuple[Pool, FilledPool]:
        read = future.result()
        if read is None:
            return pool, FilledPool(rows=source.empty(0), own=True)
        left_out = Counter(read.left_out)
        return pool, FilledPool(rows=read.rows, numbers=read.kept, own=True, left_out=left_out)

    waiting: deque[tuple[Pool, Future[ReadBatch | None]]] = deque()
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
    """Yield buffers of several batches, whose rows are copied to their places as they arrive."""

    def fill(batch: int, arrays: Rows, places: np.ndarray) -> Filled:
        read = source.read(batches[batch])
        if read is None:
            return places[:0], {}
        if read.kept is not None:
            places = places[read.kept]
        for hook, values in read.rows.items():
            arrays[hook][places] = values
        return places, read.left_out

    def finished(
        pool: Pool, arrays: Rows, futures: list[Future[Filled]]
    ) -> tuple[Pool, FilledPool]:
        filled = [future.result() for future in futures]
        left_out = Counter()
        for _, counts in filled:
            left_out.update(counts)
        if sum(len(places) for places, _ in filled) == pool.rows:
            rows = {hook: values[: pool.rows] for hook, values in arrays.items()}
            return pool, FilledPool(rows=rows, own=False, left_out=left_out)
        numbers = np.sort(np.concatenate([places for places, _ in filled]))
        rows = {hook: values[numbers] for hook, values in arrays.items()}
        return pool, FilledPool(rows=rows, numbers=numbers, own=True, left_out=left_out)

    most = min(sum(order.sizes), max(order.pool_rows, *order.sizes, 0))  # of any epoch
    free: list[Rows] = []
    filling: deque[tuple[Pool, Rows, list[Future[Filled]]]] = deque()
    for pool in pools:
        arrays = free.pop() if free else source.empty(most)
        futures = [
            threads.submit(fill, batch, arrays, places)
            for batch, places in zip(pool.batches, order.places(pool), strict=True)
        ]
        filling.append((pool, arrays, futures))
        if len(filling) == 2:
            yield finished(*filling[0])
            free.append(filling.popleft()[1])
    while filling:
        yield finished(*filling.popleft())
