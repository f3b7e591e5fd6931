"""The only door to the operating system's files: every write of the store passes here.

A file becomes visible under its name only when all its bytes are on the disk, and stays visible
through a loss of power: write to a temporary name, fsync the file, give it its name, fsync the
folder (as in TensorStore's file driver). `publish_all_over` writes several files at once and syncs
their folder only once.

Every file operation is a call `os.something` in this module and nowhere else. Tests replace `os` by
one that fails, kills the process or loses the power at the n-th call.
"""

import contextlib
import dataclasses
import errno
import os
import secrets
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from extraction.errors import StoreError
from extraction.setting_names import setting
from extraction.storage import Content, pieces

TEMPORARY_PREFIX = ".tmp-"

UNSYNCED_FILES = 8
"""Most files that are open and unsynced at once; their contents stay in memory."""

NO_ALLOCATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of `posix_fallocate` on a file system that cannot reserve room."""

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of `link` on a file system without hard links."""


def publish_new(path: Path, data: Content) -> None:
    """Write a file that must not exist yet; it becomes visible whole or not at all.

    Raises:
        FileExistsError: the file exists; it is left as it is.
        OSError: the disk is full, or fails; nothing is visible then.
        StoreError: the file system has no hard links.
    """
    temporary = write_temporary(path.parent, data)
    try:
        _link(temporary, path)
        try:
            sync_folder(path.parent)
        except BaseException:
            remove_if_there(path)
            raise
    finally:
        with contextlib.suppress(OSError):  # nobody reads temporary names; a left-over does no harm
            os.unlink(temporary)


def _link(temporary: Path, path: Path) -> None:
    """Give a file its name; unlike a rename, refuse to overwrite."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise StoreError(
            f"{path.parent} is on a file system without hard links (a mounted bucket, a FAT"
            " disk), where two runs could overwrite each other; use a folder on a local disk, and"
            f" {setting('gcs_bucket')} to upload to a bucket"
        ) from None


def publish_over(path: Path, data: Content) -> None:
    """Write or replace a file; a reader sees the old bytes or the new ones, never a mix."""
    publish_temporary(write_temporary(path.parent, data), path)


def publish_all_over(files: Iterable[tuple[Path, Content]]) -> None:
    """Write or replace several files; all names are durable when it returns.

    Args:
        files: path, in a folder that exists, and content of each. The next is taken when the one
            before it is written.

    Raises:
        OSError: the disk is full, or fails; none, some or all of the files have their names then.
    """
    unsynced: deque[tuple[_Written, Path]] = deque()
    folders: set[Path] = set()

    def name_first() -> None:
        written, path = unsynced.popleft()
        _rename(_sync(written), path)
        folders.add(path.parent)

    try:
        for path, data in files:
            if len(unsynced) == UNSYNCED_FILES:
                name_first()
            unsynced.append((_write(path.parent, data), path))
            _start_sync(unsynced[-1][0])
        while unsynced:
            name_first()
    finally:
        for written, _ in unsynced:
            _discard(written)
    for folder in sorted(folders):
        sync_folder(folder)


def publish_temporary(temporary: Path, path: Path) -> None:
    """Rename a finished and synced temporary file to its name, replacing any old file."""
    _rename(temporary, path)
    sync_folder(path.parent)


def _rename(temporary: Path, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except BaseException:
        remove_if_there(temporary)
        raise


def write_temporary(folder: Path, data: Content) -> Path:
    """Write a new file in `folder` under a temporary name, sync it, and return its path."""
    return _sync(_write(folder, data))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Written:
    """A file under a temporary name: open, and not necessarily on the disk yet."""

    temporary: Path
    descriptor: int


def _write(folder: Path, data: Content) -> _Written:
    path = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    parts = pieces(data)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except BaseException:
        remove_if_there(path)
        raise
    written = _Written(temporary=path, descriptor=descriptor)
    try:
        reserve(descriptor, sum(map(len, parts)))
        for part in parts:
            while part:
                part = part[os.write(descriptor, part) :]
    except BaseException:
        _discard(written)
        raise
    return written


def _start_sync(written: _Written) -> None:
    """Ask the system to start writing the file to the disk, without waiting for it."""
    if hasattr(os, "posix_fadvise"):
        # Linux starts to write dirty pages and drops clean ones, which a new file does not have.
        with contextlib.suppress(OSError):
            os.posix_fadvise(written.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _sync(written: _Written) -> Path:
    """Sync and close the file; after an error, remove it."""
    try:
        try:
            os.fsync(written.descriptor)
        finally:
            os.close(written.descriptor)
    except BaseException:
        # A descriptor whose fsync failed is never synced again: the pages count as clean.
        remove_if_there(written.temporary)
        raise
    return written.temporary


def _discard(written: _Written) -> None:
    """Close and remove the file, ignoring errors."""
    with contextlib.suppress(OSError):
        os.close(written.descriptor)
    remove_if_there(written.temporary)


def reserve(descriptor: int, size: int) -> None:
    """Reserve room for all of a file before its first byte is written.

    Raises:
        OSError: there is no room. A file system that cannot reserve raises nothing.
    """
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in NO_ALLOCATION:
                raise


def remove_if_there(path: Path) -> None:
    """Remove a file; do nothing if it is missing or cannot be removed."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, so that they outlast a loss of power."""
    if os.path.isdir(folder):
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # another process was quicker
        os.mkdir(folder)
    try:
        sync_folder(folder.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # so that the next attempt does not find it done
            os.rmdir(folder)
        raise


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_above(folder: Path) -> None:
    """Make the entries of the folder and its parents durable, where they may be opened.

    Another process may have made these folders and been killed before it synced them.
    """
    for parent in folder.absolute().parents:
        try:
            sync_folder(parent)
        except OSError as error:
            if error.errno == errno.EIO:
                raise


def sync_and_close(stream: IO) -> None:
    """Finish writing an open file: flush, sync to the disk, close."""
    with stream:
        stream.flush()
        os.fsync(stream.fileno())
