import pytest

from extraction.errors import StorageUnavailableError, StoreError
from extraction.maintenance.selftest import selftest
from extraction.storage.local import LocalStorage
from tests.extraction.bucket_environment import bucket  # noqa: F401
from tests.fake_gcs.faults import Fault


def run(address) -> tuple[bool, list[str]]:
    lines: list[str] = []
    return selftest(str(address), lines.append), lines


def test_a_good_bucket_passes(bucket):  # noqa: F811
    bucket.put("bucket", "a/mine", b"1")
    passed, lines = run("gs://bucket/a")
    assert passed
    assert [line for line in lines[1:] if not line.startswith("passed  ")] == []
    assert len(lines) == 13
    assert set(bucket.objects("bucket")) == {"a/mine"}
    written = {name for name in bucket.writes("bucket") if name != "a/mine"}
    assert all(name.startswith("a/_selftest-") for name in written)


def test_a_bucket_that_adds_attributes_passes(bucket, monkeypatch):  # noqa: F811
    from tests.fake_gcs import objects

    insert = objects.Store.insert

    def insert_and_label(self, *arguments, fields, **more):
        kept = fields.get("metadata", {}) | {"added-by": "the bucket"}
        return insert(self, *arguments, fields=fields | {"metadata": kept}, **more)

    monkeypatch.setattr(objects.Store, "insert", insert_and_label)
    passed, lines = run("gs://bucket/a")
    assert passed, lines


@pytest.mark.parametrize("address", ["abfss://bucket/a", "gs:/bucket/a", "gs://"])
def test_an_address_of_no_storage_is_refused(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="gs://bucket/prefix"):
        selftest(address)
    assert list(tmp_path.iterdir()) == []


def test_the_listing_is_read_in_pages(bucket):  # noqa: F811
    run("gs://bucket")
    pages = [r for r in bucket.requests if "maxResults=3" in r.target]
    assert len(pages) == 3


def test_a_good_folder_passes(tmp_path):
    (tmp_path / "mine").touch()
    passed, lines = run(tmp_path)
    assert passed
    assert all(line.startswith("passed") for line in lines[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def failed(lines: list[str]) -> str:
    return "\n".join(line for line in lines if line.startswith("FAILED"))


def test_a_bucket_that_overwrites_is_found_out(bucket, monkeypatch):  # noqa: F811
    # As the emulators do that ignore preconditions.
    from tests.fake_gcs import objects

    monkeypatch.setattr(objects.Preconditions, "check", lambda *args, **kwargs: None)
    passed, lines = run("gs://bucket/a")
    assert not passed
    assert "a second write under the same name is refused: it was accepted" in failed(lines)
    assert "of two writers at a time one wins" in failed(lines)
    assert set(bucket.objects("bucket")) == set()


def test_a_folder_that_overwrites_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalStorage, "put_new", LocalStorage.replace)
    monkeypatch.setattr(LocalStorage, "get", lambda self, name: b"something else")
    passed, lines = run(tmp_path)
    assert not passed
    assert "it was accepted" in failed(lines)
    assert "the content is b'something else'" in failed(lines)
    assert "it is still there" in failed(lines)


def test_a_file_system_without_links_is_found_out(tmp_path, monkeypatch):
    def link(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", link)
    passed, lines = run(tmp_path)
    assert not passed
    assert "without hard links" in failed(lines)


def test_a_missing_bucket_is_refused(bucket):  # noqa: F811
    with pytest.raises(StoreError, match="does not exist"):
        selftest("gs://none/a")


def test_missing_permission_is_refused_before_anything_is_written(bucket):  # noqa: F811
    bucket.faults.add(Fault(kind="403"))
    with pytest.raises(StorageUnavailableError, match="permission"):
        selftest("gs://bucket/a")


def test_a_bucket_where_nothing_can_be_deleted_is_found_out(bucket):  # noqa: F811
    bucket.faults.add(Fault(kind="403", method="DELETE"))
    passed, lines = run("gs://bucket/a")
    assert not passed
    assert "storage.objects.create, storage.objects.get" in failed(lines)
    assert "all files are removed again" in failed(lines)


def test_a_bucket_where_nothing_can_be_written_is_found_out(bucket):  # noqa: F811
    bucket.faults.add(Fault(kind="403", method="POST"))
    passed, lines = run("gs://bucket/a")
    assert not passed
    assert "permission" in failed(lines)
    assert len(lines) == 3  # it stops there
