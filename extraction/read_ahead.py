"""Work on many batches, some of them ahead of who asks for the results."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from extraction.run_identity import RUN_FILE
from extraction.storage import Storage

REMOTE_THREADS, LOCAL_THREADS = 8, 2

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def is_local(storage: Storage) -> bool:
    """Whether files are on this machine's disks."""
    return storage.local_path(RUN_FILE) is not None


def threads_for(*storages: Storage) -> int:
    """Threads that keep these busy: a bucket answers slowly, but many at a time."""
    if all(map(is_local, storages)):
        return min(LOCAL_THREADS, os.cpu_count() or 1)
    return REMOTE_THREADS


def in_order(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], threads: int
) -> Iterator[tuple[ItemT, ResultT]]:
    """Items with their results, in order; at most two for each thread are held.

    Args:
        function: may be called in several threads at a time; what it raises is raised here.
        items: that it is called with.
        threads: 1: it is called here, with no thread.
    """
    if threads == 1:
        for item in items:
            yield item, function(item)
        return
    with ThreadPoolExecutor(threads) as pool:
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
            for _, future in waiting:
                future.cancel()
