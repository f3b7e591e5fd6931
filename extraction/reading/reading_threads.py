"""Threads that read for a stream, and end with the stream or with the program.

`concurrent.futures.ThreadPoolExecutor` does not fit. At the end of a program it first finishes all
queued work, then refuses work from threads that still run, and shutting it down after that fails,
because modules that it needs are gone.

Here the threads are daemons. When the program ends, queued work is dropped, and the program waits
at most `LAST_READ` seconds for reads in progress.
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
"""Most seconds that the end of a program waits for reads; a bucket may not answer."""

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class ReadingThreads:
    """Calls functions in threads, in the order in which they are submitted.

    Args:
        count: number of threads; the first `submit` starts them.
        name: prefix of the threads' names.
    """

    def __init__(self, count: int, name: str):
        # Reentrant: the garbage collector may call `end` of one pool within `submit` of another.
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
        """Drop queued calls, and let the threads end after the calls in progress."""
        self._ended = True
        for _ in self._threads:
            self._calls.put(None)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the threads after `end`, for at most `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            # A thread is not alive if an interrupt came before it was started.
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # frees its result while this waits for the next call


_running: "weakref.WeakSet[ReadingThreads]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    deadline = time.monotonic() + LAST_READ
    threads = list(_running)
    for each in threads:
        each.end()
    for each in threads:
        each.join(max(0.0, deadline - time.monotonic()))
