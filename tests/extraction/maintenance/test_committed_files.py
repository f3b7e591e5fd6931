import pytest

from extraction.checksums import crc32c, sha256
from extraction.errors import ConflictError, CorruptBatchError, ExistingRunError
from extraction.maintenance.committed_files import locked, publish_once, read_committed
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage


@pytest.fixture(params=["local", "gcs"])
def storage(request, tmp_path, fake_gcs):
    if request.param == "local":
        return LocalStorage(tmp_path)
    return GcsStorage("gs://bucket/run", fake_gcs.client())


def test_what_is_published_is_vouched_for_and_can_be_repeated(storage):
    for _ in range(2):
        file = publish_once(storage, "x", [b"one", memoryview(b"two")])
        assert (file.file, file.bytes) == ("x", 6)
        assert (file.crc32c, file.sha256) == (crc32c(b"onetwo"), sha256(b"onetwo"))
    assert read_committed(storage, file) == b"onetwo"
    with pytest.raises(ConflictError, match="x exists with other content"):
        publish_once(storage, "x", b"other!")
    assert storage.get("x") == b"onetwo"


@pytest.mark.parametrize(
    ("now", "words"), [(None, "missing"), (b"onetwo.", "7 bytes"), (b"onetwO", "crc32c")]
)
def test_what_is_not_as_vouched_for_is_refused(storage, now, words):
    file = publish_once(storage, "x", b"onetwo")
    if now is None:
        storage.remove("x")
    else:
        storage.replace("x", now)
    with pytest.raises(CorruptBatchError, match=words):
        read_committed(storage, file)


def test_a_folder_is_locked_for_one(tmp_path):
    storage = LocalStorage(tmp_path)
    with locked(storage), pytest.raises(ExistingRunError), locked(LocalStorage(tmp_path)):
        pass
    with locked(storage):
        pass
