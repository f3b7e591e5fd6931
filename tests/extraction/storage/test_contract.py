"""What every back end promises, and what Google Cloud Storage does under faults."""

import contextlib
import pickle

import pytest

from extraction.checksums import crc32c
from extraction.errors import StorageUnavailableError, StoreError
from extraction.storage import FileInfo, Storage, open_storage
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from extraction.storage.s3 import S3Storage
from tests.fake_gcs.faults import Fault
from tests.fake_gcs.fixture import fake_gcs  # noqa: F401


@pytest.fixture(params=["local", "gcs", "gcs, no prefix", "s3", "s3, no prefix"])
def storage(request, tmp_path, fake_gcs) -> Storage:  # noqa: F811
    if request.param == "local":
        return LocalStorage(tmp_path / "run")
    if request.param.startswith("s3"):
        request.getfixturevalue("moto_s3")
        return S3Storage("s3://bucket" if "no prefix" in request.param else "s3://bucket/a/run")
    address = "gs://bucket" if "no prefix" in request.param else "gs://bucket/a/run"
    return GcsStorage(address, fake_gcs.client())


def test_what_was_put_is_there(storage):
    assert storage.names() == []
    assert storage.infos("_run/") == {}
    storage.put_new("b.bin", [b"one", memoryview(b"two")])
    storage.put_new("a.bin", b"")
    storage.put_new("_run/commits/000001.json", b"{}")
    assert storage.names() == ["a.bin", "b.bin"]
    assert storage.names("_run/commits/") == ["_run/commits/000001.json"]
    assert storage.get("b.bin") == b"onetwo"
    assert storage.get("a.bin") == b""
    assert {name: info.bytes for name, info in storage.infos().items()} == {"a.bin": 0, "b.bin": 6}


@pytest.mark.parametrize(("start", "length"), [(0, 3), (2, 3), (4, 9), (6, 1), (9, 9), (1, 0)])
def test_ranges_end_at_the_end(storage, start, length):
    storage.put_new("x", b"onetwo")
    assert storage.get_range("x", start, length) == b"onetwo"[start : start + length]


def test_a_published_file_is_not_overwritten(storage):
    storage.put_new("x", b"first")
    with pytest.raises(FileExistsError):
        storage.put_new("x", b"other")
    assert storage.get("x") == b"first"


def test_what_is_derived_is_replaced(storage):
    storage.replace("x", b"first")
    storage.replace("x", b"second")
    assert storage.get("x") == b"second"


def test_several_files_are_replaced_together(storage):
    storage.replace("x", b"first")
    storage.replace_all([])
    storage.replace_all([("x", b"second"), ("_run/y", [b"thi", memoryview(b"rd")])])
    assert (storage.get("x"), storage.get("_run/y")) == (b"second", b"third")


def test_removing_twice_is_no_error(storage):
    storage.put_new("x", b"1")
    storage.remove("x")
    storage.remove("x")
    assert storage.names() == []


def test_missing_files_are_file_not_found(storage):
    with pytest.raises(FileNotFoundError):
        storage.get("x")
    with pytest.raises(FileNotFoundError):
        storage.get_range("x", 0, 4)


def test_many_files_are_listed_whole(fake_gcs):  # noqa: F811
    for number in range(2300):  # more than two of the server's pages
        fake_gcs.put("bucket", f"run/{number:06d}", b"x")
    assert len(GcsStorage("gs://bucket/run", fake_gcs.client()).names()) == 2300


def test_addresses_choose_the_back_end(tmp_path, fake_gcs, monkeypatch):  # noqa: F811
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    assert isinstance(open_storage(tmp_path), LocalStorage)
    assert isinstance(open_storage("gs://bucket/x"), GcsStorage)
    assert isinstance(open_storage("s3://bucket/x"), S3Storage)
    with pytest.raises(StoreError, match="abfss"):
        open_storage("abfss://bucket/x")
    with pytest.raises(StoreError, match="gs://bucket/prefix"):
        open_storage("gs://")
    with pytest.raises(StoreError, match="s3://bucket/prefix"):
        open_storage("s3://")


