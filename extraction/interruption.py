"""ctrl-C and SIGTERM: end in one line, with exit status 130 or 143; finished work is kept.

A command calls `end_on_signals()` before slow imports. From then on the effect of a signal depends
on the block that the main thread is in:

    none                ends the process at once: importing, reading, tokenising and compiling
                        leave nothing to clean up
    stop_flag()         sets a flag, which the block checks between two steps
    raised_in_main()    raises `Interrupted` in the main thread, so that `with` blocks clean up

A second signal ends the process at once; committed units are whole at any moment.

Python's own KeyboardInterrupt is not enough. Raised inside a callback (JAX has one in the garbage
collector) it is printed and dropped, and the program goes on; raised inside JAX it comes with 200
lines of traceback; and while the main thread compiles, it is not raised at all. So a thread listens
for signals, and only `raised_in_main` raises, outside of such callbacks.

In a process that did not call `end_on_signals`, such as a notebook, signals are handled only within
these blocks: a second ctrl-C acts as usual in Python, and nothing ends the process.
"""

import atexit
import contextlib
import enum
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE = 5.0
"""Seconds after which a message says that the work is still stopping."""

PAUSE = 0.05
"""Seconds between attempts to raise an exception in the main thread."""


class Interrupted(KeyboardInterrupt):
    """The work was stopped by a signal.

    Args:
        number: number of the signal.
        message: what is finished and how to continue.
    """

    def __init__(self, number: int = signal.SIGINT, message: str = "stopped"):
        super().__init__(message)
        self.number = number


def exit_status(error: KeyboardInterrupt) -> int:
    """Return the exit status of an interrupted command: 130 after ctrl-C, 143 after SIGTERM."""
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)


class StopFlag(threading.Event):
    """An event that is set when the work should stop; `number` is then the signal's."""

    number: int = signal.SIGINT

    def check(self, message: str = "stopped") -> None:
        """Raise Interrupted if the flag is set.

        Args:
            message: what is finished and how to continue.
        """
        if self.is_set():
            raise Interrupted(self.number, message)


class _Mode(enum.Enum):
    AT_ONCE = enum.auto()
    FLAG = enum.auto()
    RAISE = enum.auto()


class _Listener:
    """Handles the signals of this process; there is at most one listener."""

    def __init__(self, advice: str) -> None:
        self._advice = advice
        self.status: int | None = None
        self._lock = threading.RLock()
        self._mode, self._flag = _Mode.AT_ONCE, StopFlag()
        self._at_second: Callable[[], None] | None = None
        self._first: int | None = None
        self._raised, self._own = False, 0
        self._main = threading.get_ident()
        self._reading, writing = os.pipe()
        os.set_blocking(writing, False)
        self._unraisable = sys.unraisablehook
        sys.unraisablehook = self._take_dropped
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self.install()
        _in_a_thread(self._listen)

    def leave(self) -> None:
        """End the process with the command's exit status, if it has one."""
        if self.status is not None:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):  # a pipe that is closed
                    stream.flush()
            os._exit(self.status)

    def line(self) -> str:
        """Return the line that is printed at the end."""
        return f"stopped; {self._advice}" if self._advice else "stopped"

    def install(self) -> None:
        """Install the handlers, also over a library's; an ignored signal stays ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def block(self, mode: _Mode, at_second: Callable[[], None] | None = None) -> Iterator[StopFlag]:
        """Set what signals do while the main thread is in a `with` block."""
        self.install()
        with self._lock:
            before = self._mode, self._at_second
            self._flag.check()
            self._mode, self._at_second = mode, at_second
        try:
            yield self._flag
        finally:
            with self._lock:
                self._mode, self._at_second = before

    def _listen(self) -> NoReturn:
        """Receive signals in a thread, even while the main thread computes or compiles."""
        while True:
            for number in os.read(self._reading, 64):
                if number in SIGNALS:
                    self._take(number)

    def _take(self, number: int) -> None:
        with self._lock:
            if self._own:  # sent by `_insist`
                self._own -= 1
                return
            is_second, self._first = self._first is not None, self._first or number
            if self._raised and not is_second:  # the main thread's own handler has raised already
                return
            if is_second and self._at_second is not None:
                self._at_second()
            if is_second or self._mode is _Mode.AT_ONCE:
                over = "\r\x1b[K" if os.isatty(2) else ""  # erases a progress line
                with contextlib.suppress(OSError):
                    os.write(2, f"{over}{self.line()}\n".encode())
                os._exit(128 + self._first)
            self._flag.number = number
            self._flag.set()
        if self._mode is _Mode.RAISE:
            _in_a_thread(lambda: self._insist(number))
        elif self._mode is _Mode.FLAG:
            timer = threading.Timer(PATIENCE, _still_stopping)
            timer.daemon = True
            timer.start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread, as Python's signal handler."""
        if self._mode is _Mode.RAISE and not self._raised and not _in_collector(frame):
            self._raised = True
            raise Interrupted(number)

    def _insist(self, number: int) -> None:
        """Signal the main thread until it has raised.

        It may not raise at once: it does not raise in a callback, and it notices a signal that
        comes just before a system call only after the call.
        """
        while True:
            time.sleep(PAUSE)
            with self._lock:
                if self._raised or self._mode is not _Mode.RAISE:
                    return
                self._own += 1
                signal.pthread_kill(self._main, number)

    def _take_dropped(self, dropped: Any) -> None:
        """Handle exceptions of callbacks and destructors, as Python's `sys.unraisablehook`."""
        if isinstance(dropped.exc_value, Interrupted):
            self._raised, number = False, dropped.exc_value.number
            _in_a_thread(lambda: self._insist(number))
        else:
            self._unraisable(dropped)


