"""SIGTERM, with which clusters announce that a machine goes away: finish what runs, then stop.

The handler only sets a flag. The loops look at it between batches, drain what is under way, commit
the units that are whole, and drop the rest, which `--resume` runs again. A second SIGTERM, and
ctrl-C, end the process at once; what is committed is whole then too.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(Exception):  # noqa: N818 - no error: the run can go on
    """The run was asked to stop and did, in order."""


@contextlib.contextmanager
def stop_flag() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, inside the block; outside of the main thread nothing sets it."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)
