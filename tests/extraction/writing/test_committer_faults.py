"""What a unit's commit does on a disk that is full, fails once, or fails for ever."""

import errno
import itertools
import logging
import os
import resource
import threading
import time

import pytest

from extraction.errors import ConflictError, StorageUnavailableError
from extraction.run.records import CommitLog
from extraction.storage import file_operations
from extraction.storage.file_operations import TEMPORARY_PREFIX
from extraction.storage.local import LocalStorage
from extraction.writing import disk_retry
from extraction.writing.committer import Committer
from tests.extraction.failing_os import FailingOs
from tests.extraction.failing_storage import FailingStorage
from tests.extraction.known_rows import bytes_of, known_block
from tests.extraction.writing.test_committer import HOOKS, LINES, assert_vouches

FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]


@pytest.fixture
def no_waiting(monkeypatch):
    """A full disk is looked at again at once."""
    monkeypatch.setattr(disk_retry, "FIRST_WAIT", 0.001)


def commit(folder, batch_id: int = 1, **options):
    """Commits four rows of two layers and two output lines: six files."""
    committer = Committer(LocalStorage(folder), HOOKS, "raw", **options)
    return committer.commit(batch_id, known_block(0, 4, (6, 12)), LINES)


def commit_little(folder, batch_id: int = 1):
    """Commits one row of one layer and two output lines: three files."""
    committer = Committer(LocalStorage(folder), HOOKS[:1])
    return committer.commit(batch_id, known_block(0, 1), LINES)


def batch_ids(folder) -> set[int]:
    return CommitLog(LocalStorage(folder)).batch_ids()


def assert_whole(folder):
    """Every batch that exists is whole."""
    for record in list(CommitLog(LocalStorage(folder)).records()):
        assert_vouches(folder, record)


def left_overs(folder) -> list[str]:
    return [name for name in bytes_of(folder) if TEMPORARY_PREFIX in name]


@pytest.mark.parametrize("first", range(1, 7))  # two files for each layer, lines, record
def test_a_failure_at_any_write_leaves_no_record(tmp_path, first):
    commit(tmp_path, 1)
    storage = FailingStorage(tmp_path, range(first, 100))
    with pytest.raises(StorageUnavailableError, match="the disk is failing"):
        Committer(storage, HOOKS, "raw").commit(2, known_block(4, 4, (6, 12)), LINES)
    assert storage.writes == first + 1  # and nothing was tried after that
    assert batch_ids(tmp_path) == {1}
    assert_whole(tmp_path)
    commit(tmp_path, 2)
    assert batch_ids(tmp_path) == {1, 2}
    assert_whole(tmp_path)


def operations(tmp_path, monkeypatch) -> int:
    """How many operations a commit to a new folder needs."""
    counting = FailingOs(lambda number, name: None)
    with monkeypatch.context() as patch:
        patch.setattr(file_operations, "os", counting)
        commit_little(tmp_path / "counted" / "run")
    return len(counting.calls)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_any_operation_may_fail_once(tmp_path, monkeypatch, no_waiting, code):
    total = operations(tmp_path, monkeypatch)
    assert total > 3 * 9  # three files, each opened, reserved, written, synced, closed, named, ...
    for n in range(1, total + 1):
        failing = FailingOs(lambda number, name, n=n: code if number == n else None)
        folder = tmp_path / str(n) / "run"
        with monkeypatch.context() as patch:
            patch.setattr(file_operations, "os", failing)
            record = commit_little(folder)
        assert list(CommitLog(LocalStorage(folder)).records()) == [record]
        assert_vouches(folder, record)
        if failing.calls[n - 1][0] != "unlink":
            assert left_overs(folder) == []


