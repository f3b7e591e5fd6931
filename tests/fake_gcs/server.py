"""The fake bucket server on a loopback port.

    with FakeGcs() as server:
        server.create_bucket("b")
        server.faults.add(Fault(kind="503", method="POST", path_contains="/upload/", times=3))
        server.client().bucket("b").blob("x").upload_from_string(b"data", if_generation_match=0)
        assert server.objects("b")["x"].writes == 1

It keeps everything in memory, gives each connection a thread, and closes all of them on exit. Use
`FakeGcs.environment` for code that makes its own client, here or in another process.
"""

import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple, Self

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from tests.fake_gcs.exchange import ApiError, Request, Response
from tests.fake_gcs.faults import Fault, Faults
from tests.fake_gcs.json_api import JsonApi
from tests.fake_gcs.objects import Preconditions, Store
from tests.fake_gcs.resumable import corrupted


class StoredObject(NamedTuple):
    """A live object, and how many generations of its name were ever written."""

    generation: int
    data: bytes
    crc32c: str
    metadata: Mapping[str, str]
    writes: int


class Exchange(NamedTuple):
    """A line of the request log.

    Attributes:
        method: of HTTP.
        target: path and query, percent-encoded as sent.
        name: of the object that it was about, where that could be told.
        status: of the answer; None where no status line was sent.
        fault: kind of the fault that hit it.
    """

    method: str
    target: str
    name: str | None
    status: int | None
    fault: str | None


