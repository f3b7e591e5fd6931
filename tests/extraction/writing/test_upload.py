"""From a folder to the cloud in order; `test_upload_faults` breaks the way."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import extraction
from extraction import ExistingRunError
from extraction.errors import ConflictError, CorruptBatchError, StorageUnavailableError, StoreError
from extraction.maintenance.verify import verify
from extraction.run.identity import begin, read_identity
from extraction.run.records import CommitLog
from extraction.run_layout import record_name
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from extraction.writing.finalise import close, write_metadata
from extraction.writing.upload import Uploader, upload_folder, upload_unit
from tests.extraction.known_rows import bytes_of
from tests.extraction.uploads import (
    FILES,
    assert_cloud_is_whole,
    batch_files,
    cloud_of,
    commit,
    identity,
    make_folder,
    objects,
)
from tests.fake_gcs.faults import Fault


def test_a_folder_is_uploaded_as_it_is(tmp_path, fake_gcs):
    made = make_folder(tmp_path)
    LocalStorage(tmp_path).replace("_run/self_check/00000.json", b'{"samples": 1}')
    write_metadata(LocalStorage(tmp_path))
    before = bytes_of(tmp_path)
    seen = []
    totals = upload_folder(LocalStorage(tmp_path), cloud_of(fake_gcs), seen.append)
    assert read_identity(cloud_of(fake_gcs)) == made
    assert len(totals) == 3
    assert [record.batch_id for record in seen] == [1, 2, 3]
    assert bytes_of(tmp_path) == before
    assert_cloud_is_whole(fake_gcs, {1, 2, 3})
    assert {name: stored.data for name, stored in objects(fake_gcs).items()} == before


def test_uploading_again_changes_nothing(tmp_path, fake_gcs):
    make_folder(tmp_path, planned_batches=None)
    close(LocalStorage(tmp_path), 3)
    upload_folder(LocalStorage(tmp_path), cloud_of(fake_gcs))
    first = objects(fake_gcs)
    requests = len(fake_gcs.requests)
    upload_folder(LocalStorage(tmp_path), cloud_of(fake_gcs))
    again = objects(fake_gcs)
    assert {name: stored.data for name, stored in again.items()} == {
        name: stored.data for name, stored in first.items()
    }
    derived = {"metadata.json", "_run/closed.json"}
    assert {name for name in again if again[name].writes > 1} <= derived
    assert not any("_batch_" in (line.name or "") for line in fake_gcs.requests[requests:])
    assert json.loads(again["metadata.json"].data)["complete"] is True


def test_an_upload_that_was_cut_off_goes_on(tmp_path, fake_gcs):
    make_folder(tmp_path)
    fault = Fault(kind="403", name_contains="layer_12_batch_000002")
    fake_gcs.faults.add(fault)
    with pytest.raises(StorageUnavailableError, match="permission"):
        upload_folder(LocalStorage(tmp_path), cloud_of(fake_gcs))
    assert_cloud_is_whole(fake_gcs, {1})
    fake_gcs.faults.remove(fault)
    commit(tmp_path, 4)
    upload_folder(LocalStorage(tmp_path), cloud_of(fake_gcs))
    assert_cloud_is_whole(fake_gcs, {1, 2, 3, 4})


def test_a_folder_without_a_run_is_refused(tmp_path, fake_gcs):
    with pytest.raises(StoreError, match="holds no run"):
        upload_folder(LocalStorage(tmp_path), cloud_of(fake_gcs))
    assert objects(fake_gcs) == {}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [({}, ConflictError, "another run"), ({"dtype": "bfloat16"}, ExistingRunError, "dtype")],
)
def test_another_runs_prefix_is_left_alone(tmp_path, fake_gcs, changes, error, message):
    begin(cloud_of(fake_gcs), identity(**changes))
    before = objects(fake_gcs)
    make_folder(tmp_path)
    with pytest.raises(error, match=message):
        upload_folder(LocalStorage(tmp_path), cloud_of(fake_gcs))
    assert objects(fake_gcs) == before


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize(
    "whose",
    [
        {},
        {"run_id": "another", "keys_sha256": "this"},
        {"run_id": "this", "keys_sha256": "other"},
    ],
)
def test_another_object_of_that_name_is_left_alone(tmp_path, fake_gcs, whose, which):
    made = make_folder(tmp_path, 1)
    begin(cloud_of(fake_gcs), made)
    (record,) = list(CommitLog(LocalStorage(tmp_path)).records())
    this = {"run_id": made.run_id, "keys_sha256": record.keys_sha256}
    metadata = {key: this[key] if value == "this" else value for key, value in whose.items()}
    name = FILES[which].format(1)
    fake_gcs.put("bucket", f"run/{name}", b"theirs", metadata=metadata)
    words = "exists and belongs to run" if metadata.get("run_id") != made.run_id else "other tokens"
    with pytest.raises(ConflictError, match=f"{name} .*{words}.*left as it is"):
        upload_folder(LocalStorage(tmp_path), cloud_of(fake_gcs))
    found = objects(fake_gcs)[name]
    assert (found.data, found.writes) == (b"theirs", 1)
    assert_cloud_is_whole(fake_gcs, set())


def test_the_same_bytes_are_the_same_object_whoever_put_them(tmp_path, fake_gcs):
    run_id = make_folder(tmp_path, 1).run_id
    (record,) = list(CommitLog(LocalStorage(tmp_path)).records())
    name = record.files["layer_6"].file
    fake_gcs.put("bucket", f"run/{name}", (tmp_path / name).read_bytes())  # say by gsutil
    upload_unit(LocalStorage(tmp_path), cloud_of(fake_gcs), record, run_id)
    assert list(CommitLog(cloud_of(fake_gcs)).records()) == [record]
    assert fake_gcs.writes("bucket")[f"run/{name}"] == 1


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "missing"])
def test_a_damaged_file_is_not_uploaded(tmp_path, fake_gcs, damage, which):
    make_folder(tmp_path, 2)
    path = tmp_path / FILES[which].format(2)
    data = path.read_bytes()
    damaged = {"flipped": data[:9] + bytes([data[9] ^ 1]) + data[10:], "short": data[:-1],
               "empty": b""}  # fmt: skip
    path.write_bytes(damaged.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with pytest.raises(CorruptBatchError, match=path.name):
        upload_folder(LocalStorage(tmp_path), cloud_of(fake_gcs))
    assert_cloud_is_whole(fake_gcs, {1})
    assert FILES[which].format(2) not in objects(fake_gcs)


@pytest.mark.parametrize("file", FILES)
def test_an_object_that_has_gone_is_uploaded_again(tmp_path, fake_gcs, file):
    make_folder(tmp_path, 2)
    cloud = cloud_of(fake_gcs)
    upload_folder(LocalStorage(tmp_path), cloud)
    before = objects(fake_gcs)[file.format(1)]
    cloud.remove(file.format(1))
    upload_folder(LocalStorage(tmp_path), cloud)
    after = objects(fake_gcs)[file.format(1)]
    assert (after.data, after.metadata) == (before.data, before.metadata)
    assert verify(cloud, 2).problems == []


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", ["gone from both", "cut", "flipped"])
def test_no_upload_is_complete_over_an_object_that_changed(tmp_path, fake_gcs, file, change):
    make_folder(tmp_path, 2)
    cloud = cloud_of(fake_gcs)
    upload_folder(LocalStorage(tmp_path), cloud)
    name = file.format(2)
    data = objects(fake_gcs)[name].data
    if change == "gone from both":
        cloud.remove(name)
        (tmp_path / record_name(2)).unlink()
        (tmp_path / name).unlink()
    else:
        cloud.replace(name, data[:-1] if change == "cut" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(CorruptBatchError, match=name):
        upload_folder(LocalStorage(tmp_path), cloud)


class OrderedSpool(LocalStorage):
    """A spool that keeps the order of what is taken from it, and whether the cloud had it."""

    def __init__(self, folder, cloud: GcsStorage):
        super().__init__(folder)
        self.cloud, self.removed = cloud, []

    def remove(self, name):
        number = int(name.rpartition("_")[2].rpartition("/")[2].split(".")[0])
        assert number in CommitLog(self.cloud).batch_ids()
        self.removed.append(name)
        super().remove(name)


def test_a_spool_is_emptied_behind_the_cloud_record(tmp_path, fake_gcs):
    made = make_folder(tmp_path, 3)
    cloud = cloud_of(fake_gcs)
    spool = OrderedSpool(tmp_path, cloud)
    with Uploader(spool, cloud, made.run_id) as uploader:
        uploader.add_left_over()
    assert batch_files(tmp_path) == set()
    assert_cloud_is_whole(fake_gcs, {1, 2, 3})
    for number in (1, 2, 3):
        # Without its record the rest is nothing: it goes first.
        of_unit = [name for name in spool.removed if f"{number:06d}" in name]
        assert of_unit[0] == record_name(number)
        assert len(of_unit) == 4


def test_a_spool_is_kept_while_the_cloud_record_is_not_there(tmp_path, fake_gcs):
    made = make_folder(tmp_path, 2)
    before = batch_files(tmp_path)
    fault = fake_gcs.faults.add(Fault(kind="403", name_contains="_run/commits/"))
    uploader = Uploader(LocalStorage(tmp_path), cloud_of(fake_gcs), made.run_id)
    with pytest.raises(StorageUnavailableError, match="permission"), uploader:
        uploader.add_left_over()
    assert batch_files(tmp_path) == before
    fake_gcs.faults.remove(fault)
    with Uploader(LocalStorage(tmp_path), cloud_of(fake_gcs), made.run_id) as uploader:
        uploader.add_left_over()
    assert batch_files(tmp_path) == set()
    assert_cloud_is_whole(fake_gcs, {1, 2})


def test_what_is_left_over_in_the_spool_and_in_the_cloud_is_taken_away(tmp_path, fake_gcs):
    made = make_folder(tmp_path, 3)
    upload_unit(
        LocalStorage(tmp_path),
        cloud_of(fake_gcs),
        CommitLog(LocalStorage(tmp_path)).read(2),
        made.run_id,
    )  # and then the process died
    with Uploader(LocalStorage(tmp_path), cloud_of(fake_gcs), made.run_id) as uploader:
        uploader.add_left_over()
    assert batch_files(tmp_path) == set()
    assert_cloud_is_whole(fake_gcs, {1, 2, 3})


def test_files_whose_record_went_first_are_taken_away(tmp_path, fake_gcs):
    """A process died while it emptied the spool; what it did not write itself stays."""
    made = make_folder(tmp_path, 2)
    with Uploader(LocalStorage(tmp_path), cloud_of(fake_gcs), made.run_id) as uploader:
        uploader.add(CommitLog(LocalStorage(tmp_path)).read(1))
    commit(tmp_path, 1)
    commit(tmp_path, 3)
    for number in (1, 3):  # the first is in the cloud, the third may yet be committed
        (tmp_path / record_name(number)).unlink()
    others = {"notes_000001.txt", "layer_6_batch_000001.pkl.mine~", "000001.pkl"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    with Uploader(LocalStorage(tmp_path), cloud_of(fake_gcs), made.run_id) as uploader:
        uploader.add_left_over()
    assert {name for name in bytes_of(tmp_path) if "000001" in name} == others
    assert {file.format(3) for file in FILES} <= batch_files(tmp_path)
    assert_cloud_is_whole(fake_gcs, {1, 2})


class OldListing(LocalStorage):
    """What is listed is taken away by another process before it is read."""

    def names(self, prefix=""):
        return sorted({*super().names(prefix), record_name(2)})


def test_a_record_that_goes_away_meanwhile_is_in_the_cloud(tmp_path, fake_gcs):
    made = make_folder(tmp_path, 1)
    with Uploader(OldListing(tmp_path), cloud_of(fake_gcs), made.run_id) as uploader:
        uploader.add_left_over()
    assert_cloud_is_whole(fake_gcs, {1})


def test_two_processes_may_empty_one_spool(tmp_path, fake_gcs):
    made = make_folder(tmp_path, 4)
    records = list(CommitLog(LocalStorage(tmp_path)).records())
    uploaders = [Uploader(LocalStorage(tmp_path), cloud_of(fake_gcs), made.run_id) for _ in "ab"]
    with uploaders[0] as first, uploaders[1] as second:
        for one, other in zip(records, reversed(records), strict=True):
            first.add(one)
            second.add(other)
        first.add_left_over()
        second.add_left_over()
    assert batch_files(tmp_path) == set()
    assert_cloud_is_whole(fake_gcs, {1, 2, 3, 4})


def test_a_failed_upload_fails_the_next_add_and_the_end(tmp_path, fake_gcs):
    made = make_folder(tmp_path, 3)
    first, second, third = list(CommitLog(LocalStorage(tmp_path)).records())
    fake_gcs.faults.add(Fault(kind="403", name_contains="_batch_000001"))
    uploader = Uploader(
        LocalStorage(tmp_path), cloud_of(fake_gcs), made.run_id, spool_bytes=1, threads=1
    )
    with pytest.raises(StorageUnavailableError, match="permission"), uploader:  # noqa: PT012
        uploader.add(first)
        with pytest.raises(StorageUnavailableError, match="permission"):
            uploader.add(second)  # waits for the first, as the spool holds one
        with pytest.raises(StorageUnavailableError, match="permission"):
            uploader.add(third)
    assert_cloud_is_whole(fake_gcs, set())
    assert len(batch_files(tmp_path)) == 12


def test_an_exception_in_the_block_is_not_hidden_by_a_failed_upload(tmp_path, fake_gcs):
    made = make_folder(tmp_path, 1)
    fake_gcs.faults.add(Fault(kind="403"))
    uploader = Uploader(LocalStorage(tmp_path), cloud_of(fake_gcs), made.run_id)
    with pytest.raises(KeyError), uploader:  # noqa: PT012
        uploader.add(CommitLog(LocalStorage(tmp_path)).read(1))
        raise KeyError


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from extraction.run.records import CommitLog
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from extraction.run.identity import begin
from extraction.writing.upload import upload_unit
from tests.extraction.uploads import commit, identity

spool, cloud = LocalStorage(sys.argv[2]), GcsStorage("gs://bucket/run")
run_id = begin(cloud, identity()).run_id
record, puts = commit(spool.folder, 1, taken="first"), iter(range(9))
put = cloud.put_new

def put_new(name, *rest):
    if next(puts) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    put(name, *rest)

cloud.put_new = put_new
upload_unit(spool, cloud, record, run_id)
"""


