"""The only door to the operating system's files: every write of the store passes here.

A file becomes visible under its name only when all its bytes are on the disk, and stays visible
through a loss of power: write to a temporary name, fsync the file, give it its name, fsync the
folder (as in TensorStore's file driver). Files that belong together are on their way to the disk at
once and share the sync of the folder (`publish_all_over`).

Every operation is a call `os.something` in this module and nowhere else, so the tests put an `os`
in its place that fails, kills the process or loses the power at the n-th of them.
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
"""Most files of a publication that are on their way to the disk: open, and in memory still."""

NO_ALLOCATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What `posix_fallocate` says where the file system cannot reserve room."""

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What `link` says of one's own file where the file system has no hard links."""


def publish_new(path: Path, data: Content) -> None:
    """Writes a file that must not exist yet; it is visible whole or not at all.

    Raises:
        FileExistsError: there is such a file; it is left as it is.
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
        with contextlib.suppress(OSError):  # a left-over under a name that nobody reads
            os.unlink(temporary)


def _link(temporary: Path, path: Path) -> None:
    """Gives a file its name; unlike a rename, refuses to overwrite."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise StoreError(
            f"{path.parent} lies on a file system without hard links (a mounted bucket, a FAT"
            " disk), on which nothing keeps two runs from overwriting each other; take a local"
            f" disk, and {setting('gcs_bucket')} for a bucket"
        ) from None


def publish_over(path: Path, data: Content) -> None:
    """Writes a file or replaces it; a reader sees the old bytes or the new ones, never a mix."""
    publish_temporary(write_temporary(path.parent, data), path)


def publish_all_over(files: Iterable[tuple[Path, Content]]) -> None:
    """`publish_over` for files that belong together; their names last from the end on.

    Args:
        files: where, in folders that exist, and the content. The next is asked for when the one
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
    """Gives a finished and synced temporary file its name, replacing what has it."""
    _rename(temporary, path)
    sync_folder(path.parent)


def _rename(temporary: Path, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except BaseException:
        remove_if_there(temporary)
        raise


def write_temporary(folder: Path, data: Content) -> Path:
    """A new file in `folder` with these bytes, on the disk, under a name that nobody reads."""
    return _sync(_write(folder, data))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Written:
    """A file under a temporary name, open, that need not be on the disk yet."""

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
    """Has the system begin to write the file to the disk, which nobody waits for yet."""
    if hasattr(os, "posix_fadvise"):
        # Linux starts to write what is not on the disk, and drops what is: nothing of a new file.
        with contextlib.suppress(OSError):
            os.posix_fadvise(written.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _sync(written: _Written) -> Path:
    """Closes the file, which is on the disk afterwards, or gone."""
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
    """Closes the file and takes it away, as far as that can be done."""
    with contextlib.suppress(OSError):
        os.close(written.descriptor)
    remove_if_there(written.temporary)


def reserve(descriptor: int, size: int) -> None:
    """Makes sure that there is room for all of a file before the first byte is written.

    Raises:
        OSError: there is none; not where the system cannot say so.
    """
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in NO_ALLOCATION:
                raise


def remove_if_there(path: Path) -> None:
    """Takes a file away; one that cannot be is left."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, so that they outlast a loss of power."""
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
    """Makes the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_above(folder: Path) -> None:
    """Makes the folder's own entry durable, and those above it as far as they may be opened.

    A process may have made them and been killed before it synced them.
    """
    for parent in folder.absolute().parents:
        try:
            sync_folder(parent)
        except OSError as error:
            if error.errno == errno.EIO:
                raise


def sync_and_close(stream: IO) -> None:
    """Ends the writing of an open file; its bytes are on the disk afterwards."""
    with stream:
        stream.flush()
        os.fsync(stream.fileno())
