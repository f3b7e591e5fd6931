"""Progress of long work, on standard error; short work prints nothing.

On a terminal it is one line that is overwritten; in a notebook a bar of tqdm, if that is installed,
else such a line; elsewhere, as in the log of a cluster, it is a new line every half minute.
"""

import importlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, the number done, and the total (0 if it is not known)."""

FIRST_SECONDS, TERMINAL_SECONDS, LOG_SECONDS = 2.0, 0.2, 30.0


def silent(_what: str, _done: int, _total: int) -> None:
    """Do nothing; a `Progress`."""


def counted(items: Iterable[T], what: str, progress: Progress, total: int = 0) -> Iterator[T]:
    """Yield the items, and report progress after each.

    Args:
        items: the items.
        what: name of the work, for people.
        progress: called after each item.
        total: number of items; 0 if it is not known.
    """
    for done, item in enumerate(items, 1):
        yield item
        progress(what, done, total)


class ProgressLine:
    """A `Progress` that prints a line.

    Use it in a `with` block, whose end erases the line on a terminal.

    Args:
        stream: where to print; None: standard error.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._overwrites = self._stream.isatty() or in_notebook()
        self._next = time.monotonic() + FIRST_SECONDS
        self._width = 0
        self._what, self._done_then = "", 0
        self._began: float | None = None
        self._make_bar = _tqdm() if stream is None and in_notebook() else None
        self._bar: Any = None

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()

    def __call__(self, what: str, done: int, total: int) -> None:
        """See `Progress`."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._done_then = what, None, done
            if self._bar is not None:
                self._bar.close()
                self._bar = None
        elif self._began is None and done > self._done_then:  # the first may be slow
            self._began, self._done_then = now, done
        full = (
            self._bar is not None and done == total
        )  # tqdm marks a bar that ends before as failed
        if now < self._next and not full:
            return
        if self._make_bar is not None:
            if self._bar is None:
                self._bar = self._make_bar(desc=what, total=total or None)
            self._bar.update(done - self._bar.n)
            self._next = now + TERMINAL_SECONDS
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
        """Return the time left at the pace so far, as text."""
        if self._began is None or done >= total:
            return ""
        spent, came = now - self._began, done - self._done_then
        if came <= 0 or spent < FIRST_SECONDS:
            return ""
        seconds = round((total - done) * spent / came)
        hours, minutes = divmod(seconds // 60, 60)
        return f", {hours}:{minutes:02}:{seconds % 60:02} left"


def _tqdm() -> Any:
    """Return `tqdm.auto.tqdm`, or None if it is not installed."""
    try:
        return importlib.import_module("tqdm.auto").tqdm
    except ImportError:
        return None


def in_notebook() -> bool:
    """Return whether this is a Jupyter kernel, whose front ends can overwrite a line."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")
