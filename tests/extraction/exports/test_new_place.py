import errno
import os

import pytest

from extraction.errors import StoreError
from extraction.exports.new_place import local_place, new_place, reserve
from tests.extraction.exports.ragged_runs import entries


def test_it_has_its_name_when_it_is_whole(tmp_path):
    out = tmp_path / "a" / "out"
    with new_place(out) as place:
        place.mkdir()
        (place / "file").write_bytes(b"x")
        place.with_name("scratch").write_bytes(b"y")
        assert not out.exists()
        assert all(name.startswith(".tmp-out-") for name in entries(tmp_path / "a"))
    assert entries(tmp_path / "a") == {"out"}
    assert (out / "file").read_bytes() == b"x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_what_failed(tmp_path, error):
    def fails():
        with new_place(tmp_path / "out") as place:
            place.write_bytes(b"x")
            raise error

    with pytest.raises(error):
        fails()
    assert entries(tmp_path) == set()


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, rename = [], os.rename

    def fsync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2])

    def renamed(source, target):
        assert set(synced) >= {"one", "two", "inner", "out"}
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    with new_place(tmp_path / "out") as place:
        (place / "inner").mkdir(parents=True)
        (place / "one").write_bytes(b"1")
        (place / "inner" / "two").write_bytes(b"2")
    assert synced[-1] == tmp_path.name


def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    def export():
        with new_place(tmp_path / "out") as place:
            place.write_bytes(b"x")
            monkeypatch.setattr(os, "fsync", fsync)

    with pytest.raises(OSError, match="Input/output"):
        export()
    assert entries(tmp_path) == set()


def test_what_exists_is_never_replaced(tmp_path):
    for name, make in (("file", "touch"), ("folder", "mkdir")):
        getattr(tmp_path / name, make)()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(StoreError, match="exists already"), new_place(tmp_path / name):
            raise AssertionError

    def slower():
        with new_place(tmp_path / "out") as place:
            place.write_bytes(b"mine")
            (tmp_path / "out").write_bytes(b"theirs")

    with pytest.raises(StoreError, match="exists already"):
        slower()
    assert (tmp_path / "out").read_bytes() == b"theirs"
    assert entries(tmp_path) == {"file", "folder", "link", "out"}


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    for out, words in (
        ("gs://bucket/x", "local path"),
        (".", "does not name"),
        (tmp_path / "file" / "x", "which is a file"),
    ):
        with pytest.raises(StoreError, match=words):
            local_place(out)
    assert local_place("~/x").is_absolute()


def test_room_is_made_before_anything_is_written(tmp_path, monkeypatch):
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(1 << 20)
    assert path.stat().st_blocks == 0
    reserve(path)
    assert path.stat().st_blocks * 512 >= 1 << 20
    for number, fails in ((errno.EOPNOTSUPP, False), (errno.ENOSPC, True)):

        def posix_fallocate(*args, number=number):
            raise OSError(number, "no")

        monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
        if fails:
            with pytest.raises(OSError, match="no"):
                reserve(path)
        else:
            reserve(path)