def test_any_operation_and_all_after_it_may_fail(tmp_path, monkeypatch):
    total = operations(tmp_path, monkeypatch)
    for n in range(1, total + 1):
        folder = tmp_path / str(n)
        commit_little(folder, 1)
        failing = FailingOs(lambda number, name, n=n: errno.EIO if number >= n else None)
        with monkeypatch.context() as patch:
            patch.setattr(file_operations, "os", failing)
            try:
                commit_little(folder, 2)
            except StorageUnavailableError:
                assert len(failing.calls) >= n
            else:
                # Its folders are there, so there is less to do than in a new one; and a record
                # that could not be taken back, as even unlinking fails, stands for whole files.
                assert batch_ids(folder) == {1, 2}
        assert_whole(folder)
        commit_little(folder, 2)
        assert batch_ids(folder) == {1, 2}
        assert_whole(folder)


@pytest.mark.parametrize("code", FULL)
def test_a_disk_that_is_full_for_a_while_is_waited_for(tmp_path, monkeypatch, caplog, code):
    monkeypatch.setattr(disk_retry, "FIRST_WAIT", 0.02)
    fallocated = itertools.count(1)
    failing = FailingOs(
        lambda number, name: code if name == "posix_fallocate" and next(fallocated) <= 4 else None
    )
    monkeypatch.setattr(file_operations, "os", failing)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        record = commit(tmp_path, stall_timeout=30)
    assert time.monotonic() - started >= 0.02 + 0.04 + 0.08 + 0.16  # each wait is twice the last
    assert_vouches(tmp_path, record)
    assert left_overs(tmp_path) == []
    assert len(caplog.records) == 4
    assert all(str(tmp_path) in line.getMessage() for line in caplog.records)


class SmallDisk:
    """An operating system whose disk has room for so many bytes of files in a folder."""

    def __init__(self, folder, room: int):
        self.folder, self.room = folder, room

    def __getattr__(self, name):
        return getattr(os, name)

    def posix_fallocate(self, descriptor, start, size):
        if sum(map(len, bytes_of(self.folder).values())) + size > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_an_attempt_left_makes_room_for_the_next(tmp_path, monkeypatch, no_waiting):
    """All files of the unit fitted, its record did not."""
    commit(tmp_path / "whole")
    unit = {name: len(data) for name, data in bytes_of(tmp_path / "whole").items()}
    storage = LocalStorage(tmp_path / "run")
    for name, size in unit.items():
        if "commits" not in name:
            storage.put_new(name, bytes(size))
    room = sum(unit.values()) + max(unit.values())
    monkeypatch.setattr(file_operations, "os", SmallDisk(storage.folder, room))
    with pytest.raises(StorageUnavailableError):  # it may not wait, and so not try again
        commit(storage.folder, stall_timeout=0)
    assert_vouches(storage.folder, commit(storage.folder, stall_timeout=5))


