"""Google's own client against the fake: what the storage back end relies on."""

import concurrent.futures
import contextlib
import time

import pytest
from google.api_core import exceptions
from google.cloud import storage

from tests.fake_gcs.objects import crc32c
from tests.fake_gcs.server import FakeGcs

MEBIBYTE = 1024 * 1024


def test_put_if_absent(fake_gcs):
    bucket = fake_gcs.client().bucket("bucket")
    blob = bucket.blob("dir/x y+%41")
    blob.metadata = {"run": "7"}
    blob.upload_from_string(b"first", if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob(blob.name).upload_from_string(b"second", if_generation_match=0)
    stored = fake_gcs.objects("bucket")[blob.name]
    assert stored == (blob.generation, b"first", crc32c(b"first"), {"run": "7"}, 1)
    assert [exchange.status for exchange in fake_gcs.requests] == [200, 412]
    blob.reload()
    assert (blob.size, blob.metadata, blob.crc32c) == (5, {"run": "7"}, crc32c(b"first"))


def test_compare_and_swap(fake_gcs):
    blob = fake_gcs.client().bucket("bucket").blob("metadata.json")
    blob.upload_from_string(b"1", if_generation_match=0)
    first = blob.generation
    blob.upload_from_string(b"2", if_generation_match=first)
    with pytest.raises(exceptions.PreconditionFailed):
        blob.upload_from_string(b"3", if_generation_match=first)
    assert fake_gcs.objects("bucket")["metadata.json"].data == b"2"
    assert fake_gcs.writes("bucket") == {"metadata.json": 2}


def test_resumable_upload_and_downloads(fake_gcs):
    data = bytes(range(256)) * (10 * MEBIBYTE // 256)
    blob = fake_gcs.client().bucket("bucket").blob("ten")
    blob.chunk_size = 4 * MEBIBYTE
    blob.upload_from_string(data, if_generation_match=0)
    assert [exchange.status for exchange in fake_gcs.requests] == [200, 308, 308, 200]
    assert fake_gcs.bytes_held == len(data)
    blob = fake_gcs.client().bucket("bucket").blob("ten")
    assert blob.download_as_bytes(checksum="crc32c") == data
    assert blob.download_as_bytes(checksum="md5") == data
    assert blob.download_as_bytes(start=1000, end=1999) == data[1000:2000]
    assert blob.download_as_bytes(start=len(data) - 5) == data[-5:]
    with pytest.raises(exceptions.RequestRangeNotSatisfiable):
        blob.download_as_bytes(start=len(data))
    blob.chunk_size = 4 * MEBIBYTE
    assert blob.download_as_bytes() == data


def test_resumable_upload_over_an_existing_object(fake_gcs):
    fake_gcs.put("bucket", "ten", b"there already")
    blob = fake_gcs.client().bucket("bucket").blob("ten")
    with pytest.raises(exceptions.PreconditionFailed):
        blob.upload_from_string(bytes(9 * MEBIBYTE), if_generation_match=0)
    assert fake_gcs.objects("bucket")["ten"].data == b"there already"
    assert fake_gcs.bytes_held == len(b"there already")


def test_streams_of_unknown_size(fake_gcs):
    blob = fake_gcs.client().bucket("bucket").blob("stream")
    blob.chunk_size = MEBIBYTE // 4
    with blob.open("wb", if_generation_match=0) as stream:
        for _ in range(5):
            stream.write(b"x" * 100_000)
    assert fake_gcs.objects("bucket")["stream"].data == b"x" * 500_000
    with blob.open("rb") as stream:
        assert stream.read() == b"x" * 500_000


def test_lists(fake_gcs):
    for name in ("run/1/a", "run/1/b", "run/2/a", "run/top", "other"):
        fake_gcs.put("bucket", name, name.encode())
    client = fake_gcs.client()
    assert [blob.name for blob in client.list_blobs("bucket", prefix="run/", page_size=2)] == [
        "run/1/a",
        "run/1/b",
        "run/2/a",
        "run/top",
    ]
    assert len(fake_gcs.requests) == 2
    below = client.list_blobs("bucket", prefix="run/", delimiter="/", page_size=1)
    assert [blob.name for blob in below] == ["run/top"]
    assert below.prefixes == {"run/1/", "run/2/"}
    sizes = {blob.name: (blob.size, blob.crc32c) for blob in client.list_blobs("bucket")}
    assert sizes["other"] == (5, crc32c(b"other"))
    assert [blob.name for blob in client.list_blobs("bucket", max_results=3)][-1] == "run/1/b"


def test_deletes_and_existence(fake_gcs):
    generation = fake_gcs.put("bucket", "x", b"data")
    bucket = fake_gcs.client().bucket("bucket")
    blob = bucket.blob("x")
    assert blob.exists()
    with pytest.raises(exceptions.PreconditionFailed):
        blob.delete(if_generation_match=generation - 1)
    blob.delete(if_generation_match=generation)
    assert not blob.exists()
    with pytest.raises(exceptions.NotFound):
        blob.delete()
    assert fake_gcs.objects("bucket") == {}
    assert fake_gcs.writes("bucket") == {"x": 1}
    blob.upload_from_string(b"again", if_generation_match=0)
    assert blob.generation > generation


def test_buckets(fake_gcs):
    client = fake_gcs.client()
    assert client.bucket("bucket").exists()
    assert client.lookup_bucket("absent") is None
    with pytest.raises(exceptions.NotFound):
        client.get_bucket("absent")
    with pytest.raises(exceptions.NotFound):
        client.bucket("absent").blob("x").upload_from_string(b"data")
    assert client.create_bucket("second").name == "second"
    assert client.get_bucket("second").project_number == 123456789


def test_patches_and_copies(fake_gcs):
    bucket = fake_gcs.client().bucket("bucket")
    blob = bucket.blob("x")
    blob.upload_from_string(b"data")
    blob.metadata = {"checked": "yes"}
    blob.patch(if_metageneration_match=1)
    with pytest.raises(exceptions.PreconditionFailed):
        blob.patch(if_metageneration_match=1)
    bucket.copy_blob(blob, bucket, "copy", if_generation_match=0)
    assert bucket.blob("rewritten").rewrite(blob, if_generation_match=0) == (None, 4, 4)
    kept = fake_gcs.objects("bucket")
    assert {name: stored.metadata for name, stored in kept.items()} == {
        name: {"checked": "yes"} for name in ("copy", "rewritten", "x")
    }


def test_sixteen_writers_at_once(fake_gcs):
    client = fake_gcs.client()

    def write(writer: int) -> int:
        won = 0
        for i in range(12):
            try:
                data = bytes([writer]) * 50_000
                client.bucket("bucket").blob(f"x{i}").upload_from_string(
                    data, if_generation_match=0
                )
                won += 1
            except exceptions.PreconditionFailed:
                pass
        return won

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(write, range(16))) == 12
    assert set(fake_gcs.writes("bucket").values()) == {1}
    assert all(len(set(stored.data)) == 1 for stored in fake_gcs.objects("bucket").values())
    generations = [stored.generation for stored in fake_gcs.objects("bucket").values()]
    assert len(set(generations)) == 12


def test_clients_made_elsewhere_find_it_by_the_environment(fake_gcs, monkeypatch):
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(storage.Client()) as client:
        client.bucket("bucket").blob("x").upload_from_string(b"data")
    assert fake_gcs.objects("bucket")["x"].data == b"data"
    assert len(fake_gcs.requests) == 1  # none in the background


def test_it_stops_at_once_whatever_its_clients_do():
    with FakeGcs() as server:
        server.create_bucket("bucket")
        server.client().bucket("bucket").blob("x").upload_from_string(b"data")  # kept alive
        started = time.monotonic()
    assert time.monotonic() - started < 1
