import os
import stat

import pytest

from extraction import StoreError
from extraction.storage import file_operations, open_storage
from extraction.storage.local import LocalStorage


def test_names_are_sorted_and_temporaries_hidden(tmp_path):
    storage = LocalStorage(tmp_path)
    assert storage.names() == []
    for name in ("b", "metadata.json", "a"):
        storage.put_new(name, b"")
    file_operations.write_temporary(tmp_path, b"left by a killed process")
    assert storage.names() == ["a", "b", "metadata.json"]


def test_folder_is_made_with_the_first_file(tmp_path):
    folder = tmp_path / "runs" / "one"
    storage = LocalStorage(folder)
    assert storage.names() == []
    assert list(tmp_path.iterdir()) == []
    storage.put_new("a", b"1")
    assert (folder / "a").read_bytes() == b"1"
    LocalStorage(tmp_path / "two").replace("b", b"2")
    assert (tmp_path / "two" / "b").read_bytes() == b"2"


def test_a_new_folder_is_made_durable_too(tmp_path, monkeypatch):
    synced, real = set(), os.fsync

    def record(descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            synced.add(status.st_ino)
        real(descriptor)

    monkeypatch.setattr(file_operations.os, "fsync", record)
    LocalStorage(tmp_path / "runs" / "one").put_new("a", b"1")
    needed = [tmp_path, tmp_path / "runs", tmp_path / "runs" / "one"]  # each holds a new name
    assert [folder.name for folder in needed if folder.stat().st_ino not in synced] == []


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    LocalStorage("~/run").put_new("a", b"1")
    assert (tmp_path / "run" / "a").read_bytes() == b"1"


def test_put_new_refuses_what_is_there_and_replace_does_not(tmp_path):
    storage = LocalStorage(str(tmp_path))
    storage.put_new("a", b"old")
    with pytest.raises(FileExistsError):
        storage.put_new("a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    storage.replace("a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert storage.names() == ["a"]


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="is a file"):
        LocalStorage(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("write", [LocalStorage.put_new, LocalStorage.replace])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, write):
    storage = LocalStorage(tmp_path / "runs" / "one")
    (tmp_path / "runs").write_text("mine")  # comes into the way only now
    with pytest.raises(StoreError, match="runs"):
        write(storage, "a", b"1")
    assert (tmp_path / "runs").read_text() == "mine"


@pytest.mark.parametrize("address", ["", "  "])
def test_an_empty_name_is_not_the_current_folder(address):
    with pytest.raises(StoreError, match="empty"):
        open_storage(address)
