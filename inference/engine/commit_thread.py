"""The thread that writes finished units while the devices go on computing."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

WAITING = 2
"""Units that may wait for the disk: a slow one then slows the devices instead of filling memory."""


class CommitThread(Generic[T]):
    """Calls a function with one item after the other, in a thread of its own.

    Leaving the `with` block waits until all are done.

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
        """Hand over an item; blocks while two are waiting.

        Raises:
            BaseException: what ended the thread, if something did.
        """
        self._raise_failure()
        self._queue.put(item)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._failure is None:  # after a failure only the queue is emptied
                try:
                    self._commit(item)
                except BaseException as error:
                    self._failure = error
