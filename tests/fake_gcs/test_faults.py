"""Each kind of fault has its effect on Google's client, and no other."""

import contextlib
import http.client
import threading
import time
from email.message import Message

import pytest
import requests
from google.api_core import exceptions
from google.auth.exceptions import InvalidOperation
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from tests.fake_gcs.exchange import Request
from tests.fake_gcs.faults import Fault, Faults
from tests.fake_gcs.server import FakeGcs

KIBIBYTE = 1024
RETRY = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.05).with_timeout(10)
ONCE = None


@pytest.fixture
def blob(fake_gcs):
    """An object that is not there yet."""
    return fake_gcs.client().bucket("bucket").blob("x")


def statuses(server: FakeGcs) -> list[int | None]:
    return [exchange.status for exchange in server.requests]


def stored(server: FakeGcs) -> tuple[bytes, int]:
    """Bytes and number of writes of the one object."""
    found = server.objects("bucket")["x"]
    return found.data, found.writes


@pytest.mark.parametrize("status", ["408", "429", "500", "502", "503", "504"])
def test_passing_statuses_are_retried(fake_gcs, blob, status):
    fault = Fault(kind=status, method="POST", path_contains="/upload/", times=3)
    fake_gcs.faults.add(fault)
    blob.upload_from_string(b"data", if_generation_match=0, retry=RETRY)
    assert statuses(fake_gcs) == [int(status)] * 3 + [200]
    assert fake_gcs.faults.hits(fault) == 3
    assert [exchange.fault for exchange in fake_gcs.requests] == [status] * 3 + [None]
    assert stored(fake_gcs) == (b"data", 1)


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        ("401", InvalidOperation),  # what anonymous credentials do when asked to refresh
        ("403", exceptions.Forbidden),
        ("404", exceptions.NotFound),
    ],
)
def test_lasting_statuses_are_not(fake_gcs, blob, status, raised):
    fake_gcs.faults.add(Fault(kind=status))
    with pytest.raises(raised):
        blob.upload_from_string(b"data", if_generation_match=0, retry=RETRY)
    assert statuses(fake_gcs) == [int(status)]
    assert fake_gcs.objects("bucket") == {}


@pytest.mark.parametrize("kind", ["reset_before_body", "reset_before_commit"])
def test_resets_before_the_commit_store_nothing(fake_gcs, blob, kind):
    fake_gcs.faults.add(Fault(kind=kind, times=2))
    with pytest.raises(requests.ConnectionError):
        blob.upload_from_string(b"data" * 100_000, if_generation_match=0, retry=ONCE)
    assert fake_gcs.objects("bucket") == {}
    blob.upload_from_string(b"data" * 100_000, if_generation_match=0, retry=RETRY)
    assert statuses(fake_gcs) == [None, None, 200]
    assert stored(fake_gcs) == (b"data" * 100_000, 1)


def test_a_reset_is_a_reset_and_not_an_end(fake_gcs):
    fake_gcs.faults.add(Fault(kind="reset_before_commit"))
    connection = http.client.HTTPConnection(fake_gcs.url.removeprefix("http://"))
    connection.request("GET", "/storage/v1/b/bucket")
    with pytest.raises(ConnectionResetError) as caught:
        connection.getresponse()
    connection.close()
    assert not isinstance(caught.value, http.client.RemoteDisconnected)


def test_a_lost_response_and_a_precondition_give_412(fake_gcs, blob):
    fake_gcs.faults.add(Fault(kind="reset_after_commit", times=1))
    with pytest.raises(exceptions.PreconditionFailed):
        blob.upload_from_string(b"data", if_generation_match=0, retry=RETRY)
    assert statuses(fake_gcs) == [None, 412]
    assert stored(fake_gcs) == (b"data", 1)


