"""The fake bucket server in a process of its own, which can end or stop a client at a request."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.fake_gcs.exchange import ApiError, Request, Response
from tests.fake_gcs.server import FakeGcs


class Trap(NamedTuple):
    """What happens to a client.

    Attributes:
        pid: of the client.
        number: of the request, from 1.
        when: "before" or "after" the request is carried out.
        signal: SIGKILL or SIGSTOP. A request before which its client is killed is dropped; one
            before which it is stopped is carried out when `CloudProcess.release` is called.
    """

    pid: int
    number: int
    when: str
    signal: int


class CloudProcess:
    """A running server, forked off; a context manager.

    Its methods may be called by this process and by its children, one at a time.
    """

    def __enter__(self) -> "CloudProcess":
        self._connection, theirs = multiprocessing.Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                self._connection.close()
                _Server().serve(theirs)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()
        _, status = os.waitpid(self._pid, 0)
        if exception[0] is None:
            assert status == 0

    def environment(self) -> Mapping[str, str]:
        """Variables that point clients to it."""
        return self._ask("environment")

    def create_bucket(self, name: str) -> None:
        """Makes an empty bucket."""
        self._ask("create_bucket", name)

    def drop_bucket(self, name: str) -> None:
        """Forgets a bucket and all in it."""
        self._ask("drop_bucket", name)

    def objects(self, bucket: str) -> dict[str, bytes]:
        """The live objects."""
        return self._ask("objects", bucket)

    def writes(self, bucket: str) -> dict[str, int]:
        """How many generations of each name were ever written."""
        return self._ask("writes", bucket)

    def set_trap(self, trap: Trap | None) -> None:
        """For the requests from now on, which are counted anew."""
        self._ask("set_trap", trap)

    def count(self) -> int:
        """Requests since the last trap was set."""
        return self._ask("count")

    def release(self) -> None:
        """Carries out the request whose client was stopped before it."""
        self._ask("release")

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._connection.send((name, arguments))
        return self._connection.recv()


class _Server:
    """The side of the server's process."""

    def __init__(self) -> None:
        self._fake = FakeGcs()
        self._carry_out = self._fake.api.handle
        self._fake.api.handle = self._handle
        self._lock = threading.Lock()
        self._count, self._trap = 0, None
        self._released = threading.Event()

    def serve(self, connection: Any) -> None:
        with self._fake:
            while True:
                try:
                    name, arguments = connection.recv()
                except EOFError:
                    return
                connection.send(getattr(self, name)(*arguments))

    def environment(self) -> Mapping[str, str]:
        return self._fake.environment

    def create_bucket(self, name: str) -> None:
        self._fake.create_bucket(name)

    def drop_bucket(self, name: str) -> None:
        with self._fake.store.lock:
            del self._fake.store.buckets[name]

    def objects(self, bucket: str) -> dict[str, bytes]:
        return {name: found.data for name, found in self._fake.objects(bucket).items()}

    def writes(self, bucket: str) -> dict[str, int]:
        return self._fake.writes(bucket)

    def set_trap(self, trap: Trap | None) -> None:
        with self._lock:
            self._count, self._trap = 0, trap
        self._released.clear()

    def count(self) -> int:
        return self._count

    def release(self) -> None:
        self._released.set()

    def _handle(self, request: Request) -> Response:
        with self._lock:
            self._count += 1
            trap = self._trap
            if trap is None or trap.number != self._count:
                trap = None
        if trap is None:
            return self._carry_out(request)
        if trap.when == "after":
            response = self._carry_out(request)
            _signal(trap)
            return response
        _signal(trap)
        if trap.signal == signal.SIGKILL:
            return ApiError(503, "Its client is dead").response()
        self._released.wait()
        return self._carry_out(request)


def _signal(trap: Trap) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended without waiting for the answer
        os.kill(trap.pid, trap.signal)
