"""The temporary path that an export is written to before it gets its name.

It is in a folder beside OUT with a name that begins with `.tmp-`. A finished export is synced to
the disk and then renamed in one step, so OUT is either whole or missing; an unfinished one is
removed. An export can always be repeated, so the libraries that write it may open files themselves.
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
    """Yield a path to write a file or folder to; rename it to `out` if the block succeeds.

    Raises:
        StoreError: `out` exists; it is left as it is.
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
    """Check that nothing exists at `out`.

    Raises:
        StoreError: it exists.
    """
    if os.path.lexists(out):
        raise StoreError(f"{out} exists already; give another name for the export, or remove it")


def local_place(out: str | Path) -> Path:
    """Return the path of an export.

    Raises:
        StoreError: it is an address, or no file can be made there.
    """
    if scheme_of(out) is not None:
        raise StoreError(
            f"an export must be written to a local path, not to {out}; copy it there afterwards"
        )
    path = Path(out).expanduser()
    if not path.name:
        raise StoreError(f"{str(out)!r} does not name a file or folder for the export")
    there = next(p for p in path.absolute().parents if p.exists())
    if not there.is_dir():
        raise StoreError(f"{out} is below {there}, which is a file")
    return path


def reserve(path: Path) -> None:
    """Reserve room on the disk for all of a file that has its size but no content yet.

    Without it a full disk would kill a process that writes to the mapped file, without a message.
    """
    with path.open("r+b") as stream:
        file_operations.reserve(stream.fileno(), path.stat().st_size)


def _to_the_disk(place: Path) -> None:
    for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
        if path.is_dir():
            file_operations.sync_folder(path)
        else:
            file_operations.sync_and_close(path.open("rb"))
