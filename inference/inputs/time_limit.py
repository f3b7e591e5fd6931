"""A time limit for code of others, such as a checkpoint's chat template."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class TimeIsUpError(Exception):
    """A `with` block took longer than its time limit."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End a `with` block of Python code that takes too long; in the main thread only.

    Args:
        seconds: most seconds that the block may take.

    Raises:
        TimeIsUpError: the block took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeIsUpError(f"it takes longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
