"""Recorded conversations with Google's storage test bench, and their replay against the fake.

The recording lies outside the repository, in ../shared/data; its first line describes its format.
Generations, upload ids and rewrite tokens differ between the bench and the fake: a replay learns
which of ours stands for which of theirs from the answers, and rewrites later requests.
"""

import base64
import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.fake_gcs.faults import Fault
from tests.fake_gcs.objects import crc32c
from tests.fake_gcs.server import FakeGcs

RECORDING = Path(__file__).parents[3] / "shared" / "data" / "gcs_transcripts.jsonl"

_PATTERN_LENGTH = 251
_BRACKETS = re.compile(r"\[(\w+): ([\w-]+)\]")


def read_scenarios() -> dict[str, dict[str, Any]]:
    """The scenarios of the recording, by name."""
    with RECORDING.open() as lines:
        next(lines)
        scenarios = [json.loads(line) for line in lines]
    return {scenario["scenario"]: scenario for scenario in scenarios}


def pattern(length: int, seed: int) -> bytes:
    """The payload of which the recording keeps only length, checksum and first bytes."""
    period = bytes((i * 31 + seed) % _PATTERN_LENGTH for i in range(_PATTERN_LENGTH))
    return (period * (length // _PATTERN_LENGTH + 1))[:length]


def body_bytes(body: dict[str, Any] | None, boundary: str | None = None) -> bytes:
    """The bytes of a recorded request's body, made again where they were too long to keep.

    Args:
        body: as recorded.
        boundary: of the multipart body that it may be.
    """
    if body is None:
        return b""
    if "base64" in body:
        return base64.b64decode(body["base64"])
    if "parts" in body:
        data = body_bytes(body["parts"][1]["body"])
        heads = [
            "".join(f"{name}: {value}\r\n" for name, value in part["headers"].items())
            for part in body["parts"]
        ]
        document = json.dumps(body["parts"][0]["json"])
        text = f"--{boundary}\r\n{heads[0]}\r\n{document}\r\n--{boundary}\r\n{heads[1]}\r\n"
        return text.encode() + data + f"\r\n--{boundary}--".encode()
    data = pattern(body["length"], base64.b64decode(body["first64_base64"])[0])
    assert crc32c(data) == body["crc32c"]
    return data


class Answer(NamedTuple):
    """What came back: status None if no status line did; `end` as in the recording, or None."""

    status: int | None
    headers: http.client.HTTPMessage
    body: bytes
    end: str | None


@dataclass(kw_only=True)
class Replay:
    """Sends the requests of one scenario, with the faults that the bench was told to inject.

    Attributes:
        server: to send them to.
        ours: ids of the bench, each with the one of ours that stands for it.
        pending: instructions of the bench's retry tests that were not yet used: by test, then by
            method of the API.
    """

    server: FakeGcs
    ours: dict[str, str] = field(default_factory=dict)
    pending: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def send(self, exchange: dict[str, Any]) -> Answer | None:
        """Our answer to a recorded request; None if it only told the bench what to inject."""
        request = exchange["request"]
        if request["path"].startswith("/retry_test"):
            created = (exchange["response"].get("body") or {}).get("json", {})
            if request["method"] == "POST" and "id" in created:
                self.pending[created["id"]] = created["instructions"]
            return None
        fault = self._next_fault(exchange)
        if fault:
            self.server.faults.add(fault)
        answer = self._exchange(request)
        self.server.faults.clear()
        if fault and self.server.faults.hits(fault):
            self._use_up(exchange)
        return answer

    def learn(self, theirs: Any, ours: Any) -> None:
        """Note that an id of ours stands for one of the bench's; it must keep doing so."""
        assert self.ours.setdefault(str(theirs), str(ours)) == str(ours)

    def generations(self) -> Iterator[tuple[int, int]]:
        """Generations of the bench and ours, in the bench's order."""
        pairs = [(int(a), int(b)) for a, b in self.ours.items() if a.isdecimal()]
        return iter(sorted(pairs))

    def _exchange(self, request: dict[str, Any]) -> Answer:
        names = {name.lower(): name for name in request["headers"]}
        content_type = request["headers"].get(names.get("content-type"), "")
        boundary = content_type.partition("boundary=")[2].strip('"') or None
        body = body_bytes(request["body"], boundary)
        if request["body"] and "json" in request["body"]:
            body = self._translate(body.decode()).encode()
        connection = http.client.HTTPConnection(self.server.url.removeprefix("http://"), timeout=10)
        try:
            connection.putrequest(
                request["method"], self._translate(request["path"]), skip_accept_encoding=True
            )
            for name, value in request["headers"].items():
                if name.lower() != "content-length":
                    connection.putheader(name, value)
            if "content-length" in names:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            try:
                return Answer(response.status, response.headers, response.read(), None)
            except http.client.IncompleteRead as cut:
                return Answer(response.status, response.headers, cut.partial, "eof")
        except http.client.RemoteDisconnected:
            return Answer(None, http.client.HTTPMessage(), b"", "eof")
        except ConnectionError:
            return Answer(None, http.client.HTTPMessage(), b"", "reset")
        finally:
            connection.close()

    def _translate(self, text: str) -> str:
        for theirs, ours in self.ours.items():
            text = text.replace(theirs, ours)
        return text

    def _queue(self, exchange: dict[str, Any]) -> list[str]:
        """The bench's instructions for this kind of request in the retry test that it names."""
        test = exchange["request"]["headers"].get("x-retry-test-id")
        if test is None:
            return []
        if test not in self.pending:  # created unrecorded: the step's name tells
            found = _BRACKETS.search(exchange["step"])
            assert found is not None
            self.pending[test] = {f"storage.objects.{found[1]}": [found[2]]}
        method, path = exchange["request"]["method"], exchange["request"]["path"]
        if path.startswith("/upload/"):
            name = "insert"
        elif method == "DELETE":
            name = "delete"
        else:
            name = "get" if "/o/" in path else "list"
        return self.pending[test].get(f"storage.objects.{name}", [])

    def _next_fault(self, exchange: dict[str, Any]) -> Fault | None:
        by_header = exchange["request"]["headers"].get("x-goog-emulator-instructions")
        if by_header:
            return _fault(by_header, exchange["request"], by_header=True)
        queue = self._queue(exchange)
        return _fault(queue[0], exchange["request"]) if queue else None

    def _use_up(self, exchange: dict[str, Any]) -> None:
        queue = self._queue(exchange)
        if queue:
            del queue[0]


def _fault(text: str, request: dict[str, Any], by_header: bool = False) -> Fault:
    """Our fault for an instruction of the bench; stalls last 50 ms instead of seconds."""
    upload = request["path"].startswith("/upload/")
    amount = re.search(r"-(?:after|at)-(\d+)(B|K)", text)
    after = int(amount[1]) * (1024 if amount[2] == "K" else 1) if amount else None
    if text in ("return-corrupted-data", "inject-upload-data-error"):
        return Fault(kind="corrupt_upload" if upload else "corrupt_download")
    if text == "return-reset-connection":
        return Fault(kind="reset_before_commit")
    if text.startswith("return-broken-stream"):
        default = 1024 * 1024 if by_header else 4
        final = "final-chunk" in text
        return Fault(kind="truncate", after_bytes=after or default, final_chunk=final)
    if text.startswith("stall"):
        if upload:  # a request too short for the instruction is not stalled: the session's start
            chosen = "upload_id" if "resumable" in request["path"] else ""
            return Fault(kind="stall", seconds=0.05, path_contains=chosen)
        return Fault(kind="stall_response", seconds=0.05, after_bytes=after or None)
    assert text.startswith("return-")
    if after is None or "retry-1" in text:
        return Fault(kind=text[7:10])
    if upload:
        return Fault(kind="503_in_body", after_bytes=after)
    return Fault(kind="truncate", after_bytes=after)