def test_s3_lists_whole_and_knows_its_own_objects(moto_s3):
    storage = S3Storage("s3://bucket/run")
    for number in range(1100):  # more than a page
        moto_s3.client.put_object(Bucket="bucket", Key=f"run/many/{number:06d}", Body=b"x")
    assert len(storage.names("many/")) == 1100
    storage.put_new("x", b"mine", {"run_id": "r", "sha256": "s"})
    storage.put_new("x", b"mine")  # as after an answer that was lost
    with pytest.raises(FileExistsError):
        storage.put_new("x", b"them")
    assert storage.attributes("x")["run_id"] == "r"
    assert storage.info("x") == FileInfo(bytes=4, crc32c=crc32c(b"mine"))
    large = bytes(range(256)) * (40 << 12)  # in parts
    storage.put_new("large", large)
    assert storage.get("large") == large
    with pytest.raises(FileExistsError):
        storage.put_new("large", large[:-1])
    again = pickle.loads(pickle.dumps(storage))
    assert again.get("x") == b"mine"


def test_an_s3_bucket_that_cannot_be_used_is_named(moto_s3, monkeypatch):
    storage = S3Storage("s3://nobody/run")
    for use in (storage.names, lambda: storage.get("x"), lambda: storage.put_new("x", b"1")):
        with pytest.raises(StoreError, match="s3://nobody/run: the bucket does not exist"):
            use()
    for address in ("s3://", "s4://bucket"):
        with pytest.raises(StoreError, match="must look like s3://bucket/prefix"):
            S3Storage(address)


TRANSIENT = ["408", "429", "500", "502", "503", "504",
             "reset_before_body", "reset_in_body", "503_in_body", "reset_before_commit",
             "reset_after_commit"]  # fmt: skip