def test_a_lost_response_without_a_precondition_writes_twice(fake_gcs, blob):
    fake_gcs.faults.add(Fault(kind="reset_after_commit", times=1))
    blob.upload_from_string(b"data", retry=RETRY)
    assert stored(fake_gcs) == (b"data", 2)


def test_a_lost_response_to_a_resumable_upload_is_asked_for(fake_gcs, blob):
    data = b"x" * (600 * KIBIBYTE)
    blob.chunk_size = 256 * KIBIBYTE
    fake_gcs.faults.add(Fault(kind="reset_after_commit", final_chunk=True, times=1))
    with blob.open("wb", if_generation_match=0, retry=RETRY) as stream:
        stream.write(data)
    assert stored(fake_gcs) == (data, 1)
    assert statuses(fake_gcs)[:4] == [200, 308, 308, None]
    assert statuses(fake_gcs)[-1] == 200


@pytest.mark.parametrize("kind", ["reset_in_body", "503_in_body"])
def test_a_broken_final_chunk_keeps_what_came_before(fake_gcs, blob, kind):
    data = bytes(range(256)) * (4 * 600)
    blob.chunk_size = 256 * KIBIBYTE
    fault = Fault(kind=kind, final_chunk=True, after_bytes=550 * KIBIBYTE, times=1)
    fake_gcs.faults.add(fault)
    with blob.open("wb", if_generation_match=0, retry=RETRY) as stream:
        stream.write(data)
    assert fake_gcs.faults.hits(fault) == 1
    assert stored(fake_gcs) == (data, 1)
    broken = statuses(fake_gcs).index(None if kind == "reset_in_body" else 503)
    assert broken == 3


def test_a_session_holds_the_bytes_before_the_break(fake_gcs):
    fake_gcs.faults.add(Fault(kind="503_in_body", after_bytes=300 * KIBIBYTE, times=1))
    http_client = http.client.HTTPConnection(fake_gcs.url.removeprefix("http://"))
    http_client.request("POST", "/upload/storage/v1/b/bucket/o?uploadType=resumable&name=x", b"{}")
    response = http_client.getresponse()
    location = response.headers["Location"].removeprefix(fake_gcs.url)
    response.read()
    body, span = b"x" * (600 * KIBIBYTE), f"bytes 0-{600 * KIBIBYTE - 1}/{600 * KIBIBYTE}"
    http_client.request("PUT", location, body, {"Content-Range": span})
    response = http_client.getresponse()
    response.read()
    assert response.status == 503
    assert fake_gcs.bytes_held == 300 * KIBIBYTE
    http_client.request("PUT", location, b"", {"Content-Range": f"bytes */{600 * KIBIBYTE}"})
    response = http_client.getresponse()
    response.read()
    http_client.close()
    assert (response.status, response.headers["Range"]) == (308, f"bytes=0-{300 * KIBIBYTE - 1}")


def test_a_single_request_that_breaks_stores_nothing(fake_gcs, blob):
    fake_gcs.faults.add(Fault(kind="reset_in_body", after_bytes=1000))
    with pytest.raises(requests.ConnectionError):
        blob.upload_from_string(b"x" * 5000, retry=ONCE)
    assert fake_gcs.objects("bucket") == {}
    blob.upload_from_string(b"x" * 500, retry=ONCE)  # too short for the fault


def test_a_stalled_request_is_carried_out_late(fake_gcs, blob):
    fake_gcs.faults.add(Fault(kind="stall", seconds=1.5, times=1))
    blob.upload_from_string(b"data", if_generation_match=0, retry=RETRY, timeout=0.5)
    deadline = time.monotonic() + 5
    while len(fake_gcs.requests) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert statuses(fake_gcs) == [200, 412]  # the retry was served first
    assert stored(fake_gcs) == (b"data", 1)


def test_a_stalled_response_was_carried_out_already(fake_gcs, blob):
    fake_gcs.faults.add(Fault(kind="stall_response", seconds=30, times=1))
    with pytest.raises(exceptions.PreconditionFailed):
        blob.upload_from_string(b"data", if_generation_match=0, retry=RETRY, timeout=0.5)
    assert stored(fake_gcs) == (b"data", 1)