@pytest.mark.parametrize("puts", [1, 3])  # of two files, the output lines, and the record
def test_what_a_killed_process_uploaded_is_adopted(tmp_path, fake_gcs, monkeypatch, puts):
    root = str(Path(extraction.__file__).parents[1])
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", KILLED, root, str(tmp_path / "lost"), str(puts)]
    assert subprocess.run(command, cwd=root, check=False).returncode == -signal.SIGKILL
    left = {name: stored for name, stored in objects(fake_gcs).items() if name != "_run/run.json"}
    assert set(left) == {file.format(1) for file in FILES[:puts]}

    # The machine and its disk are gone; the unit runs again elsewhere.
    cloud = cloud_of(fake_gcs)
    found = begin(cloud, identity())
    mine = commit(tmp_path / "new", 1, taken="second")
    with Uploader(LocalStorage(tmp_path / "new"), cloud, found.run_id) as uploader:
        uploader.add(mine)
    (record,) = assert_cloud_is_whole(fake_gcs, {1})
    for name, before in left.items():
        assert objects(fake_gcs)[name] == before
    taken = ["first"] * puts + ["second"] * (3 - puts)
    for file, attempt in zip(record.all_files(), taken, strict=True):
        assert attempt.encode() in objects(fake_gcs)[file.file].data
    assert batch_files(tmp_path / "new") == set()
    assert (record.n_rows, record.keys_sha256) == (mine.n_rows, mine.keys_sha256)
    assert record.statistics == mine.statistics
