"""Uploads through a network and a bucket server that fail, end, or are far too slow."""

import threading
import time
import tracemalloc
from types import SimpleNamespace

import google.cloud.storage.blob
import numpy as np
import pytest
from google.api_core.retry import retry_unary

from extraction.errors import StorageUnavailableError
from extraction.run.identity import begin
from extraction.run.records import CommitLog
from extraction.storage import gcs
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata
from extraction.writing.upload import Uploader, upload_folder, upload_unit
from tests.extraction.bucket_environment import REFUSED_DOWNLOADS, collected
from tests.extraction.known_rows import bytes_of, known_block
from tests.extraction.uploads import (
    HOOKS,
    assert_cloud_is_whole,
    batch_files,
    cloud_of,
    commit,
    identity,
    make_folder,
    objects,
)
from tests.fake_gcs.faults import Fault

__all__ = ["collected"]

KIBIBYTE = 1024
TRANSIENT = {
    **{status: {} for status in ("408", "429", "500", "502", "503", "504")},
    **{kind: {} for kind in ("reset_before_body", "reset_before_commit", "reset_after_commit")},
    **{kind: {"after_bytes": 5} for kind in ("reset_in_body", "503_in_body", "truncate")},
    **{kind: {"seconds": 0.5} for kind in ("stall", "stall_response")},
    "corrupt_upload": {},
}

pytestmark = REFUSED_DOWNLOADS


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """The client's pauses between tries are a fiftieth of what they are."""
    clock = SimpleNamespace(
        monotonic=time.monotonic, sleep=lambda seconds: time.sleep(seconds / 50)
    )
    monkeypatch.setattr(retry_unary, "time", clock)


def patient(server) -> GcsStorage:
    """Storage with retries for as long as a test may take."""
    return GcsStorage("gs://bucket/run", server.client(), deadline=3600)


@pytest.mark.parametrize("kind", TRANSIENT)
def test_transient_faults_cost_nothing(tmp_path, fake_gcs, monkeypatch, kind):
    made = make_folder(tmp_path, 8)
    stalls = kind.startswith("stall")
    if stalls:
        monkeypatch.setattr(gcs, "REQUEST_TIMEOUT", (5, 0.2))
    fault = Fault(kind=kind, probability=0.1 if stalls else 0.3, seed=1, **TRANSIENT[kind])
    fake_gcs.faults.add(fault)
    cloud = patient(fake_gcs)
    begin(cloud, made)
    with Uploader(LocalStorage(tmp_path), cloud, made.run_id) as uploader:
        uploader.add_left_over()
    write_metadata(cloud)
    hits = fake_gcs.faults.hits(fault)
    fake_gcs.faults.clear()
    assert hits >= 3
    assert_cloud_is_whole(fake_gcs, range(1, 9))
    assert batch_files(tmp_path) == set()
    fresh = tmp_path / "fresh"
    write_metadata(cloud_of(fake_gcs), copies=[LocalStorage(fresh)])
    assert objects(fake_gcs)["metadata.json"].data == (fresh / "metadata.json").read_bytes()


@pytest.mark.parametrize("kind", ["503", "reset_in_body", "503_in_body", "reset_after_commit",
                                  "reset_before_commit", "corrupt_upload"])  # fmt: skip
def test_large_files_go_in_parts_that_may_fail_too(tmp_path, fake_gcs, monkeypatch, kind):
    monkeypatch.setattr(gcs, "CHUNK", 256 * KIBIBYTE)
    monkeypatch.setattr(google.cloud.storage.blob, "_MAX_MULTIPART_SIZE", 256 * KIBIBYTE)
    made = begin(LocalStorage(tmp_path), identity(hook_points=HOOKS[:1]))
    block = known_block(0, 2)
    block.activations["layer_6"] = np.random.default_rng(0).random((2, 90_000), np.float32)
    record = Committer(LocalStorage(tmp_path), HOOKS[:1], "raw").commit(1, block)
    size = record.files["layer_6"].bytes
    where = {"after_bytes": size - 100} if "in_body" in kind else {}
    fault = fake_gcs.faults.add(
        Fault(kind=kind, path_contains="/upload/", times=1, skip=2, **where)
        if not where
        else Fault(kind=kind, path_contains="/upload/", times=1, **where)
    )
    with Uploader(LocalStorage(tmp_path), patient(fake_gcs), made.run_id) as uploader:
        uploader.add(record)
    assert fake_gcs.faults.hits(fault) == 1
    assert_cloud_is_whole(fake_gcs, {1})
    in_parts = [line for line in fake_gcs.requests if line.status == 308]
    assert len(in_parts) >= size // (256 * KIBIBYTE)


def in_threads(count: int, work) -> None:
    """Calls `work(number)` in so many threads at once, and raises what one of them raised."""
    start, errors = threading.Barrier(count), []

    def run(number: int):
        start.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise ExceptionGroup("in threads", errors)


def test_sixteen_hosts_at_once(tmp_path, fake_gcs):
    fake_gcs.faults.add(Fault(kind="503", probability=0.1, seed=2))
    wanted, run_ids = identity(planned_batches=32), set()

    def host(number: int):
        cloud, spool = patient(fake_gcs), LocalStorage(tmp_path / str(number))
        run_ids.add(begin(cloud, wanted).run_id)
        with Uploader(spool, cloud, begin(cloud, wanted).run_id, threads=2) as uploader:
            for batch_id in (number + 1, number + 17):
                uploader.add(commit(spool.folder, batch_id))
        write_metadata(cloud)

    in_threads(16, host)
    assert len(run_ids) == 1
    fake_gcs.faults.clear()
    assert_cloud_is_whole(fake_gcs, range(1, 33))
    metadata = objects(fake_gcs)["metadata.json"].data
    assert b'"complete": true' in metadata
    write_metadata(cloud_of(fake_gcs))
    assert objects(fake_gcs)["metadata.json"].data == metadata


