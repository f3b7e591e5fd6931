"""ctrl-C and SIGTERM: one line, exit status 130 or 143, and what is finished is kept.

A command calls `end_on_signals()` before it imports anything that takes time. From then on a signal
acts by the block that the main thread is in:

    none                ends the process at once: importing, reading, tokenising, compiling leave
                        nothing behind that matters
    stop_flag()         sets a flag, which the block looks at between two steps
    raised_in_main()    raises `Interrupted` in the main thread, so that `with` blocks clean up

A second signal ends the process at once, whatever the first one did: what is committed is whole at
any moment.

An exception wherever the main thread happens to be is not enough. Raised inside a callback (JAX has
one in the garbage collector) it is printed and dropped, and the program goes on; raised inside JAX
it comes with 200 lines of traceback; and while the main thread compiles, none is raised at all. So
a thread listens for signals, and only `raised_in_main` raises, outside of such callbacks.

In a process that did not call `end_on_signals`, such as a notebook, the blocks act for their own
duration only: a second ctrl-C is Python's own again, and nothing ends the process.
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
"""Seconds after which a stop that is still under way says so."""

PAUSE = 0.05
"""Seconds after which an exception that was not raised, or was dropped, is raised again."""


class Interrupted(KeyboardInterrupt):
    """The work was asked to stop, and did.

    Args:
        number: of the signal.
        message: what is done and how to go on.
    """

    def __init__(self, number: int = signal.SIGINT, message: str = "stopped"):
        super().__init__(message)
        self.number = number


def exit_status(error: KeyboardInterrupt) -> int:
    """The status of a command that ended so: 130 after ctrl-C, 143 after SIGTERM."""
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)


class StopFlag(threading.Event):
    """Set when the work is to stop; `number` is then that of the signal."""

    number: int = signal.SIGINT

    def check(self, message: str = "stopped") -> None:
        """Raises Interrupted if the flag is set.

        Args:
            message: what is done and how to go on.
        """
        if self.is_set():
            raise Interrupted(self.number, message)


class _Mode(enum.Enum):
    AT_ONCE = enum.auto()
    FLAG = enum.auto()
    RAISE = enum.auto()


class _Listener:
    """Acts on the signals of this process, of which it has one listener at most."""

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
        """The very end, if the command came to it."""
        if self.status is not None:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):  # a pipe that is closed
                    stream.flush()
            os._exit(self.status)

    def line(self) -> str:
        """What is said at the end."""
        return f"stopped; {self._advice}" if self._advice else "stopped"

    def install(self) -> None:
        """Takes the signals, also back from a library; one that is ignored stays so."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def block(self, mode: _Mode, at_second: Callable[[], None] | None = None) -> Iterator[StopFlag]:
        """A block of the main thread in which signals act so."""
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
        """The thread: it is told of signals even while the main thread computes or compiles."""
        while True:
            for number in os.read(self._reading, 64):
                if number in SIGNALS:
                    self._take(number)

    def _take(self, number: int) -> None:
        with self._lock:
            if self._own:  # of `_insist`
                self._own -= 1
                return
            is_second, self._first = self._first is not None, self._first or number
            if self._raised and not is_second:  # the main thread was quicker, and is ending
                return
            if is_second and self._at_second is not None:
                self._at_second()
            if is_second or self._mode is _Mode.AT_ONCE:
                over = "\r\x1b[K" if os.isatty(2) else ""  # a progress line
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
        """Python's own handler, in the main thread."""
        if self._mode is _Mode.RAISE and not self._raised and not _in_collector(frame):
            self._raised = True
            raise Interrupted(number)

    def _insist(self, number: int) -> None:
        """Signals the main thread until it has raised.

        It may not do so at once: in a callback it is not to, and a signal that comes just before a
        system call is noticed when the call is over.
        """
        while True:
            time.sleep(PAUSE)
            with self._lock:
                if self._raised or self._mode is not _Mode.RAISE:
                    return
                self._own += 1
                signal.pthread_kill(self._main, number)

    def _take_dropped(self, dropped: Any) -> None:
        """Python's hook for exceptions that a callback or a destructor raised."""
        if isinstance(dropped.exc_value, Interrupted):
            self._raised, number = False, dropped.exc_value.number
            _in_a_thread(lambda: self._insist(number))
        else:
            self._unraisable(dropped)


_listener: _Listener | None = None


def end_on_signals(advice: str = "") -> None:
    """Makes ctrl-C and SIGTERM end this process in one line; for commands, as early as possible.

    Such a process is to end with `leave`.

    Args:
        advice: how to go on, for that line.
    """
    global _listener
    if _listener is None:
        _listener = _Listener(advice)
        atexit.register(_listener.leave)  # the first to be registered is the last to run


def leave(status: int) -> NoReturn:
    """Ends a command. What is registered with `atexit` runs, and then the process is over.

    Python would go on to take its modules apart, which takes long with JAX, and in which a signal
    kills without a word.

    Args:
        status: of the command.
    """
    if _listener is not None:
        _listener.status = status
    raise SystemExit(status)


@contextlib.contextmanager
def stop_flag(at_second: Callable[[], None] | None = None) -> Iterator[StopFlag]:
    """A flag that ctrl-C and SIGTERM set, for loops that look at it between their steps.

    The end of a block whose flag is set raises Interrupted, unless another exception is under way.
    Outside of the main thread nothing sets the flag.

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
    """A step inside `stop_flag` that takes long and loses nothing: loading, compiling.

    Of a command only; elsewhere the flag is set as ever.

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
    """A block that ctrl-C and SIGTERM leave with an exception, once, in the main thread.

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
    """What handles the signals now; those that are ignored, or not Python's, are left alone."""
    found = {number: signal.getsignal(number) for number in SIGNALS}
    return {n: handler for n, handler in found.items() if handler not in (None, signal.SIG_IGN)}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _in_collector(frame: FrameType | None) -> bool:
    """Whether an exception raised there would end in a callback of the garbage collector."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in callbacks:
            return True
        frame = frame.f_back
    return False


def _in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="signals", daemon=True).start()


def _still_stopping() -> None:
    log.info("stopping: what is under way is being finished; a second ctrl-C ends it at once")