def test_a_stall_in_a_download_is_survived(fake_gcs, blob):
    fake_gcs.put("bucket", "x", b"x" * 100_000)
    fault = Fault(kind="stall_response", seconds=30, after_bytes=50_000, times=1)
    fake_gcs.faults.add(fault)
    assert blob.download_as_bytes(retry=RETRY, timeout=0.5) == b"x" * 100_000
    assert fake_gcs.faults.hits(fault) == 1


def test_stalls_end_with_the_server():
    with FakeGcs() as server:
        stall = server.faults.add(Fault(kind="stall", seconds=60))
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        connection.request("GET", "/storage/v1/b/bucket")
        while not server.faults.hits(stall):
            time.sleep(0.01)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    connection.close()


def test_a_truncated_download_is_completed(fake_gcs, blob):
    data = bytes(range(256)) * 1000
    fake_gcs.put("bucket", "x", data)
    fake_gcs.faults.add(Fault(kind="truncate", after_bytes=1000, times=1))
    assert blob.download_as_bytes(retry=RETRY) == data
    fake_gcs.faults.add(Fault(kind="truncate", after_bytes=1000))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        blob.download_as_bytes(retry=ONCE)


def test_corruption_on_arrival_is_refused_or_else_stored(fake_gcs, blob):
    fake_gcs.faults.add(Fault(kind="corrupt_upload"))
    with pytest.raises(exceptions.BadRequest):
        blob.upload_from_string(b"data", checksum="crc32c", retry=RETRY)
    with pytest.raises(exceptions.BadRequest):
        blob.upload_from_string(b"data", checksum="md5", retry=RETRY)
    assert fake_gcs.objects("bucket") == {}
    blob.upload_from_string(b"data", checksum=None, retry=RETRY)
    assert stored(fake_gcs) == (b"dat`", 1)


def test_corruption_of_a_resumable_chunk_is_refused(fake_gcs, blob):
    blob.chunk_size = 4096 * KIBIBYTE
    fake_gcs.faults.add(Fault(kind="corrupt_upload", skip=1, times=1))
    with pytest.raises(exceptions.BadRequest):
        blob.upload_from_string(b"x" * (9000 * KIBIBYTE), checksum="crc32c", retry=RETRY)
    assert len(fake_gcs.requests) == 4  # a beginning and three chunks
    assert fake_gcs.objects("bucket") == {}


def test_corruption_of_a_download_is_noticed(fake_gcs, blob):
    fake_gcs.put("bucket", "x", b"data")
    fake_gcs.faults.add(Fault(kind="corrupt_download", times=2))
    assert blob.exists()  # carries no bytes, so the fault waits
    with pytest.raises(DataCorruption):
        blob.download_as_bytes(retry=RETRY)
    assert blob.download_as_bytes(checksum=None) == b"dat`"
    assert blob.download_as_bytes() == b"data"


@pytest.mark.parametrize("kind", ["503", "reset_before_body"])
def test_nothing_works_during_an_outage(fake_gcs, blob, kind):
    blob.upload_from_string(b"before")
    with fake_gcs.outage(kind):
        for attempt in (blob.download_as_bytes, blob.exists, blob.delete):
            with pytest.raises((exceptions.ServiceUnavailable, requests.ConnectionError)):
                attempt(retry=ONCE)
    assert blob.download_as_bytes() == b"before"


def test_an_outage_ends_under_a_waiting_client(fake_gcs, blob):
    with fake_gcs.outage():
        upload = threading.Thread(
            target=blob.upload_from_string, args=(b"data",), kwargs={"retry": RETRY}
        )
        upload.start()
        while len(fake_gcs.requests) < 3:
            time.sleep(0.01)
    upload.join()
    assert stored(fake_gcs) == (b"data", 1)