@pytest.mark.parametrize("kind", TRANSIENT)
@pytest.mark.parametrize("size", [10, 9 << 20], ids=["one request", "resumable"])
def test_a_transient_fault_costs_nothing(kind, size, fake_gcs):  # noqa: F811
    storage = GcsStorage("gs://bucket/run", fake_gcs.client(), deadline=30)
    within = {"after_bytes": 5} if "in_body" in kind else {}
    fake_gcs.faults.add(Fault(kind=kind, path_contains="/upload/", times=1, **within))
    data = bytes(range(256)) * (size // 256 + 1)
    storage.put_new("x", data)
    assert storage.get("x") == data
    assert fake_gcs.writes("bucket") == {"run/x": 1}


@pytest.mark.parametrize("size", [10, 9 << 20], ids=["one request", "resumable"])
@pytest.mark.parametrize("write", [GcsStorage.put_new, GcsStorage.replace])
def test_an_upload_whose_answer_is_cut_is_asked_for(size, write, fake_gcs):  # noqa: F811
    storage = GcsStorage("gs://bucket/run", fake_gcs.client(), deadline=30)
    cut = fake_gcs.faults.add(Fault(kind="cut", path_contains="/upload/", after_bytes=20, times=2))
    data = bytes(range(256)) * (size // 256 + 1)
    write(storage, "x", data)
    assert fake_gcs.faults.hits(cut) >= 1
    assert storage.get("x") == data
    assert fake_gcs.writes("bucket") == {"run/x": 1}


def test_an_answer_cut_under_another_s_object_is_no_success(fake_gcs):  # noqa: F811
    fake_gcs.put("bucket", "run/x", b"theirs")
    storage = GcsStorage("gs://bucket/run", fake_gcs.client(), deadline=30)
    fake_gcs.faults.add(Fault(kind="cut", path_contains="/upload/", after_bytes=0, times=1))
    with pytest.raises(FileExistsError):
        storage.put_new("x", b"mine!!")
    assert storage.get("x") == b"theirs"


@pytest.mark.parametrize("after", [0, 1, 30])
def test_other_answers_that_are_cut_are_asked_for_again(after, fake_gcs):  # noqa: F811
    storage = GcsStorage("gs://bucket/run", fake_gcs.client(), deadline=30)
    storage.put_new("x", b"1")
    for ask, found in (
        (storage.names, ["x"]),
        (lambda: storage.info("x").bytes, 1),
        (storage.missing_permissions, []),
    ):
        cut = fake_gcs.faults.add(Fault(kind="cut", after_bytes=after, times=1))
        assert ask() == found
        assert fake_gcs.faults.hits(cut) == 1


def test_damage_on_the_way_is_found(fake_gcs):  # noqa: F811
    storage = GcsStorage("gs://bucket/run", fake_gcs.client(), deadline=5)
    storage.put_new("x", b"right")
    fake_gcs.faults.add(Fault(kind="corrupt_download", name_contains="x", times=1))
    assert storage.get("x") == b"right"
    with_fault = fake_gcs.faults.add(Fault(kind="corrupt_download", name_contains="x"))
    with pytest.raises((StorageUnavailableError, StoreError), match="checksum"):
        storage.get("x")
    fake_gcs.faults.remove(with_fault)
    fake_gcs.faults.add(Fault(kind="corrupt_upload", name_contains="y", times=1))
    with contextlib.suppress(StorageUnavailableError):
        storage.put_new("y", b"right")
    assert storage.names() in (["x"], ["x", "y"])
    if "y" in storage.names():
        assert storage.get("y") == b"right"


def test_other_content_under_the_name_is_left(fake_gcs):  # noqa: F811
    fake_gcs.put("bucket", "run/x", b"theirs")
    storage = GcsStorage("gs://bucket/run", fake_gcs.client())
    with pytest.raises(FileExistsError):
        storage.put_new("x", b"mine!!")
    assert storage.get("x") == b"theirs"
    storage.put_new("x", b"theirs")  # the same content again is our own retry
    assert storage.info("x").bytes == 6


@pytest.mark.parametrize(
    ("kind", "words"), [("401", "credentials"), ("403", "permission"), ("404", "bucket")]
)
def test_what_will_not_mend_itself_fails_at_once(kind, words, fake_gcs):  # noqa: F811
    storage = GcsStorage("gs://bucket/run", fake_gcs.client())
    if kind == "404":
        storage = GcsStorage("gs://none/run", fake_gcs.client())
    else:
        fake_gcs.faults.add(Fault(kind=kind))
    with pytest.raises(StoreError, match=words):
        storage.names()
    with pytest.raises(StoreError, match=words):
        storage.put_new("x", b"1")


def test_permissions_that_are_not_granted_are_told(fake_gcs):  # noqa: F811
    storage = GcsStorage("gs://bucket/run", fake_gcs.client(), deadline=5)
    assert storage.missing_permissions() == []
    for granted, missing in (
        ({"storage.objects.get", "storage.objects.list"}, ["create", "delete"]),
        (set(), ["create", "get", "list", "delete"]),
    ):
        fake_gcs.store.bucket("bucket").permissions = granted
        assert storage.missing_permissions() == [f"storage.objects.{name}" for name in missing]
    assert not fake_gcs.objects("bucket")
    none = GcsStorage("gs://none/run", fake_gcs.client(), deadline=5)
    with pytest.raises(StoreError, match="the bucket does not exist"):
        none.missing_permissions()


def test_an_outage_longer_than_the_deadline_is_told(fake_gcs):  # noqa: F811
    storage = GcsStorage("gs://bucket/run", fake_gcs.client(), deadline=2)
    with fake_gcs.outage(), pytest.raises(StorageUnavailableError, match="could not be used"):
        storage.put_new("x", b"1")
    storage.put_new("x", b"1")
    assert fake_gcs.writes("bucket") == {"run/x": 1}