_listener: _Listener | None = None


def end_on_signals(advice: str = "") -> None:
    """Make ctrl-C and SIGTERM end this process in one line; call it as early as possible.

    The process must end with `leave`.

    Args:
        advice: how to continue, for that line.
    """
    global _listener
    if _listener is None:
        _listener = _Listener(advice)
        atexit.register(_listener.leave)  # runs last, because it is registered first


def leave(status: int) -> NoReturn:
    """End a command: functions registered with `atexit` run, and then the process ends.

    Python would then unload its modules, which takes long with JAX, and a signal during that would
    kill the process without a message.

    Args:
        status: exit status of the command.
    """
    if _listener is not None:
        _listener.status = status
    raise SystemExit(status)


@contextlib.contextmanager
def stop_flag(at_second: Callable[[], None] | None = None) -> Iterator[StopFlag]:
    """Yield a flag that ctrl-C and SIGTERM set, for loops that check it between steps.

    If the flag is set at the end of the block, Interrupted is raised, unless another exception is.
    In other threads than the main thread nothing sets the flag.

    Args:
        at_second: called before a second signal ends the process of a command.

    Raises:
        Interrupted: the flag is set.
    """
    if threading.current_thread() is not threading.main_thread():
        yield StopFlag()
        return
    if _listener is not None:
        with _listener.block(_Mode.FLAG, at_second) as flag:
            yield flag
            flag.check()
        return
    flag, before = StopFlag(), _handlers()

    def handle(number: int, frame: FrameType | None) -> None:
        flag.number = number
        flag.set()
        _restore(before)

    try:
        for number in before:
            signal.signal(number, handle)
        yield flag
    finally:
        _restore(before)
    flag.check()


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Mark a long step inside `stop_flag` that loses nothing if it is ended: loading, compiling.

    Within it a signal ends a command at once; in other programs it only sets the flag.

    Raises:
        Interrupted: the flag is set already.
    """
    if _listener is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with _listener.block(_Mode.AT_ONCE):
        yield


@contextlib.contextmanager
def raised_in_main() -> Iterator[None]:
    """Raise Interrupted in a `with` block of the main thread when ctrl-C or SIGTERM comes.

    Raises:
        Interrupted: a signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _listener is not None:
        with _listener.block(_Mode.RAISE) as flag:
            yield
            flag.check()
        return
    before = _handlers()

    def handle(number: int, frame: FrameType | None) -> None:
        _restore(before)
        raise Interrupted(number)

    try:
        for number in before:
            signal.signal(number, handle)
        yield
    finally:
        _restore(before)


def _handlers() -> dict[int, Any]:
    """Return Python's present signal handlers, without ignored signals."""
    found = {number: signal.getsignal(number) for number in SIGNALS}
    return {n: handler for n, handler in found.items() if handler not in (None, signal.SIG_IGN)}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _in_collector(frame: FrameType | None) -> bool:
    """Return whether a frame is within a callback of the garbage collector."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in callbacks:
            return True
        frame = frame.f_back
    return False


def _in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="signals", daemon=True).start()


def _still_stopping() -> None:
    log.info("stopping: finishing the work in progress; a second ctrl-C ends it at once")
