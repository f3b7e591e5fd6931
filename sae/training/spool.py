"""Folders of this machine where a checkpoint is put together, and room in them.

A checkpoint of a folder waits in that folder. That of a bucket waits in the user's cache, where
files of runs wait too, or where that has no room, in the system's folders for temporary files,
which are often memory.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from extraction.errors import StoreError
from extraction.run_layout import RUN_FOLDER
from extraction.storage import Storage
from extraction.storage.local import LocalStorage
from extraction.writing.places import spool_folder

CHECKPOINTS = "checkpoints"
LONG_LIVED = Path("/var/tmp")
FILES = 40
"""More files than orbax writes for a checkpoint."""


def spools_of(storage: Storage) -> list[Path]:
    """Return the folders that hold folders of processes, the best first.

    Those of killed processes are removed; only the holder of the training's lock may call this.
    """
    if isinstance(storage, LocalStorage):
        above = [storage.folder.absolute() / RUN_FOLDER / "spool"]  # as orbax wants it
    else:
        cache = spool_folder(str(storage.address))
        name = f"sae-checkpoints-{cache.name}"
        above = [cache / CHECKPOINTS, Path(tempfile.gettempdir()) / name, LONG_LIVED / name]
    for folder in above:
        for left in folder.glob("*"):
            if not (left.name.isdecimal() and _is_alive(int(left.name))):
                shutil.rmtree(left, ignore_errors=True)
    return above


def roomy(spools: Iterable[Path], needed: int) -> Path:
    """Return an empty folder of this process's own, in the first place that has room.

    Args:
        spools: places, the best first.
        needed: bytes.

    Raises:
        OSError: no place has room.
        StoreError: no folder can be made in any place.
    """
    full, refused = None, None
    for above in spools:
        folder = above / str(os.getpid())
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        except OSError as error:
            refused = error
            continue
        try:
            _check_room(folder, needed)
            return folder
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            full = full or OSError(error.errno, f"{error.strerror} in {above}")
    if full is not None:
        raise full
    raise StoreError(f"no place for checkpoints that are being written: {refused}")


def _check_room(folder: Path, needed: int) -> None:
    """Raise OSError if a folder's disk has no room; orbax's threads print much when it is full."""
    disk = os.statvfs(folder)
    no_files = disk.f_files and disk.f_favail < FILES  # none in all: the system has no limit
    if no_files or disk.f_bavail * disk.f_frsize < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()
