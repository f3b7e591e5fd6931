"""What goes wrong on purpose: scripted and random faults.

Kinds:

    "503" (any status from 400)   refused with that status; nothing is done
    "reset_before_body"           connection reset before the body is read; nothing is done
    "reset_in_body"               reset when the object's byte `after_bytes` comes; an upload
                                  session keeps the bytes before it
    "503_in_body"                 the same with a 503 for an answer instead of the reset
    "reset_before_commit"         the body is read, nothing is done, connection reset
    "reset_after_commit"          the request is carried out, its answer is lost
    "stall"                       nothing happens for `seconds`, then the request is carried out
    "stall_response"              carried out at once; the answer pauses for `seconds`, before its
                                  first byte or, with `after_bytes`, after so many of its body
    "truncate"                    the answer ends after `after_bytes` of its body
    "cut"                         the same, and its Content-Length says so: it looks complete
    "corrupt_upload"              one bit of the object flips before checksums are compared
    "corrupt_download"            one bit of the object flips after X-Goog-Hash was computed

Kinds that touch an object's bytes leave requests that carry none alone. `reset_before_body` and
`reset_in_body` are chosen when only a request's head has been read, the others when all of it has.
"""

import random
import threading
from collections import Counter
from dataclasses import dataclass, field

from tests.fake_gcs.exchange import Request

_KINDS = frozenset(
    {
        "reset_before_body",
        "reset_in_body",
        "503_in_body",
        "reset_before_commit",
        "reset_after_commit",
        "stall",
        "stall_response",
        "truncate",
        "cut",
        "corrupt_upload",
        "corrupt_download",
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: see the module's docstring.
        method: of HTTP, or None for all.
        path_contains: text that path and query, percent-encoded as sent, must contain. (An upload's
            first request has the object's name in its body.)
        name_contains: text that the object's name must contain, wherever it was sent.
        final_chunk: only for the request that completes a resumable upload.
        skip: how many matching requests pass unharmed first.
        times: how many are hit after that; None for as long as the fault is there.
        probability: that a matching request is hit, by a generator of its own.
        seed: of that generator.
        after_bytes: see `kind`; counted in the body of an answer, in the object for an upload
            session, in the body of any other upload.
        seconds: see `kind`.
    """

    kind: str
    method: str | None = None
    path_contains: str = ""
    name_contains: str = ""
    final_chunk: bool = False
    skip: int = 0
    times: int | None = None
    probability: float = 1.0
    seed: int = 0
    after_bytes: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS and not (self.kind.isdecimal() and 400 <= int(self.kind) < 600):
            raise ValueError(f"no such kind of fault: {self.kind}")
        if self.early and self.name_contains:
            raise ValueError(f"{self.kind} comes before names are known")
        if (
            self.kind in ("truncate", "cut", "reset_in_body", "503_in_body")
            and self.after_bytes is None
        ):
            raise ValueError(f"{self.kind} needs after_bytes")
        if self.kind in ("stall", "stall_response") and not self.seconds:
            raise ValueError(f"{self.kind} needs seconds")

    @property
    def early(self) -> bool:
        """Whether the fault is chosen before a request's body is read."""
        return self.kind in ("reset_before_body", "reset_in_body")

    @property
    def status(self) -> int | None:
        """The status to refuse requests with, if that is what the fault does."""
        return int(self.kind) if self.kind.isdecimal() else None

    def fits(self, request: Request) -> bool:
        """Whether the fault can hit a request."""
        if self.method not in (None, request.method) or self.path_contains not in request.target:
            return False
        if self.name_contains and self.name_contains not in (request.object_name or ""):
            return False
        span = request.upload_range
        if self.final_chunk:
            of_session = span is not None and "upload_id" in request.query
            if not (span and of_session and span.stop == span.total):
                return False
        if self.kind.endswith("in_body"):
            at = self.after_bytes or 0
            return span is not None and span.first is not None and span.first <= at < span.stop
        if self.kind == "corrupt_upload":
            return span is not None
        return self.kind != "corrupt_download" or request.wants_media


@dataclass(kw_only=True)
class _Armed:
    fault: Fault
    skip: int
    times: int | None
    generator: random.Random = field(repr=False)


class Faults:
    """The faults in force. Each request is hit by at most one: the first that fits it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._hits: Counter[Fault] = Counter()

    def add(self, fault: Fault, *, first: bool = False) -> Fault:
        """Put a fault in force, after those that are, or before them; returns it."""
        armed = _Armed(
            fault=fault, skip=fault.skip, times=fault.times, generator=random.Random(fault.seed)
        )
        with self._lock:
            self._armed.insert(0 if first else len(self._armed), armed)
        return fault

    def remove(self, fault: Fault) -> None:
        """Take a fault out of force, used up or not."""
        with self._lock:
            self._armed = [armed for armed in self._armed if armed.fault is not fault]

    def clear(self) -> None:
        """Take all faults out of force."""
        with self._lock:
            self._armed.clear()

    def hits(self, fault: Fault) -> int:
        """How many requests a fault has hit so far."""
        with self._lock:
            return self._hits[fault]

    def take(self, request: Request, *, early: bool = False) -> Fault | None:
        """The fault that hits a request, or None.

        Args:
            request: to be hit.
            early: whether only its head has been read; asked again when the body has.
        """
        with self._lock:
            for armed in self._armed:
                if armed.times == 0 or armed.fault.early is not early:
                    continue
                if not armed.fault.fits(request):
                    continue
                if armed.skip:
                    armed.skip -= 1
                    continue
                if armed.generator.random() >= armed.fault.probability:
                    continue
                if armed.times is not None:
                    armed.times -= 1
                self._hits[armed.fault] += 1
                return armed.fault
        return None
