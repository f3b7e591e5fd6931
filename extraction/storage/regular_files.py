"""The only door for reading files that somebody else may have put there.

Within a run's folder no link is followed: a link, a FIFO, a device or a socket instead of a file is
refused without waiting for it or reading from it. The folder itself may be a link, since the user
names it. Files that the user names, and those of a checkpoint, may be links to regular files
(`open_regular`).
"""

import errno
import io
import os
import stat
from pathlib import Path

from extraction.errors import UnsafeFileError

NO_WAITING = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""Flags of `os.open` with which opening a FIFO or a device does not block."""

WITHIN_A_RUN = NO_WAITING | os.O_NOFOLLOW
"""Flags of `os.open` for a file in a run's folder."""

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a file",
}


def open_within(folder: str | Path, name: str) -> io.FileIO:
    """Open a file of a run for reading, unbuffered.

    Args:
        folder: of the run.
        name: checked by `check_name`.

    Raises:
        FileNotFoundError: there is none.
        UnsafeFileError: it is not a regular file, or a folder above it is a link.
    """
    check_folders(folder, name)
    path = os.path.join(folder, name)
    try:
        descriptor = os.open(path, os.O_RDONLY | WITHIN_A_RUN)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise
        raise _unsafe(path, os.lstat(path).st_mode) from None
    check_descriptor(descriptor, path)
    return io.FileIO(descriptor)


def open_regular(path: str | Path) -> io.FileIO:
    """Open a file that the user named for reading, unbuffered; links to it are followed.

    Raises:
        OSError: there is no such file, or it cannot be read.
        UnsafeFileError: it is not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_WAITING)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENODEV):
            raise
        raise _unsafe(path, os.stat(path).st_mode) from None
    check_descriptor(descriptor, path)
    return io.FileIO(descriptor)


def check_folders(folder: str | Path, name: str) -> None:
    """Check that the parent folders of a run's file, where they exist, are folders.

    Raises:
        UnsafeFileError: one is a link or a file.
    """
    parts = name.split("/")
    for count in range(1, len(parts)):
        path = os.path.join(folder, *parts[:count])
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            raise _unsafe(path, mode, "a folder")


def check_descriptor(descriptor: int, path: str | Path) -> None:
    """Check that an open descriptor is a regular file, else close it and raise.

    Raises:
        UnsafeFileError: it is something else.
    """
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _unsafe(path, mode)


def _unsafe(path: str | Path, mode: int, wanted: str = "a regular file") -> UnsafeFileError:
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    advice = "; `cp -rL` makes a copy without links" if stat.S_ISLNK(mode) else ""
    return UnsafeFileError(f"{path} is {kind}, not {wanted}; it was not read{advice}")
