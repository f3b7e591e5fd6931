"""Forked processes that can be killed, stopped and listened to.

What a child says goes through a pipe at once, so a parent knows what had happened when it died.
Fork only from a process without threads.
"""

import contextlib
import dataclasses
import logging
import os
import pickle
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 120.0
"""Seconds after which a child counts as hanging."""

Work = Callable[[Callable[..., None]], Any]
"""What a child does; it is given a function that tells the parent something."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended.

    Attributes:
        signal: that killed it, or None.
        value: what its work returned.
        error: class of the exception that ended its work, or None.
        message: of that exception.
        where: it was raised, innermost last.
        said: what it told, in order.
    """

    signal: int | None
    value: Any
    error: type[BaseException] | None
    message: str
    where: str
    said: list[tuple]

    def committed(self) -> set[int]:
        """Batches whose commit had returned."""
        return {event[1] for event in self.said if event[0] == "committed"}


class Child:
    """A forked process that does some work.

    Args:
        work: what it does.
    """

    def __init__(self, work: Work):
        sys.stdout.flush()
        self._pipe, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _be_child(work, writing)
        os.close(writing)
        self._received = b""
        self._messages: list[tuple[str, Any]] = []
        self._status: int | None = None

    def wait(self, kill_after: float | None = None) -> Ended:
        """Waits for its end.

        Args:
            kill_after: seconds after which it is killed; None: never.

        Raises:
            TimeoutError: it hangs; it is killed then.
        """
        started = time.monotonic()
        while self._listen(0.001 if kill_after is not None else 1.0):
            lasted = time.monotonic() - started
            if kill_after is not None and lasted >= kill_after:
                self.signal(signal.SIGKILL)
                kill_after = None
            if lasted > PATIENCE:
                self.signal(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"child {self.pid} hangs; it said {self._messages[-3:]}")
        if self._status is None:
            _, self._status = os.waitpid(self.pid, 0)
        os.close(self._pipe)
        ends = dict(message for message in self._messages if message[0] != "said")
        error, text, where = ends.get("error", (None, "", ""))
        return Ended(
            signal=os.WTERMSIG(self._status) if os.WIFSIGNALED(self._status) else None,
            value=ends.get("value"),
            error=error,
            message=text,
            where=where,
            said=[event for kind, event in self._messages if kind == "said"],
        )

    def wait_until_stopped(self) -> bool:
        """Waits until SIGSTOP has stopped it; False if it ended before."""
        started = time.monotonic()
        while True:
            self._listen(0.0)
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                return True
            if pid:
                self._status = status
                return False
            if time.monotonic() - started > PATIENCE:
                raise TimeoutError(f"child {self.pid} neither stops nor ends")
            time.sleep(0.001)

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _listen(self, seconds: float) -> bool:
        """Takes in what it says; False when it can say no more."""
        while select.select([self._pipe], [], [], seconds)[0]:
            seconds = 0.0
            data = os.read(self._pipe, 1 << 20)
            if not data:
                return False
            self._received += data
            while len(self._received) >= 4:
                end = 4 + int.from_bytes(self._received[:4], "little")
                if len(self._received) < end:
                    break
                self._messages.append(pickle.loads(self._received[4:end]))
                self._received = self._received[end:]
        return True


def run_child(work: Work, kill_after: float | None = None) -> Ended:
    """Does some work in a child and waits for its end."""
    return Child(work).wait(kill_after)


def _be_child(work: Work, pipe: int) -> None:
    """Never returns."""

    def send(kind: str, content: Any) -> None:
        data = pickle.dumps((kind, content))
        data = len(data).to_bytes(4, "little") + data
        while data:
            data = data[os.write(pipe, data) :]

    try:
        logging.disable(logging.CRITICAL)
        try:
            send("value", work(lambda *event: send("said", event)))
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = " > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames)
            send("error", (type(error), str(error), where))
    finally:
        os._exit(0)
