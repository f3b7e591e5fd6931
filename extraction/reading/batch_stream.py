"""Streams of batches, read ahead by threads, that can be continued from a stored position.

A position says where the next batch begins: the epoch, and the number of rows of that epoch before
it, including skipped damaged ones. With the settings of the order (`shuffle_seed`, `pool_rows`) it
is all that a stream needs to continue in another process, on another machine, after the run has
grown.
"""

import dataclasses
import operator
import os
import threading
import weakref
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

from extraction.errors import StoreError
from extraction.reading.frameworks import Rows
from extraction.reading.reading_threads import ReadingThreads
from extraction.reading.row_order import Pool, RowOrder, id_ranges, ids_of
from extraction.reading.run_contents import StoredBatch
from extraction.reading.shuffle_buffer import FilledPool, RowSource, filled_pools

POSITION_VERSION = 1

LEAST = {"batch_size": 1, "shuffle_seed": 0, "pool_rows": 1, "epochs": 0}
"""Smallest allowed value of each setting."""

OPTIONAL = ("shuffle_seed", "epochs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Settings of a stream; `ActivationDataset.batches` explains them.

    Raises:
        StoreError: a number is too small.
    """

    batch_size: int
    shuffle_seed: int | None
    pool_rows: int
    drop_last: bool
    epochs: int | None

    def __post_init__(self):
        for name, least in LEAST.items():
            value = getattr(self, name)
            if name in OPTIONAL and value is None:
                continue
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
                raise StoreError(f"{name} must be a whole number from {least}, not {value!r}")
            object.__setattr__(self, name, operator.index(value))  # numpy's would not go into JSON


class BatchStream(Iterator[Any]):
    """An iterator over batches, read by threads that end with it; `close` waits for them.

    Use it in a `with` block, or call `close`. After an error it yields no more, but another stream
    may continue from its position.

    Args:
        source: source of the rows.
        batches: stored batches that it reads, in their stored order.
        settings: size, order and number of the batches.
        run_id: id of the run; None if it is not known.
        start: the `position` of another stream, to continue from there.
        part: number of the part of the run that it reads, from 0, and the number of parts.
        filters: the filters of the source, for positions; None if it has none.

    Attributes:
        order: the order of the rows.
        left_out: number of rows that each filter left out so far, by its name, and of all
            `together`; a shuffle buffer counts when the stream reaches it, and not again in a
            stream that continues within it.

    Raises:
        StoreError: the position is of another run, or of a stream with other settings; or there is
            no such part.
    """

    def __init__(
        self,
        source: RowSource,
        batches: Sequence[StoredBatch],
        settings: StreamSettings,
        run_id: str | None,
        start: Mapping[str, Any] | None = None,
        part: tuple[int, int] = (0, 1),
        filters: Mapping[str, Any] | None = None,
    ):
        self._source = source
        self._filters = filters
        self.left_out: Counter[str] = Counter()
        self._run_id = run_id
        self._settings = settings
        self._part = _checked_part(part)
        self._epoch = self._row = 0
        if start is not None:
            batches = self._restore(start, {batch.batch_id: batch for batch in batches})
        elif settings.shuffle_seed is not None:  # the same order after the run has grown
            batches = sorted(batches, key=lambda batch: batch.batch_id)
        self.order = order = RowOrder(
            sizes=tuple(batch.rows for batch in batches),
            seed=settings.shuffle_seed,
            pool_rows=settings.pool_rows,
            part=self._part,
        )
        self._rows = sum(order.sizes)
        self._ids = id_ranges(batch.batch_id for batch in batches)
        if start is not None and (
            start["rows"] != self._rows or self._row > order.rows(self._epoch)
        ):
            raise StoreError(
                f"start is at row {self._row} of {start['rows']}, but its batches have"
                f" {self._rows} rows in this run"
            )
        self._threads = ReadingThreads(source.threads, "read-activations")
        # The threads hold no reference to the stream, so that it is freed when nobody else does.
        weakref.finalize(self, self._threads.end).atexit = False
        self._process = os.getpid()
        pools = filled_pools(
            source,
            batches,
            order,
            _pools(order, self._epoch, self._row, settings.epochs),
            self._threads,
        )
        self._generator = _cut(pools, source, settings, self._row, self.left_out)

    def __iter__(self) -> "BatchStream":
        return self

    def __repr__(self) -> str:
        settings = self._settings
        return (
            f"BatchStream(batches of {settings.batch_size:,} of {self._rows:,} rows,"
            f" shuffle_seed={settings.shuffle_seed}, at row {self._row:,} of epoch {self._epoch})"
        )

    def __next__(self) -> Any:
        if os.getpid() != self._process:
            raise StoreError(
                "a stream cannot be used in a forked process, which lacks its threads; call"
                " batches() in that process"
            )
        try:
            rows, self._epoch, self._row = next(self._generator)
        except CancelledError:  # the program is ending
            if threading.current_thread().daemon:
                raise SystemExit from None  # ends the thread, and nothing is printed
            raise StoreError("the program is ending, and its streams have ended") from None
        except Exception:  # including StopIteration
            self.close()
            raise
        return self._source.present(rows)

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        self.close()

    def close(self) -> None:
        """End the stream and its threads, and wait for them; its position stays."""
        self._generator.close()
        self._threads.end()
        self._threads.join()

    @property
    def position(self) -> dict[str, Any]:
        """Where the next batch begins, as a dictionary for JSON; pass it as `start`."""
        return {
            "version": POSITION_VERSION,
            "run_id": self._run_id,
            "batches": self._ids,
            "rows": self._rows,
            **self._ordering(),
            "epoch": self._epoch,
            "row": self._row,
        }

    def _ordering(self) -> dict[str, Any]:
        seed = self._settings.shuffle_seed
        ordering: dict[str, Any] = {
            "shuffle_seed": seed,
            "pool_rows": None if seed is None else self._settings.pool_rows,
        }
        if self._part != (0, 1):
            ordering["part"] = list(self._part)
        return ordering if self._filters is None else ordering | {"filters": self._filters}

    def _restore(
        self, start: Mapping[str, Any], known: Mapping[int, StoredBatch]
    ) -> list[StoredBatch]:
        """Go to a position, and return the batches of its stream."""
        keys = ("version", "rows", "epoch", "row")
        found = [start.get(key) for key in keys] if isinstance(start, Mapping) else []
        numbers = [number for number in found if type(number) is int and number >= 0]
        if len(numbers) < len(keys) or numbers[0] != POSITION_VERSION:
            raise StoreError(f"start must be a stream's position, not {str(start)[:200]}")
        expected = {"run_id": self._run_id, "part": None, "filters": None, **self._ordering()}
        refuse_other_position(start, expected, "another stream")
        self._epoch, self._row = numbers[2], numbers[3]
        return [known[batch_id] for batch_id in ids_of(start.get("batches"), known)]


def _cut(
    pools: Iterator[tuple[Pool, FilledPool]],
    source: RowSource,
    settings: StreamSettings,
    skip: int,
    left_out: Counter[str],
) -> Generator[tuple[Rows, int, int]]:
    """Yield batches, each with epoch and row of the position after it.

    A function outside the stream, so that there is no reference cycle: a stream that nobody holds
    any more ends at once, and not in the garbage collector, which runs in any thread at any time.

    Args:
        pools: the filled shuffle buffers of all epochs from the position on.
        source: source of the rows.
        settings: settings of the stream.
        skip: rows of the first epoch before the position.
        left_out: takes what filters left out of each pool.
    """
    size = settings.batch_size
    batch: Rows = {}  # the batch that is being filled
    count = given = 0
    for pool, filled in pools:
        if skip <= pool.first_row:  # else the stream before counted it
            left_out.update(filled.left_out)
        at = filled.start(max(0, skip - pool.first_row))
        while at < len(filled):
            take = min(size - count, len(filled) - at)
            if filled.own and take == size:
                batch = {hook: rows[at : at + size] for hook, rows in filled.rows.items()}
            else:
                batch = batch or source.empty(size)
                for hook, rows in filled.rows.items():
                    batch[hook][count : count + take] = rows[at : at + take]
            count, at = count + take, at + take
            if count == size:
                end = filled.end(at)
                full, batch, count, given = batch, {}, 0, given + 1
                if pool.last and end == pool.rows:
                    yield full, pool.epoch + 1, 0
                else:
                    yield full, pool.epoch, pool.first_row + end
                del full
        if pool.last:
            if count and not settings.drop_last:
                given += 1
                yield {hook: rows[:count] for hook, rows in batch.items()}, pool.epoch + 1, 0
            if not given and not skip and settings.epochs is None:
                raise StoreError(
                    "no epoch has enough readable rows for one batch; reduce batch_size, or set"
                    " drop_last=False"
                )
            batch, count, given, skip = {}, 0, 0, 0


def _pools(order: RowOrder, epoch: int, row: int, epochs: int | None) -> Iterator[Pool]:
    """Yield the shuffle buffers from a position on, over all epochs."""
    while len(order) and (epochs is None or epoch < epochs):
        for pool in order.pools(epoch):
            if pool.first_row + pool.rows > row:
                yield pool
        epoch, row = epoch + 1, 0


def _checked_part(part: Any) -> tuple[int, int]:
    try:
        index, parts = map(operator.index, part)
        if 0 <= index < parts:
            return index, parts
    except (TypeError, ValueError):
        pass
    raise StoreError(f"part must be (index, parts) with 0 <= index < parts, not {part!r}")


def refuse_other_position(
    start: Mapping[str, Any], expected: Mapping[str, Any], whose: str
) -> None:
    """Refuse a position that was made with other settings.

    Args:
        start: the position.
        expected: fields that it must have.
        whose: owner of the position if it differs, for the message.

    Raises:
        StoreError: a field differs; the message names each.
    """
    differing = [
        f"{name} {start.get(name)!r} there, {value!r} here"
        for name, value in expected.items()
        if start.get(name) != value
    ]
    if differing:
        raise StoreError(f"start is a position of {whose}: {'; '.join(differing)}")
