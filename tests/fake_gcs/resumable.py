"""Resumable upload sessions: chunks in, 308 until the last, one object out.

After https://cloud.google.com/storage/docs/performing-resumable-uploads, stricter than Google's
test bench where that is known to accept what the service refuses: a chunk that leaves a gap, a body
shorter than its Content-Range, a chunk that is neither last nor a multiple of 256 KiB.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.fake_gcs.exchange import ApiError, ContentRange, Request
from tests.fake_gcs.objects import Preconditions, Store, Version

CHUNK_MULTIPLE = 256 * 1024


@dataclass(kw_only=True)
class Session:
    """An upload that has been started.

    Attributes:
        bucket: of the object to be.
        name: of the object to be.
        fields: settable fields of its resource.
        preconditions: checked when the last byte is in, not before, as the service does.
        expected: checksums claimed at the start.
        total: size of the object, once the client has named it.
        received: bytes held so far, without gaps.
        outcome: the object, or why there will never be one; None while bytes are missing.
    """

    bucket: str
    name: str
    fields: Mapping[str, Any]
    preconditions: Preconditions
    expected: Mapping[str, str]
    total: int | None = None
    received: bytearray = field(default_factory=bytearray)
    outcome: Version | ApiError | None = None

    def receive(self, store: Store, request: Request) -> Version | None:
        """Take a chunk or a status query.

        Returns:
            The object once it is complete, else None: answer 308.

        Raises:
            ApiError: 400 for a chunk that does not fit; 503 where the request is to be cut; and,
                with the last byte, whatever refuses the object. The latter ends the session: every
                later request gets the same answer.
        """
        if isinstance(self.outcome, ApiError):
            raise self.outcome
        if self.outcome is not None:
            return self.outcome
        span = ContentRange.parse(request.headers.get("Content-Range"), len(request.body))
        if span is None:
            raise ApiError(400, "Failed to parse Content-Range header.")
        if span.total is not None:
            if self.total not in (None, span.total):
                raise ApiError(400, f"The size was {self.total} and is now {span.total}.")
            if span.total < len(self.received):
                raise ApiError(400, f"The size is {span.total}, but more bytes are held.")
        if span.first is None:
            complete = span.total == len(self.received)
        else:
            self._append(span, span.first, request)
            complete = span.stop == span.total
        return self._finish(store, request) if complete else None

    def _append(self, span: ContentRange, first: int, request: Request) -> None:
        body = corrupted(request.body) if request.corrupt else request.body
        held = len(self.received)
        if first > held:
            raise ApiError(400, f"The chunk starts at {first}, but only {held} bytes are held.")
        if request.cut_at is not None:
            self.received += body[: request.cut_at - first][held - first :]
            raise ApiError(503, "The connection broke while the body was sent.")
        if len(body) != span.stop - first:
            raise ApiError(400, f"Content-Range and a body of {len(body)} bytes disagree.")
        if span.total is not None and span.stop > span.total:
            raise ApiError(400, f"The chunk ends beyond the size {span.total}.")
        if span.stop != span.total and len(body) % CHUNK_MULTIPLE:
            raise ApiError(400, f"A chunk of {len(body)} bytes is no multiple of 256 KiB.")
        if span.total is not None:
            self.total = span.total
        self.received += body[held - first :]  # what was sent before is not taken again

    def _finish(self, store: Store, request: Request) -> Version:
        try:
            self.outcome = store.insert(
                self.bucket,
                self.name,
                bytes(self.received),
                fields=self.fields,
                preconditions=self.preconditions,
                expected={**self.expected, **header_checksums(request)},
            )
        except ApiError as error:
            self.outcome = error
            raise
        finally:
            self.received.clear()
        return self.outcome


def header_checksums(request: Request) -> dict[str, str]:
    """The checksums of `X-Goog-Hash: crc32c=...,md5=...`, under the names of a resource."""
    names = {"crc32c": "crc32c", "md5": "md5Hash"}
    checksums = {}
    for item in (request.headers.get("X-Goog-Hash") or "").split(","):
        kind, _, value = item.strip().partition("=")
        if kind in names:
            checksums[names[kind]] = value
    return checksums


def corrupted(data: bytes) -> bytes:
    """The same bytes with one bit of the last one flipped."""
    return data[:-1] + bytes([data[-1] ^ 1]) if data else data
