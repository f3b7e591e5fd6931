"""How far a long command is, on standard error; nothing is said of a short one."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

FIRST_SECONDS, TERMINAL_SECONDS, LOG_SECONDS = 2.0, 0.2, 30.0


def silent(_what: str, _done: int, _total: int) -> None:
    """Tells nobody."""


class ProgressLine:
    """One line that is written over on a terminal, a line every half minute in a log.

    Use it in a `with` block, whose end leaves the terminal on an empty line.

    Args:
        stream: None: standard error.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._next = time.monotonic() + FIRST_SECONDS
        self._width = 0

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()

    def __call__(self, what: str, done: int, total: int) -> None:
        """See `Progress`."""
        if time.monotonic() < self._next:
            return
        line = f"{what}: {done:,} of {total:,}"
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
        self._next = time.monotonic() + (TERMINAL_SECONDS if self._terminal else LOG_SECONDS)
