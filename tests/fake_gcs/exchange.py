"""Requests, answers and errors of the fake bucket server, without sockets.

First of five files, to be read in this order: `exchange` (this one), `objects` (the state),
`resumable` (upload sessions), `json_api` and `listing` (what each request does), `faults` (what
goes wrong on purpose), `server` (sockets, and the class that tests use).
"""

import json
import re
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

_REASONS = {
    400: "invalid",
    401: "required",
    403: "forbidden",
    404: "notFound",
    405: "methodNotAllowed",
    408: "requestTimeout",
    409: "conflict",
    412: "conditionNotMet",
    416: "requestedRangeNotSatisfiable",
    429: "rateLimitExceeded",
    501: "notImplemented",
}

_OBJECT_PATH = re.compile("(?:/download)?/storage/v1/b/[^/]+/o/(.+)")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+|\*)|\*)/(\d+|\*)")


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer: status, headers, whole body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class ApiError(Exception):
    """What a request is refused with: an HTTP status and a message for humans."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message

    def response(self) -> Response:
        """The answer in the JSON form that Google documents; 304 has no body."""
        if self.status == 304:
            return Response(status=304)
        reason = _REASONS.get(self.status, "backendError")
        detail = {"message": self.message, "domain": "global", "reason": reason}
        if self.status == 412:
            detail |= {"locationType": "header", "location": "If-Match"}
        error = {"code": self.status, "message": self.message, "errors": [detail]}
        return json_response({"error": error}, status=self.status)


def json_response(document: dict[str, Any], status: int = 200) -> Response:
    """An answer with a JSON body."""
    return Response(
        status=status,
        headers={"Content-Type": "application/json; charset=UTF-8"},
        body=json.dumps(document).encode(),
    )


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; 400 if there is none."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise ApiError(400, f"Parse error: {error}") from error
    if not isinstance(document, dict):
        raise ApiError(400, "Parse error: not a JSON object")
    return document


@dataclass(frozen=True, kw_only=True)
class ContentRange:
    """Which bytes of an object a PUT to an upload session carries.

    Attributes:
        first: offset of the first byte; None for a status query, which carries none.
        stop: one more than the offset of the last byte; 0 for a status query.
        total: size of the object where the client named it.
    """

    first: int | None
    stop: int
    total: int | None

    @classmethod
    def parse(cls, header: str | None, length: int) -> "ContentRange | None":
        """The range of a body of `length` bytes; None if the header is malformed."""
        if header is None:
            return cls(first=0, stop=length, total=length)
        match = _CONTENT_RANGE.fullmatch(header.strip())
        if match is None:
            return None
        first, last, size = match.groups()
        total = None if size == "*" else int(size)
        if first is None:
            return cls(first=None, stop=0, total=total)
        if last == "*":  # "bytes 0-*/*": everything to the end of this body, which is the last
            return cls(first=int(first), stop=int(first) + length, total=int(first) + length)
        return cls(first=int(first), stop=int(last) + 1, total=total)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as far as it has been read; faults are chosen before the body is.

    Attributes:
        method: of HTTP, after `X-HTTP-Method-Override`.
        target: path and query as sent, still percent-encoded.
        headers: names are matched in any case.
        body: empty until it has been read.
        cut_at: offset within the object at which the connection breaks, or None.
        corrupt: whether the object's bytes change on their way in.
    """

    method: str
    target: str
    headers: Message
    body: bytes = b""
    cut_at: int | None = None
    corrupt: bool = False

    @cached_property
    def path(self) -> str:
        """The path, still percent-encoded, so that a slash in a name can be told from others."""
        return urlsplit(self.target).path

    def values(self, parameter: str) -> list[str]:
        """All values of a parameter of the query that may stand there several times."""
        return parse_qs(urlsplit(self.target).query).get(parameter, [])

    @cached_property
    def query(self) -> dict[str, str]:
        """The query's parameters, decoded."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def content_length(self) -> int:
        """Bytes of the body, as announced."""
        return int(self.headers.get("Content-Length") or 0)

    @property
    def wants_media(self) -> bool:
        """Whether it asks for an object's bytes."""
        return self.method == "GET" and self.query.get("alt") == "media"

    @property
    def upload_range(self) -> ContentRange | None:
        """The bytes of an object that it carries; None if it carries none."""
        if self.content_length == 0 or not self.path.startswith("/upload/"):
            return None
        if "upload_id" in self.query:
            return ContentRange.parse(self.headers.get("Content-Range"), self.content_length)
        if self.query.get("uploadType") in ("multipart", "media"):
            return ContentRange.parse(None, self.content_length)
        return None

    @property
    def parts(self) -> tuple[dict[str, Any], bytes, str]:
        """Of a multipart upload: the resource, the object's bytes, and their content type."""
        boundary = self.headers.get_boundary()
        if self.headers.get_content_type() != "multipart/related" or boundary is None:
            raise ApiError(400, "The content type is not multipart/related with a boundary.")
        pieces = (b"\r\n" + self.body).split(b"\r\n--" + boundary.encode())
        if len(pieces) != 4 or not pieces[3].startswith(b"--"):
            raise ApiError(400, "A multipart upload has two parts.")
        resource = pieces[1].removeprefix(b"\r\n").partition(b"\r\n\r\n")[2]
        head, _, data = pieces[2].removeprefix(b"\r\n").partition(b"\r\n\r\n")
        content_type = message_from_bytes(head).get("content-type", "application/octet-stream")
        return parse_json(resource), data, content_type

    @property
    def object_name(self) -> str | None:
        """The object that it is about; None if there is none, or it cannot be told."""
        match = _OBJECT_PATH.fullmatch(self.path)
        if match:
            return unquote(match[1])
        if "name" in self.query:
            return self.query["name"]
        try:
            if self.query.get("uploadType") == "multipart":
                return self.parts[0].get("name")
            if self.query.get("uploadType") == "resumable":
                return parse_json(self.body).get("name")
        except ApiError:
            pass  # the request will be refused
        return None