def test_sixteen_attempts_at_one_unit(tmp_path, fake_gcs):
    """Hosts thought dead that are not: their bytes differ, their keys do not."""
    run_id = begin(cloud_of(fake_gcs), identity(planned_batches=1)).run_id

    def attempt(number: int):
        folder = tmp_path / str(number)
        record = commit(folder, 1, taken=f"attempt {number:02d}")
        upload_unit(LocalStorage(folder), patient(fake_gcs), record, run_id)

    in_threads(16, attempt)
    assert_cloud_is_whole(fake_gcs, {1})


def test_many_hosts_write_one_derived_file_at_once(fake_gcs):
    in_threads(48, lambda number: patient(fake_gcs).replace("metadata.json", b"%d" % number))
    assert objects(fake_gcs)["metadata.json"].data in {b"%d" % number for number in range(48)}


def test_between_tries_at_a_derived_file_there_are_pauses(fake_gcs, monkeypatch):
    pauses = []
    monkeypatch.setattr(gcs, "time", SimpleNamespace(sleep=pauses.append))
    storage = cloud_of(fake_gcs)
    storage.replace("metadata.json", b"theirs")
    fake_gcs.faults.add(Fault(kind="412", path_contains="/upload/", times=6))
    storage.replace("metadata.json", b"mine")
    assert len(set(pauses)) == 6
    assert all(0 <= pause <= 2 for pause in pauses)
    assert objects(fake_gcs)["metadata.json"].data == b"mine"
    fake_gcs.faults.add(Fault(kind="412", path_contains="/upload/"))
    with pytest.raises(StorageUnavailableError, match="20 times in a row"):
        storage.replace("metadata.json", b"mine again")


def size_of(folder) -> int:
    return sum(map(len, bytes_of(folder).values()))


def test_an_outage_stops_the_producer_and_loses_nothing(tmp_path, fake_gcs):
    made = begin(LocalStorage(tmp_path), identity(hook_points=HOOKS[:1], planned_batches=30))
    block = known_block(0, 2)
    block.activations["layer_6"] = np.zeros((2, 32_000), np.float32)  # 256 kB
    committer = Committer(LocalStorage(tmp_path), HOOKS[:1], "raw")
    added = []

    def produce(uploader):
        for batch_id in range(1, 31):
            record = committer.commit(batch_id, block)
            uploader.add(record)
            added.append(batch_id)

    cloud = patient(fake_gcs)
    uploader = Uploader(LocalStorage(tmp_path), cloud, made.run_id, spool_bytes=1_000_000)
    producer = threading.Thread(target=produce, args=(uploader,))
    tracemalloc.start()
    try:
        with fake_gcs.outage():
            uploader.__enter__()
            producer.start()
            deadline = time.monotonic() + 10
            while len(added) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.5)  # it could do much in that time
            assert added == [1, 2, 3]
            assert batch_files(tmp_path) >= {"_run/commits/000004.json"}  # waits to be taken
            assert size_of(tmp_path) < 1_000_000 + 300_000  # the limit, and one unit
            peak = tracemalloc.get_traced_memory()[1]
            assert peak < 30 * 256_000
            assert objects(fake_gcs) == {}
    finally:
        tracemalloc.stop()
    producer.join()
    uploader.__exit__(None, None, None)
    assert added == list(range(1, 31))
    assert_cloud_is_whole(fake_gcs, range(1, 31))
    assert batch_files(tmp_path) == set()


def test_a_unit_larger_than_the_spool_waits_alone(tmp_path, fake_gcs):
    made = make_folder(tmp_path, 3)
    with Uploader(LocalStorage(tmp_path), cloud_of(fake_gcs), made.run_id, spool_bytes=1) as up:
        up.add_left_over()
    assert_cloud_is_whole(fake_gcs, {1, 2, 3})
    order = [line.name for line in fake_gcs.requests if line.method == "POST"]
    commits = [order.index(f"run/_run/commits/{number:06d}.json") for number in (1, 2, 3)]
    first_files = [order.index(f"run/layer_6_batch_{number:06d}.pkl") for number in (2, 3)]
    assert commits[0] < first_files[0] < commits[1] < first_files[1]


def test_an_outage_longer_than_the_retries_ends_the_run_and_loses_nothing(tmp_path, fake_gcs):
    made = make_folder(tmp_path, 3)
    before = batch_files(tmp_path)
    cloud = GcsStorage("gs://bucket/run", fake_gcs.client(), deadline=1)
    uploader = Uploader(LocalStorage(tmp_path), cloud, made.run_id)
    told = pytest.raises(StorageUnavailableError, match="could not be used")
    with fake_gcs.outage(), told, uploader:
        uploader.add_left_over()
    assert batch_files(tmp_path) == before
    upload_folder(LocalStorage(tmp_path), cloud_of(fake_gcs))
    assert_cloud_is_whole(fake_gcs, {1, 2, 3})


@pytest.mark.parametrize("status", ["401", "403"])
def test_lost_rights_end_the_run_at_once(tmp_path, fake_gcs, status):
    made = make_folder(tmp_path, 1)
    fake_gcs.faults.add(Fault(kind=status, path_contains="/upload/"))
    uploader = Uploader(LocalStorage(tmp_path), patient(fake_gcs), made.run_id)
    started = time.monotonic()
    with pytest.raises(StorageUnavailableError), uploader:
        uploader.add(CommitLog(LocalStorage(tmp_path)).read(1))
    assert time.monotonic() - started < 5
    assert len(fake_gcs.requests) <= 2
