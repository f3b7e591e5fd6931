"""The only door to the operating system's files: every write of the store passes here.

A file becomes visible under its name only when all its bytes are on the disk, and stays visible
through a loss of power: write to a temporary name, fsync the file, give it its name, fsync the
folder (as in TensorStore's file driver).
"""

import contextlib
import os
import secrets
from pathlib import Path
from typing import IO

TEMPORARY_PREFIX = ".tmp-"


def publish_new(path: Path, data: bytes) -> None:
    """Writes a file that must not exist yet; it is visible whole or not at all.

    Raises:
        FileExistsError: there is such a file; it is left as it is.
        OSError: the disk is full, or fails; nothing is visible then.
    """
    temporary = write_temporary(path.parent, data)
    try:
        os.link(temporary, path)  # unlike a rename, refuses to overwrite
        try:
            sync_folder(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    finally:
        with contextlib.suppress(OSError):  # a left-over under a name that nobody reads
            os.unlink(temporary)


def publish_over(path: Path, data: bytes) -> None:
    """Writes a file or replaces it; a reader sees the old bytes or the new ones, never a mix."""
    publish_temporary(write_temporary(path.parent, data), path)


def publish_temporary(temporary: Path, path: Path) -> None:
    """Gives a finished and synced temporary file its name, replacing what has it."""
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_temporary(folder: Path, data: bytes) -> Path:
    """A new file in `folder` with these bytes, on the disk, under a name that nobody reads."""
    path = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    try:
        with path.open("xb", buffering=0) as stream:
            remaining = memoryview(data)
            while remaining:
                remaining = remaining[stream.write(remaining) :]
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, so that they outlast a loss of power."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_and_close(stream: IO) -> None:
    """Ends the writing of an open file; its bytes are on the disk afterwards."""
    with stream:
        stream.flush()
        os.fsync(stream.fileno())