class Overtaken(LocalStorage):
    """While this process waits for room, another one commits the batch."""

    def replace_all(self, files):
        list(files)
        commit(self.folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_files_that_another_committed_meanwhile_are_left(tmp_path, no_waiting):
    committer = Committer(Overtaken(tmp_path), HOOKS, "raw", stall_timeout=5)
    with pytest.raises(ConflictError, match="batch 1 at the same time"):
        committer.commit(1, known_block(0, 4, (6, 12)), LINES)
    (record,) = CommitLog(LocalStorage(tmp_path)).records()
    assert_vouches(tmp_path, record)


def test_the_time_that_writing_takes_is_not_waited(monkeypatch):
    """However slow the disk is, a full one is waited for."""
    now, slept = [0.0], []
    monkeypatch.setattr(disk_retry.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(disk_retry.time, "sleep", slept.append)

    def write() -> str:
        now[0] += 1000.0
        if sum(slept) < 100:
            raise OSError(errno.ENOSPC, "full")
        return "written"

    assert disk_retry.patiently("here", write, stall_timeout=200) == "written"
    assert 100 <= sum(slept) <= 200


def test_a_limit_of_the_system_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_retry, "FIRST_WAIT", 0.02)
    block = known_block(0, 2)
    block.activations["layer_6"].resize((2, 250_000), refcheck=False)  # 2 MB
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    timer = threading.Timer(0.2, lift)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    timer.start()
    try:
        record = Committer(LocalStorage(tmp_path), HOOKS[:1], "raw").commit(1, block)
    finally:
        timer.join()
        lift()
    assert record.files["layer_6"].bytes == 2_000_000
    assert_vouches(tmp_path, record)


@pytest.mark.parametrize("timeout", [0.0, 0.4])
@pytest.mark.parametrize("name", ["posix_fallocate", "write", "mkdir"])
def test_a_disk_that_stays_full_is_told_in_time(tmp_path, monkeypatch, timeout, name):
    monkeypatch.setattr(disk_retry, "FIRST_WAIT", 0.02)
    full = FailingOs(lambda number, called: errno.ENOSPC if called == name else None)
    monkeypatch.setattr(file_operations, "os", full)
    started = time.monotonic()
    with pytest.raises(
        StorageUnavailableError, match=r"No space left on device.*resume=True"
    ) as told:
        commit(tmp_path, stall_timeout=timeout)
    assert timeout / 4 <= time.monotonic() - started < timeout + 5
    assert str(tmp_path) in str(told.value)
    assert batch_ids(tmp_path) == set()
    assert left_overs(tmp_path) == []


def test_after_a_failed_fsync_another_file_is_written(tmp_path, monkeypatch):
    synced = itertools.count(1)
    failing = FailingOs(
        lambda number, name: errno.EIO if name == "fsync" and next(synced) == 1 else None
    )
    (tmp_path / "_run" / "commits").mkdir(parents=True)  # no folder need be made, nor synced
    (tmp_path / "_run" / "outputs").mkdir()
    monkeypatch.setattr(file_operations, "os", failing)
    record = commit(tmp_path)
    assert_vouches(tmp_path, record)
    failed = [name for name, _ in failing.calls].index("fsync")
    written = {path for name, path in failing.calls[:failed] if name == "open"}
    named = {path for name, path in failing.calls if name == "replace"}
    assert len(written) == len(named) == 5
    assert not written & named  # the first's pages count as clean, though they are not written
    assert left_overs(tmp_path) == []


def test_a_folder_that_was_not_made_durable_is_made_again(tmp_path, monkeypatch):
    synced = itertools.count(1)
    failing = FailingOs(
        lambda number, name: errno.EIO if name == "fsync" and next(synced) == 1 else None
    )
    monkeypatch.setattr(file_operations, "os", failing)
    record = commit_little(tmp_path / "run")
    assert failing.calls.count(("mkdir", tmp_path / "run")) == 2
    assert_vouches(tmp_path / "run", record)


def test_a_disk_that_fails_for_ever_is_told_at_once(tmp_path, monkeypatch):
    failing = FailingOs(lambda number, name: errno.EIO if name == "fsync" else None)
    (tmp_path / "_run").mkdir()
    monkeypatch.setattr(file_operations, "os", failing)
    started = time.monotonic()
    with pytest.raises(StorageUnavailableError, match="Input/output error"):
        commit(tmp_path)  # with the usual timeout, of minutes
    assert time.monotonic() - started < 10
    assert [name for name, _ in failing.calls].count("fsync") == 2
    assert left_overs(tmp_path) == []


def test_a_full_disk_does_not_use_up_the_second_try(tmp_path, monkeypatch, no_waiting):
    """Full, failing, full: each write is tried again after a failure, however often it waited."""
    script = iter([errno.ENOSPC, errno.EIO, errno.ENOSPC, errno.ENOSPC])
    failing = FailingOs(
        lambda number, name: next(script, None) if name == "posix_fallocate" else None
    )
    monkeypatch.setattr(file_operations, "os", failing)
    assert_vouches(tmp_path, commit(tmp_path))


def test_a_folder_that_became_another_is_told(tmp_path):
    committer = Committer(LocalStorage(tmp_path / "run"), HOOKS[:1])
    committer.commit(1, known_block(0, 1))
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="replaced by another folder"):
        committer.commit(2, known_block(1, 1))
    assert bytes_of(tmp_path / "run") == {}
    assert_whole(tmp_path / "moved")
