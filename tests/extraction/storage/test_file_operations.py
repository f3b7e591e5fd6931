import contextlib
import errno
import itertools
import os
import resource
import stat
import threading
from pathlib import Path

import pytest

from extraction.errors import StoreError
from extraction.storage import file_operations
from extraction.storage.file_operations import (
    TEMPORARY_PREFIX,
    UNSYNCED_FILES,
    publish_all_over,
    publish_new,
    publish_over,
    publish_temporary,
    sync_and_close,
    write_temporary,
)
from tests.extraction.failing_os import FailingOs

OLD, NEW = b"old" * 10_000, b"new" * 20_000


def publish_among_all(path, data) -> None:
    """One file by way of the function for several."""
    publish_all_over([(path, data)])


PUBLISHERS = [publish_new, publish_over, publish_among_all]
NAMING = {publish_new: "link", publish_over: "replace", publish_among_all: "replace"}


def temporaries(folder) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]


@contextlib.contextmanager
def failing(call: str, n: int):
    """Lets the n-th call of a function of `os` fail; `write` fails for real, and half way."""
    if call == "write":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(NEW) // 2, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    real, calls = getattr(os, call), itertools.count(1)

    def fail_once(*args, **kwargs):
        if next(calls) == n:
            raise OSError(errno.EIO, "injected")
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_operations.os, call, fail_once)
        yield


@pytest.mark.parametrize("publish", PUBLISHERS)
@pytest.mark.parametrize("data", [b"", b"x", NEW])
def test_published_bytes_are_there_and_nothing_else_is(tmp_path, publish, data):
    publish(tmp_path / "file", data)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("publish", PUBLISHERS)
