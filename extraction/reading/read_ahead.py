"""Work on many items in threads, some of them ahead of the consumer."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from extraction.errors import StorageUnavailableError, StoreError
from extraction.reading.reading_threads import ReadingThreads
from extraction.storage import Storage
from extraction.storage.bounded import LARGEST_DOCUMENT, get_listed

MANY_THREADS = 8
"""Threads for a bucket, and for small uncached files on a disk: both answer many requests in the
time of one."""

LOCAL_THREADS = 2

SMALL_FILES = 32
"""Files that a thread reads at a time."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def threads_for(*storages: Storage) -> int:
    """Return how many threads keep these storages busy; a bucket serves many requests at once."""
    if all(storage.is_local for storage in storages):
        return min(LOCAL_THREADS, os.cpu_count() or 1)
    return MANY_THREADS


def read_files(
    storage: Storage, names: Sequence[str], largest: int = LARGEST_DOCUMENT
) -> Iterator[tuple[str, bytes | StoreError | OSError]]:
    """Yield many small files in order, each with its content, or why it could not be read.

    Args:
        storage: storage of the run.
        names: names of the files.
        largest: most bytes of a file.

    Raises:
        StorageUnavailableError: a file cannot be reached; the following ones are not tried.
    """
    size = max(1, min(SMALL_FILES, len(names) // (2 * MANY_THREADS)))
    parts = (names[start : start + size] for start in range(0, len(names), size))

    def read(part: Sequence[str]) -> list[bytes | StoreError | OSError]:
        found: list[bytes | StoreError | OSError] = []
        for name in part:
            try:
                found.append(get_listed(storage, name, largest))
            except StorageUnavailableError:  # after long retries; the next file would fail too
                raise
            except (StoreError, OSError) as error:
                found.append(error)
        return found

    for part, found in in_order(read, parts, max(1, min(MANY_THREADS, len(names)))):
        yield from zip(part, found, strict=True)


def in_order(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], threads: int
) -> Iterator[tuple[ItemT, ResultT]]:
    """Yield items with their results, in order; at most two for each thread are in memory.

    Args:
        function: called with each item, in several threads at a time; its errors are raised here.
        items: the items.
        threads: number of threads; with 1 the caller's own thread does the work.
    """
    if threads == 1:
        for item in items:
            yield item, function(item)
        return
    pool = ReadingThreads(threads, "read-ahead")
    waiting = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.end()
        pool.join()
