"""Where an export is written before it has its name.

A folder beside OUT with a name that begins with `.tmp-`. What is finished there is put on the disk
and then renamed in one step, so OUT is whole or not there; the rest is taken away. An export can
always be made again, so the libraries that write it may open their files themselves.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from extraction.errors import StoreError
from extraction.storage import file_operations, scheme_of


@contextlib.contextmanager
def new_place(out: Path) -> Iterator[Path]:
    """A path to write a file or folder to; it becomes `out` at the end of a block without errors.

    Raises:
        StoreError: there is something at `out`; it is left as it is.
        OSError: the disk is full, or fails.
    """
    refuse_existing(out)
    file_operations.make_folder(out.absolute().parent)
    prefix = f"{file_operations.TEMPORARY_PREFIX}{out.name}-"
    own = out.absolute().parent / f"{prefix}{os.getpid()}-{secrets.token_hex(6)}"
    own.mkdir()
    try:
        yield own / out.name
        _to_the_disk(own / out.name)
        refuse_existing(out)
        os.rename(own / out.name, out)
        file_operations.sync_folder(own.parent)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Makes sure that nothing is at `out`.

    Raises:
        StoreError: something is.
    """
    if os.path.lexists(out):
        raise StoreError(f"{out} exists already; choose another place for the export")


def local_place(out: str | Path) -> Path:
    """The path of an export.

    Raises:
        StoreError: it cannot be one.
    """
    if scheme_of(out) is not None:
        raise StoreError(f"an export goes to a local path, not to {out}; copy it there afterwards")
    path = Path(out).expanduser()
    if not path.name:
        raise StoreError(f"{str(out)!r} is no name for an export")
    there = next(p for p in path.absolute().parents if p.exists())
    if not there.is_dir():
        raise StoreError(f"{out} lies below {there}, which is a file")
    return path


def reserve(path: Path) -> None:
    """Makes sure that there is room for all of a file that was only given its size.

    Without it a full disk would end a process that writes to the mapped file, with no message.
    """
    with path.open("r+b") as stream:
        file_operations.reserve(stream.fileno(), path.stat().st_size)


def _to_the_disk(place: Path) -> None:
    for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
        if path.is_dir():
            file_operations.sync_folder(path)
        else:
            file_operations.sync_and_close(path.open("rb"))
