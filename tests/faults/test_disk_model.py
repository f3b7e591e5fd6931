"""The model of a disk permits what an operating system permits, and no more."""

import os
import random

from tests.faults.disk_model import Disk, lay_out
from tests.faults.faulty_os import FaultyOs
from tests.faults.independent_reading import files_of


def states(root, work, most: int = 1000) -> list[dict[str, bytes]]:
    """What a crash may leave at any moment of some work, each state once."""
    disk = Disk(root)

    def after(operation) -> None:
        path = operation.target or operation.path
        content = None
        if operation.name in {"write", "fsync", "link", "replace"} and os.path.isfile(path):
            with open(path, "rb") as stream:
                content = stream.read()
        disk.hear(("operation", operation, content))

    work(FaultyOs(after=after), root)
    found = []
    for crash in disk.crashes(most, random.Random(1)):
        if crash.tree not in found:
            found.append(crash.tree)
    return found


def write(system, path, data: bytes, *, sync: bool) -> None:
    descriptor = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    system.write(descriptor, data)
    if sync:
        system.fsync(descriptor)
    system.close(descriptor)


def sync_folder(system, folder) -> None:
    descriptor = system.open(folder, os.O_RDONLY)
    system.fsync(descriptor)
    system.close(descriptor)


def test_a_file_that_was_never_synced_may_be_gone_empty_torn_or_whole(tmp_path):
    found = states(tmp_path, lambda system, root: write(system, root / "a", b"abcd", sync=False))
    assert found == [{}, {"a": b""}, {"a": b"ab"}, {"a": b"abcd"}]


def test_a_synced_file_is_gone_or_whole_and_its_synced_folder_keeps_it(tmp_path):
    def work(system, root):
        write(system, root / "a", b"abcd", sync=True)
        system.mkdir(root / "folder")

    found = states(tmp_path, work)
    assert {"folder/": b""} in found  # entries of a folder reach the disk in any order
    assert {"a": b"abcd", "folder/": b""} in found
    for path in (tmp_path / "a", tmp_path / "folder"):
        path.rmdir() if path.is_dir() else path.unlink()

    def synced(system, root):
        write(system, root / "a", b"abcd", sync=True)
        sync_folder(system, root)
        system.mkdir(root / "folder")

    last = states(tmp_path, synced)[-2:]
    assert last == [{"a": b"abcd"}, {"a": b"abcd", "folder/": b""}]


def test_a_rename_is_whole_but_may_bring_a_torn_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def work(system, root):
        write(system, root / "b", b"new!", sync=False)
        system.replace(root / "b", root / "a")

    contents = {tree.get("a") for tree in states(tmp_path, work)}
    assert contents == {b"old", b"", b"ne", b"new!"}

    (tmp_path / "a").write_bytes(b"old")

    def synced(system, root):
        write(system, root / "b", b"new!", sync=True)
        system.replace(root / "b", root / "a")

    assert {tree.get("a") for tree in states(tmp_path, synced)} == {b"old", b"new!"}


def test_a_link_is_lost_without_its_folders_sync(tmp_path):
    def work(system, root):
        write(system, root / "t", b"data", sync=True)
        system.link(root / "t", root / "a")
        system.unlink(root / "t")

    found = states(tmp_path, work)
    assert {"a": b"data"} in found
    assert {} in found
    assert {"t": b"data"} in found


def test_what_lies_in_a_lost_folder_is_lost(tmp_path):
    def work(system, root):
        system.mkdir(root / "f")
        write(system, root / "f" / "a", b"data", sync=True)
        sync_folder(system, root / "f")

    found = states(tmp_path, work)
    assert {} in found
    assert {"f/": b"", "f/a": b"data"} in found
    assert all("f/" in tree for tree in found if "f/a" in tree)


def test_writes_past_the_watched_functions_are_seen(tmp_path):
    def streamed(system, root):
        write(system, root / "t", b"", sync=True)
        (root / "t").write_bytes(b"streamed")
        system.replace(root / "t", root / "a")

    contents = {tree.get("a") for tree in states(tmp_path, streamed)}
    assert contents == {None, b"", b"stre", b"streamed"}


def test_many_states_are_drawn_with_the_extremes(tmp_path):
    def work(system, root):
        for n in range(12):
            write(system, root / f"{n}", b"x", sync=False)

    found = states(tmp_path, work, most=20)
    assert {} in found
    assert {f"{n}": b"x" for n in range(12)} in found
    assert len(found) < 12 * 3 * 20


def test_a_tree_is_laid_out_as_it_is(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"data")
    for tree in Disk(tmp_path).crashes(10, random.Random(1)):
        raise AssertionError(f"nothing happened, but {tree}")
    lay_out({"folder/": b"", "folder/a": b"data"}, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == {"folder/a": b"data"}