def test_permissions_are_the_users_choice(tmp_path, publish):
    before = os.umask(0o027)
    try:
        publish(tmp_path / "file", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_publish_new_refuses_to_overwrite(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(FileExistsError):
        publish_new(tmp_path / "file", NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == OLD


@pytest.mark.parametrize("publish", [publish_over, publish_among_all])
def test_publish_over_replaces(tmp_path, publish):
    (tmp_path / "file").write_bytes(OLD)
    publish(tmp_path / "file", NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == NEW


# fsync is called for the file and then for its folder; open is called for the folder.
@pytest.mark.parametrize(
    ("call", "n"),
    [("write", 1), ("fsync", 1), ("link", 1), ("unlink", 1), ("open", 1), ("fsync", 2)],
    ids=lambda value: str(value),
)
def test_publish_new_shows_all_or_nothing(tmp_path, call, n):
    raised = False
    with failing(call, n):
        try:
            publish_new(tmp_path / "file", NEW)
        except OSError:
            raised = True
    if raised:
        assert not (tmp_path / "file").exists()
    else:
        assert call == "unlink"  # the only step that may fail without harm
        assert (tmp_path / "file").read_bytes() == NEW
    if call != "unlink":
        assert temporaries(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_refused_by_name(tmp_path, monkeypatch, code):
    system = FailingOs(lambda _, name: code if name == "link" else None)
    monkeypatch.setattr(file_operations, "os", system)
    with pytest.raises(StoreError, match=r"without hard links .* gcs_bucket"):
        publish_new(tmp_path / "file", NEW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("publish", [publish_over, publish_among_all])
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("call", "n", "before_the_name"),
    [
        ("write", 1, True),
        ("fsync", 1, True),
        ("replace", 1, True),
        ("open", 1, False),
        ("fsync", 2, False),
    ],
)
def test_publish_over_leaves_old_or_new(tmp_path, publish, call, n, before_the_name, exists):
    if exists:
        (tmp_path / "file").write_bytes(OLD)
    with failing(call, n), pytest.raises(OSError):  # noqa: PT011
        publish(tmp_path / "file", NEW)
    seen = (tmp_path / "file").read_bytes() if (tmp_path / "file").exists() else None
    assert seen == (OLD if exists else None) or (seen == NEW and not before_the_name)
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize("publish", PUBLISHERS)
def test_an_interrupt_while_writing_leaves_nothing(tmp_path, publish, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(file_operations.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "file", NEW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("publish", "naming"), NAMING.items())
@pytest.mark.parametrize("data", [b"x", NEW])
def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path, publish, naming, data, monkeypatch
):
    events = []

    def recording(call):
        real = getattr(os, call)

        def record(*args):
            if call == "fsync":
                status = os.fstat(args[0])
                folder = stat.S_ISDIR(status.st_mode)
                events.append(("fsync", status.st_ino, None if folder else status.st_size))
            else:
                events.append((call, os.stat(args[0]).st_ino, os.fspath(args[1])))
            return real(*args)

        monkeypatch.setattr(file_operations.os, call, record)

    for call in ("fsync", "link", "replace", "rename"):
        recording(call)
    publish(tmp_path / "file", data)
    file, folder = os.stat(tmp_path / "file").st_ino, os.stat(tmp_path).st_ino
    assert events == [
        ("fsync", file, len(data)),  # written to the last byte by then
        (naming, file, str(tmp_path / "file")),
        ("fsync", folder, None),
    ]


def test_a_reader_never_sees_a_torn_file(tmp_path):
    path, versions = tmp_path / "file", 150
    contents = [bytes([number]) * (50_000 + 1000 * number) for number in range(versions)]
    publish_over(path, contents[0])
    seen, torn, done = set(), [], threading.Event()

    def poll():
        while not done.is_set():
            data = path.read_bytes()
            if data in contents:
                seen.add(len(data))
            else:
                torn.append(len(data))

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for data in contents:
            publish_over(path, data)
    finally:
        done.set()
        reader.join()
    assert torn == []
    assert len(seen) > 5  # or the reader was not there while it was written


def many(folder, count: int) -> dict:
    """Files in two folders."""
    (folder / "other").mkdir()
    return {
        (folder / "other" if n % 3 == 2 else folder) / f"file_{n}": bytes([n]) * (n + 1)
        for n in range(count)
    }


def contents_of(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def open_files(folder) -> int:
    """Files in the folder that this process has open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            count += folder in descriptor.readlink().parents
    return count


@pytest.mark.parametrize("count", [0, 1, 3, UNSYNCED_FILES, 3 * UNSYNCED_FILES + 1])
def test_files_that_are_published_together_share_the_sync_of_their_folder(
    tmp_path, monkeypatch, count
):
    files = many(tmp_path, count)
    system = FailingOs(lambda number, name: None)
    monkeypatch.setattr(file_operations, "os", system)
    most = 0

    def told():
        nonlocal most
        for path, data in files.items():
            yield path, data
            most = max(most, open_files(tmp_path))

    publish_all_over(told())
    assert contents_of(tmp_path) == files
    assert open_files(tmp_path) == 0
    assert most == min(count, UNSYNCED_FILES)
    names = [name for name, _ in system.calls]
    folders = len({path.parent for path in files})
    assert names.count("replace") == count
    assert names.count("fsync") == count + folders
    assert names[len(names) - 3 * folders :] == ["open", "fsync", "close"] * folders


def test_files_that_are_published_together_are_synced_before_they_have_names(tmp_path, monkeypatch):
    files, synced = many(tmp_path, 5), set()
    fsync, replace = os.fsync, os.replace

    def recorded(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(source, target):
        assert os.stat(source).st_ino in synced
        replace(source, target)

    monkeypatch.setattr(file_operations.os, "fsync", recorded)
    monkeypatch.setattr(file_operations.os, "replace", checked)
    publish_all_over(files.items())
    assert contents_of(tmp_path) == files


def test_whatever_fails_while_files_are_published_together_leaves_nothing_half(
    tmp_path, monkeypatch
):
    count = UNSYNCED_FILES + 2
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        folder.mkdir()
        files = many(folder, count)
        system = FailingOs(lambda number, name, n=n: errno.EIO if number == n else None)
        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            patch.setattr(file_operations, "os", system)
            publish_all_over(files.items())
        if len(system.calls) < n:
            break
        assert contents_of(folder).items() <= files.items()
        assert open_files(tmp_path) == 0
        publish_all_over(files.items())
        assert contents_of(folder) == files
    assert n > 6 * count  # opened, reserved, written, synced, closed and named


class PoorOs:
    """An operating system without what only some have."""

    def __getattr__(self, name):
        if name.lower().startswith("posix_"):
            raise AttributeError(name)
        return getattr(os, name)


@pytest.mark.parametrize("publish", PUBLISHERS)
def test_systems_that_can_neither_reserve_nor_take_advice_will_do(tmp_path, monkeypatch, publish):
    monkeypatch.setattr(file_operations, "os", PoorOs())
    publish(tmp_path / "file", NEW)
    assert contents_of(tmp_path) == {tmp_path / "file": NEW}


def test_advice_that_is_refused_does_no_harm(tmp_path, monkeypatch):
    files = many(tmp_path, 3)
    system = FailingOs(lambda _, name: errno.EINVAL if name == "posix_fadvise" else None)
    monkeypatch.setattr(file_operations, "os", system)
    publish_all_over(files.items())
    assert contents_of(tmp_path) == files
    assert "posix_fadvise" in [name for name, _ in system.calls]


def test_a_content_that_cannot_be_made_leaves_no_half_file(tmp_path):
    files = many(tmp_path, UNSYNCED_FILES + 2)

    def broken():
        yield from files.items()
        raise KeyError("no content")

    with pytest.raises(KeyError):
        publish_all_over(broken())
    assert contents_of(tmp_path).items() <= files.items()
    assert open_files(tmp_path) == 0


def test_a_temporary_file_takes_its_name_later(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    first, second = write_temporary(tmp_path, NEW), write_temporary(tmp_path, b"other")
    assert sorted(temporaries(tmp_path)) == sorted([first.name, second.name])
    assert (tmp_path / "file").read_bytes() == OLD
    publish_temporary(first, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == NEW
    assert temporaries(tmp_path) == [second.name]


def test_sync_and_close_ends_with_the_bytes_on_the_disk(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def record(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(file_operations.os, "fsync", record)
    stream = (tmp_path / "file").open("w", encoding="utf-8")
    stream.write("one line\n")
    sync_and_close(stream)
    assert synced == [9]
    assert stream.closed


def test_sync_and_close_closes_when_the_disk_fails(tmp_path):
    stream = (tmp_path / "file").open("wb")
    with failing("fsync", 1), pytest.raises(OSError, match="injected"):
        sync_and_close(stream)
    assert stream.closed
