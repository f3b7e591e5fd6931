"""Batches of rows one behind the other, read ahead by threads, from a position that can be kept.

A position is where the next batch begins: epoch, and rows of the epoch that came before, damaged
ones that were left out among them. Together with what decides the order (`shuffle`) it is all that
a stream needs to go on in another process, on another machine, after the run has grown.
"""

import dataclasses
import operator
import os
import threading
import weakref
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
"""Of what a user may ask for."""

OPTIONAL = ("shuffle_seed", "epochs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What a user asks of a stream; `ActivationDataset.batches` explains them.

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
    """Gives batches. Its threads end with it; `close`, or the end of a `with`, waits for them.

    After an error it gives no more, but another one may go on from its position.

    Args:
        source: of the rows.
        batches: that it reads, in their stored order.
        settings: what is asked for.
        run_id: of the run; None: it is not known.
        start: the `position` of another stream, to go on from there.
        part: which of the parts of the run it reads, and how many parts there are.

    Attributes:
        order: in which the rows come.

    Raises:
        StoreError: the position is of another run, or of a stream with other settings; there is no
            such part.
    """

    def __init__(
        self,
        source: RowSource,
        batches: Sequence[StoredBatch],
        settings: StreamSettings,
        run_id: str | None,
        start: Mapping[str, Any] | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        self._source = source
        self._run_id = run_id
        self._settings = settings
        self._part = _checked_part(part)
        self._epoch = self._row = 0
        if start is not None:
            batches = self._restore(start, {batch.batch_id: batch for batch in batches})
        elif settings.shuffle_seed is not None:  # the same order, however the run has grown
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
                f"the position is row {self._row} of {start['rows']}, and here its batches have"
                f" {self._rows} rows"
            )
        self._threads = ReadingThreads(source.threads, "read-activations")
        # They do not know the stream, so that it goes when nobody holds it any more.
        weakref.finalize(self, self._threads.end).atexit = False
        self._process = os.getpid()
        pools = filled_pools(
            source,
            batches,
            order,
            _pools(order, self._epoch, self._row, settings.epochs),
            self._threads,
        )
        self._generator = _cut(pools, source, settings, self._row)

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
                "a stream cannot be used in a forked process, as its threads are not there; call"
                " batches() in that process"
            )
        try:
            rows, self._epoch, self._row = next(self._generator)
        except CancelledError:  # by the end of the program
            if threading.current_thread().daemon:
                raise SystemExit from None  # ends the thread, and nothing is printed
            raise StoreError("the program ends; its streams give no more") from None
        except Exception:  # the end among them
            self.close()
            raise
        return self._source.present(rows)

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream, and its threads, which are waited for; its position stays."""
        self._generator.close()
        self._threads.end()
        self._threads.join()

    @property
    def position(self) -> dict[str, Any]:
        """Where the next batch begins, to be kept as JSON and given as `start`."""
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
        return ordering if self._part == (0, 1) else ordering | {"part": list(self._part)}

    def _restore(
        self, start: Mapping[str, Any], known: Mapping[int, StoredBatch]
    ) -> list[StoredBatch]:
        """Goes to a position, and gives the batches of its stream."""
        keys = ("version", "rows", "epoch", "row")
        found = [start.get(key) for key in keys] if isinstance(start, Mapping) else []
        numbers = [number for number in found if type(number) is int and number >= 0]
        if len(numbers) < len(keys) or numbers[0] != POSITION_VERSION:
            raise StoreError(f"this is no position of a stream: {str(start)[:200]}")
        expected = {"run_id": self._run_id, "part": None, **self._ordering()}
        refuse_other_position(start, expected, "another stream")
        self._epoch, self._row = numbers[2], numbers[3]
        return [known[batch_id] for batch_id in ids_of(start.get("batches"), known)]


def _cut(
    pools: Iterator[tuple[Pool, FilledPool]],
    source: RowSource,
    settings: StreamSettings,
    skip: int,
) -> Generator[tuple[Rows, int, int]]:
    """Yield batches, each with epoch and row of the position after it.

    No part of the stream itself, so that a stream that nobody holds any more ends at once; left to
    the garbage collector it would end in any thread, at any time.

    Args:
        pools: of all epochs from the position on.
        source: of their rows.
        settings: what is asked for.
        skip: rows of the first epoch before the position.
    """
    size = settings.batch_size
    batch: Rows = {}  # that is being put together
    count = given = 0
    for pool, filled in pools:
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
                raise StoreError("no batch can be made of the rows, in any epoch")
            batch, count, given, skip = {}, 0, 0, 0


def _pools(order: RowOrder, epoch: int, row: int, epochs: int | None) -> Iterator[Pool]:
    """The pools from a position on, over all epochs."""
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
        whose: position it is otherwise.

    Raises:
        StoreError: naming each field that differs.
    """
    differing = [
        f"{name} {start.get(name)!r} there, {value!r} here"
        for name, value in expected.items()
        if start.get(name) != value
    ]
    if differing:
        raise StoreError(f"the position is one of {whose}: {'; '.join(differing)}")