def test_faults_find_objects_by_name(fake_gcs):
    bucket = fake_gcs.client().bucket("bucket")
    fault = fake_gcs.faults.add(Fault(kind="403", name_contains="commits/a b"))
    bucket.blob("data/a b").upload_from_string(b"data")
    single, session = bucket.blob("commits/a b 1"), bucket.blob("commits/a b 2")
    with pytest.raises(exceptions.Forbidden):
        single.upload_from_string(b"data")
    with pytest.raises(exceptions.Forbidden):
        single.upload_from_string(b"x" * (9 * KIBIBYTE * KIBIBYTE))
    with pytest.raises(exceptions.Forbidden):
        single.exists()
    assert fake_gcs.faults.hits(fault) == 3
    assert [exchange.name for exchange in fake_gcs.requests] == ["data/a b"] + [single.name] * 3
    fake_gcs.faults.remove(fault)
    fault = fake_gcs.faults.add(Fault(kind="503", method="PUT", name_contains="2", times=1))
    session.upload_from_string(b"x" * (9 * KIBIBYTE * KIBIBYTE), retry=RETRY)
    assert fake_gcs.faults.hits(fault) == 1


def get(target: str = "/storage/v1/b/bucket/o/x") -> Request:
    return Request(method="GET", target=target, headers=Message())


def test_skip_and_times():
    faults = Faults()
    fault = faults.add(Fault(kind="503", path_contains="/o/", skip=1, times=2))
    assert faults.take(get("/storage/v1/b/bucket")) is None
    assert [faults.take(get()) for _ in range(4)] == [None, fault, fault, None]
    assert faults.hits(fault) == 2


def test_the_first_fault_that_fits_is_taken():
    faults = Faults()
    second = faults.add(Fault(kind="503"))
    first = faults.add(Fault(kind="500", times=1), first=True)
    assert [faults.take(get()) for _ in range(2)] == [first, second]
    faults.remove(second)
    assert faults.take(get()) is None


def test_random_faults_repeat_by_their_seed():
    def hits(seed: int) -> list[bool]:
        faults = Faults()
        faults.add(Fault(kind="503", probability=0.3, seed=seed))
        return [faults.take(get()) is not None for _ in range(1000)]

    assert hits(1) == hits(1) != hits(2)
    assert 250 < sum(hits(1)) < 350


def test_random_faults_are_survived(fake_gcs):
    bucket = fake_gcs.client().bucket("bucket")
    fake_gcs.faults.add(Fault(kind="503", probability=0.3, seed=1))
    fake_gcs.faults.add(Fault(kind="reset_before_commit", probability=0.3, seed=2))
    for i in range(20):
        bucket.blob(f"x{i}").upload_from_string(b"data", if_generation_match=0, retry=RETRY)
    assert set(fake_gcs.writes("bucket").values()) == {1}
    assert len(fake_gcs.writes("bucket")) == 20
    assert {503, None} < set(statuses(fake_gcs))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "nonsense"},
        {"kind": "200"},
        {"kind": "truncate"},
        {"kind": "reset_in_body"},
        {"kind": "stall"},
        {"kind": "reset_before_body", "name_contains": "x"},
    ],
)
def test_faults_without_sense_are_refused(settings):
    with pytest.raises(ValueError, match=settings["kind"]):
        Fault(**settings)


def test_errors_of_the_fake_itself_come_out():
    def send_what_it_cannot_read() -> None:
        with FakeGcs() as server:
            connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
            with contextlib.closing(connection), pytest.raises(ConnectionError):  # noqa: PT012
                # The server may hang up before all is sent, or after it.
                connection.request("POST", "/", iter([b"chunked"]), encode_chunked=True)
                connection.getresponse()

    with pytest.raises(ExceptionGroup, match="fake bucket server"):
        send_what_it_cannot_read()
