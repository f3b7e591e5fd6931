"""How far long work is, on standard error; nothing is said of short work.

On a terminal and in a notebook it is one line that is written over; elsewhere, as in the log of a
cluster, a line every half minute.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is; 0: that is not known."""

FIRST_SECONDS, TERMINAL_SECONDS, LOG_SECONDS = 2.0, 0.2, 30.0


def silent(_what: str, _done: int, _total: int) -> None:
    """Tells nobody."""


def counted(items: Iterable[T], what: str, progress: Progress, total: int = 0) -> Iterator[T]:
    """The items, each told of when it has been dealt with.

    Args:
        items: to go through.
        what: they are, for people.
        progress: told how far it is.
        total: how many there are; 0: that is not known.
    """
    for done, item in enumerate(items, 1):
        yield item
        progress(what, done, total)


class ProgressLine:
    """A `Progress` that prints.

    Use it in a `with` block, whose end leaves a terminal on an empty line.

    Args:
        stream: None: standard error.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._overwrites = self._stream.isatty() or in_notebook()
        self._next = time.monotonic() + FIRST_SECONDS
        self._width = 0
        self._what, self._done_then = "", 0
        self._began: float | None = None

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()

    def __call__(self, what: str, done: int, total: int) -> None:
        """See `Progress`."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._done_then = what, None, done
        elif self._began is None and done > self._done_then:  # the first may take much longer
            self._began, self._done_then = now, done
        if now < self._next:
            return
        of_all = f" of {total:,}" if total else ""
        line = f"{what}: {done:,}{of_all}{self._left(now, done, total)}"
        if self._overwrites:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
        self._next = now + (TERMINAL_SECONDS if self._overwrites else LOG_SECONDS)

    def _left(self, now: float, done: int, total: int) -> str:
        """The time that the rest will take, at the pace so far."""
        if self._began is None or done >= total:
            return ""
        spent, came = now - self._began, done - self._done_then
        if came <= 0 or spent < FIRST_SECONDS:
            return ""
        seconds = round((total - done) * spent / came)
        hours, minutes = divmod(seconds // 60, 60)
        return f", {hours}:{minutes:02}:{seconds % 60:02} left"


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, whose front ends write a line over as a terminal does."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")