class FakeGcs:
    """A bucket server for tests; a context manager.

    Attributes:
        url: what `STORAGE_EMULATOR_HOST` is to be.
        faults: what goes wrong; see `faults.Fault`.
        requests: log of all requests, in the order in which their answers were ready.
    """

    def __init__(self) -> None:
        self._http = _HttpServer(self)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.faults = Faults()
        self.requests: list[Exchange] = []
        self.stopping = threading.Event()
        self.store = Store()
        self.api = JsonApi(self.store, self.url)
        self._clients: list[storage.Client] = []
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for client in self._clients:
            client.close()
        self.stopping.set()  # ends stalls
        self._http.shutdown()
        self._thread.join()
        self._http.close_connections()
        self._http.server_close()  # joins the connections' threads
        if self._http.errors and exception[0] is None:
            raise ExceptionGroup("errors in the fake bucket server", self._http.errors)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point a client made elsewhere to this server.

        The second keeps the client from asking for the bucket in a thread of its own, at a time of
        its own, which would make the request log and the faults' targets a matter of luck.
        """
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true",
        }

    def client(self) -> storage.Client:
        """A new client of this server, closed with it; the environment is not touched."""
        client = storage.Client(
            project="test",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": self.url},
        )
        # No bucket request in a thread of its own: see `environment`.
        client._bucket_metadata_cache = None  # pyright: ignore
        self._clients.append(client)
        return client

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        with self.store.lock:
            self.store.create_bucket(name)

    def put(self, bucket: str, name: str, data: bytes, **fields: Any) -> int:
        """Write an object past the network, say as another writer; returns its generation.

        Args:
            bucket: name of an existing bucket.
            name: of the object.
            data: its bytes.
            **fields: of its resource, such as `metadata={"run": "7"}`.
        """
        with self.store.lock:
            version = self.store.insert(
                bucket, name, data, fields=fields, preconditions=Preconditions(), expected={}
            )
            return version.generation

    def objects(self, bucket: str) -> dict[str, StoredObject]:
        """The live objects of a bucket, by name, in the order of their names."""
        with self.store.lock:
            home = self.store.bucket(bucket)
            return {
                name: StoredObject(
                    generation=version.generation,
                    data=version.data,
                    crc32c=version.crc32c,
                    metadata=version.fields.get("metadata", {}),
                    writes=home.writes[name],
                )
                for name, version in sorted(home.objects.items())
            }

    def writes(self, bucket: str) -> dict[str, int]:
        """How many generations of each name were ever written, deleted objects included."""
        with self.store.lock:
            return dict(self.store.bucket(bucket).writes)

    @property
    def bytes_held(self) -> int:
        """Bytes of all live objects and unfinished upload sessions."""
        with self.store.lock:
            live = [v.data for b in self.store.buckets.values() for v in b.objects.values()]
            return sum(map(len, live)) + sum(len(s.received) for s in self.api.sessions.values())

    @contextmanager
    def outage(self, kind: str = "503") -> Iterator[None]:
        """While it lasts every request is refused, whatever other faults say.

        Args:
            kind: of fault: a status, or "reset_before_body".
        """
        fault = self.faults.add(Fault(kind=kind), first=True)
        try:
            yield
        finally:
            self.faults.remove(fault)


class _HttpServer(socketserver.ThreadingTCPServer):
    """Accepts connections and knows which are open, so that all can be closed at the end."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, owner: FakeGcs):
        self.owner = owner
        self.errors: list[Exception] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
            if _is_reset(request):  # closing sends RST; a shutdown before it would send FIN
                request.close()
            else:
                super().shutdown_request(request)

    def close_connections(self) -> None:
        """Wake every thread that waits for its client."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # the client may have left first
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            self.errors.append(error)  # a fault of the fake's own; connections may break


class _Connection(BaseHTTPRequestHandler):
    """One connection: reads requests, has them carried out, does the faults that touch the wire."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    @property
    def owner(self) -> FakeGcs:
        """The server that this connection belongs to."""
        assert isinstance(self.server, _HttpServer)
        return self.server.owner

    def _serve(self) -> None:
        method = self.headers.get("X-HTTP-Method-Override", self.command)
        request = Request(method=method, target=self.path, headers=self.headers)
        fault = self.owner.faults.take(request, early=True)
        if fault is None:
            request = self._read_body(request)
            fault = self.owner.faults.take(request)
        response = self._carry_out(request, fault)
        self.owner.requests.append(
            Exchange(
                method=method,
                target=self.path,
                name=request.object_name,
                status=response.status if response else None,
                fault=fault.kind if fault else None,
            )
        )
        if response is None:
            _make_reset(self.connection)
            self.close_connection = True
        else:
            self._send(response, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _carry_out(self, request: Request, fault: Fault | None) -> Response | None:
        """The answer to send, or None if the connection is to be reset."""
        if fault is None:
            return self.owner.api.handle(request)
        kind = fault.kind
        if kind in ("reset_before_body", "reset_before_commit"):
            return None
        if fault.status is not None:
            return ApiError(fault.status, "Scripted fault").response()
        if kind in ("reset_in_body", "503_in_body"):
            return self._cut(request, fault)
        if kind == "stall":
            self.owner.stopping.wait(fault.seconds)
        response = self.owner.api.handle(replace(request, corrupt=kind == "corrupt_upload"))
        if kind == "corrupt_download":
            response = replace(response, body=corrupted(response.body))
        return None if kind == "reset_after_commit" else response

    def _cut(self, request: Request, fault: Fault) -> Response | None:
        span, at = request.upload_range, fault.after_bytes
        assert span is not None
        assert span.first is not None
        assert at is not None
        if fault.kind == "503_in_body":
            return self.owner.api.handle(replace(request, cut_at=at))
        request = self._read_body(request, at - span.first)
        self.owner.api.handle(replace(request, cut_at=at))
        return None

    def _read_body(self, request: Request, length: int | None = None) -> Request:
        """The request with its body; only the first `length` bytes of it where that is given."""
        if "Transfer-Encoding" in request.headers:
            raise NotImplementedError("the fake reads no chunked bodies")
        length = request.content_length if length is None else length
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionResetError("the client left before its request was complete")
        return replace(request, body=body)

    def _send(self, response: Response, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        after = fault.after_bytes if fault and kind in ("truncate", "stall_response") else None
        if fault and kind == "cut":
            response = replace(response, body=response.body[: fault.after_bytes])
        if fault and kind == "stall_response" and after is None:
            self.owner.stopping.wait(fault.seconds)
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if response.status not in (204, 304):
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(response.body[:after])
        if fault and kind == "stall_response" and after is not None:
            self.wfile.flush()
            self.owner.stopping.wait(fault.seconds)
            self.wfile.write(response.body[after:])
        if kind == "truncate":
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error: `FakeGcs.requests` is the log."""


def _make_reset(connection: socket.socket) -> None:
    """Have the connection end with RST, not FIN, when it is closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _is_reset(connection: socket.socket) -> bool:
    linger = connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    return struct.unpack("ii", linger)[0] == 1
