"""The thread that commits finished units while the devices compute."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

WAITING = 2
"""Most units that wait for the disk; a slow disk slows the devices, and memory stays bounded."""


class CommitThread(Generic[T]):
    """Calls a function with one item after the other, in its own thread.

    Leaving the `with` block waits until all items are done.

    Args:
        commit: called with each item.
    """

    def __init__(self, commit: Callable[[T], None]):
        self._commit = commit
        self._queue: queue.Queue[T | None] = queue.Queue(WAITING)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="commits", daemon=True)

    def __enter__(self) -> "CommitThread[T]":
        self._thread.start()
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        self._queue.put(None)
        self._thread.join()
        if exception_type is None:
            self._raise_failure()

    def put(self, item: T) -> None:
        """Queue an item; block while two are waiting.

        Raises:
            BaseException: an earlier call failed with it.
        """
        self._raise_failure()
        self._queue.put(item)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._failure is None:  # after a failure only empty the queue
                try:
                    self._commit(item)
                except BaseException as error:
                    self._failure = error
