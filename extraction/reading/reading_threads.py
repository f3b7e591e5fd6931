"""Threads that read for a stream, and that end with the stream or with the program.

`concurrent.futures.ThreadPoolExecutor` does not fit: at the end of a program it first does all that
is queued, then refuses work to threads that still run, and an executor that is ended later than
that fails, as the modules that it needs are gone.

Here the threads are daemons. When the program ends, what is queued is dropped and what is being
read is waited for, for `LAST_READ` seconds at most.
"""

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import ParamSpec, TypeVar

LAST_READ = 10.0
"""Seconds that the end of a program waits for what is being read; a bucket may not answer."""

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class ReadingThreads:
    """Calls functions in threads, in the order in which they are submitted.

    Args:
        count: threads, which are started with the first function.
        name: of the threads.
    """

    def __init__(self, count: int, name: str):
        # Reentrant, as the garbage collector may end one executor while another is in use.
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        self._started = self._ended = False

    def submit(
        self, function: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs
    ) -> Future[ResultT]:
        """Call a function in one of the threads.

        Raises:
            CancelledError: the threads have ended.
        """
        if self._ended:
            raise CancelledError
        if not self._started:
            self._started = True
            _running.add(self)
            for thread in self._threads:
                thread.start()
        future: Future[ResultT] = Future()

        def call() -> None:
            if self._ended:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # raised where the result is asked for
                future.set_exception(error)

        self._calls.put(call)
        return future

    def end(self) -> None:
        """Drop what is queued, and let the threads end after what they are reading."""
        self._ended = True
        for _ in self._threads:
            self._calls.put(None)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the threads after `end`, for so many seconds at most."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            # One that was never started, as the start of another was interrupted, is not alive.
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # and with it the result, while this waits for the next


_running: "weakref.WeakSet[ReadingThreads]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    deadline = time.monotonic() + LAST_READ
    threads = list(_running)
    for each in threads:
        each.end()
    for each in threads:
        each.join(max(0.0, deadline - time.monotonic()))
