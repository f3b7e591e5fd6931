"""Checkpoints of a training: written by orbax into a spool, then published whole in any storage.

A checkpoint is one file `checkpoints/step_0000000500.tar`, and a record of its size and checksum
beside it, which is published last: a checkpoint without a record does not count. They are written
by a thread while the training goes on; the state was copied before.
"""

import concurrent.futures
import contextlib
import json
import logging
import mmap
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from extraction.checksums import crc32c
from extraction.documents import read_json
from extraction.errors import StorageUnavailableError, StoreError
from extraction.setting_names import setting
from extraction.storage import Storage
from extraction.storage.bounded import get_at_most
from extraction.writing.disk_retry import FULL, patiently
from sae.training.spool import roomy, spools_of

log = logging.getLogger(__name__)

FOLDER = "checkpoints/"
STATE, PROGRESS = "state", "progress.json"
_RECORD = re.compile(re.escape(FOLDER) + r"step_(\d{10})\.json")
MOST_RECORD_BYTES = 1 << 16
MOST_BYTES = 1 << 42
SLACK = 1 << 14
"""Bytes that files of a checkpoint take beside its numbers."""

_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


Check = Callable[[int, Mapping[str, Any]], None]


class Checkpoint(NamedTuple):
    """What is restored.

    Attributes:
        states: tree of arrays of each autoencoder, by name.
        progress: what the training wrote beside them, JSON.
    """

    states: dict[str, Any]
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training.

    Args:
        storage: where they are published.
        keep: number of the newest that are kept.
        before_publishing: raises StoreError if this process must not publish any more.
    """

    def __init__(
        self, storage: Storage, keep: int, before_publishing: Callable[[], None] = lambda: None
    ):
        self._storage, self._keep, self._check = storage, keep, before_publishing
        self._spools: list[Path] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "sae-checkpoint")
        self._writing: concurrent.futures.Future | None = None

    def steps(self) -> list[int]:
        """Return the steps of the published checkpoints, ascending."""
        found = map(_RECORD.fullmatch, self._storage.names(FOLDER))
        return sorted(int(match[1]) for match in found if match)

    def busy(self) -> bool:
        """Return whether one is being written.

        Raises:
            StoreError: it could not be written.
        """
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is not None

    def save(self, step: int, states: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
        """Write a checkpoint in the background, after the one before it.

        Args:
            step: number of finished steps.
            states: tree of numpy arrays of each autoencoder; copied before this returns.
            progress: JSON.

        Raises:
            StoreError: the one before it could not be written.
        """
        self.wait()
        copied = jax.tree.map(np.array, dict(states))
        text = json.dumps(progress)
        self._writing = self._thread.submit(self._write, step, copied, text)

    def wait(self) -> None:
        """Wait for the one that is being written.

        Raises:
            StoreError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """End the thread, after what it is writing."""
        self._thread.shutdown()
        for above in self._spools or []:
            shutil.rmtree(above / str(os.getpid()), ignore_errors=True)

    @contextlib.contextmanager
    def _folder(self, needed: int) -> Iterator[Path]:
        """Make an empty folder with room for so many bytes, and remove it afterwards."""
        if self._spools is None:
            self._spools = spools_of(self._storage)
        folder = roomy(self._spools, needed)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, step: int, states: Any, progress: str) -> None:
        with contextlib.ExitStack() as stack:
            address = self._storage.address
            packed = patiently(address, lambda: self._pack(states, progress, stack))
            self._check()
            patiently(address, lambda: self._publish(step, packed))
        for old in self.steps()[: -self._keep]:
            self._storage.remove(_name(old, "json"))  # first the record: no damage in between
            self._storage.remove(_name(old, "tar"))

    def _pack(self, states: Any, progress: str, stack: contextlib.ExitStack) -> Path:
        """Return an archive of a checkpoint, which is removed when the stack is closed."""
        import orbax.checkpoint as ocp

        leaves = jax.tree.leaves(states)
        size = sum(leaf.nbytes for leaf in leaves) + len(progress) + SLACK * (1 + len(leaves))
        with contextlib.ExitStack() as made:
            folder = made.enter_context(self._folder(2 * size))
            packed = folder / "packed.tar"
            with _disk_errors(folder):
                with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as writer:
                    writer.save(folder / STATE, states)
                (folder / PROGRESS).write_text(progress, encoding="utf-8")
                with tarfile.open(packed, "w") as archive:
                    for name in (STATE, PROGRESS):
                        archive.add(folder / name, name)
            shutil.rmtree(folder / STATE)  # room for what is published
            stack.push(made.pop_all())
        return packed

    def _publish(self, step: int, packed: Path) -> None:
        with packed.open("rb") as stream:
            # Closed when nothing refers to it: an error on the way refers to parts of it.
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        data = memoryview(content)
        record = {"bytes": len(data), "crc32c": crc32c(data), "step": step}
        self._storage.replace(_name(step, "tar"), data)
        self._storage.replace(_name(step, "json"), json.dumps(record).encode())

    def restore(self, abstract: Mapping[str, Any], check: Check) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None if there is none at all.

        A damaged one is named in a warning, and the one before it is taken: the training comes to
        the same weights from any of them.

        Args:
            abstract: shapes and dtypes of the states.
            check: raises ValueError, given step and progress, if they are of another training.

        Raises:
            StoreError: all of them are damaged.
            StorageUnavailableError: no place has room to unpack one.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                return self._restored(step, abstract, check)
            except StorageUnavailableError:
                raise
            except (StoreError, FileNotFoundError) as error:
                problems.append(f"{self._storage.address}/{_name(step, 'tar')}: {error}")
                log.warning("%s; trying the checkpoint before it", problems[-1])
        if problems:
            raise StoreError(f"no checkpoint can be read: {'; '.join(problems)}")
        return None

    def _restored(self, step: int, abstract: Mapping[str, Any], check: Check) -> Checkpoint:
        """Return the checkpoint of a step; raise StoreError if it is damaged."""
        import orbax.checkpoint as ocp

        with _damage_named():
            record = read_json(get_at_most(self._storage, _name(step, "json"), MOST_RECORD_BYTES))
            size, checksum = record["bytes"], record["crc32c"]
        data = get_at_most(self._storage, _name(step, "tar"), MOST_BYTES)
        if (size, checksum) != (len(data), crc32c(data)):
            raise StoreError("is damaged: it has not the size and checksum of its record")
        with _room_named(), self._folder(2 * len(data)) as folder, _damage_named():
            packed = folder / "packed.tar"
            packed.write_bytes(data)
            with tarfile.open(packed) as archive:
                if sum(member.size for member in archive) > len(data):
                    raise ValueError("its files claim to be larger than the archive")
                archive.extractall(folder, filter="data")  # nothing outside of the folder
            del data
            if not (folder / PROGRESS).is_file():
                raise ValueError(f"it has no {PROGRESS}")
            progress = read_json((folder / PROGRESS).read_bytes())
            check(step, progress)
            with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
                states = reader.restore(folder / STATE, dict(abstract))
        return Checkpoint(states, progress)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Raise OSError, which names the folder, when its disk is full or fails; orbax has its own."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} in {folder}") from None
    except ValueError as error:
        found = _OS_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, f"{os.strerror(number)} in {folder}") from None


@contextlib.contextmanager
def _room_named() -> Iterator[None]:
    """Raise StorageUnavailableError if no place has room to unpack a checkpoint."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StorageUnavailableError(
            f"a checkpoint cannot be unpacked: {error.strerror}; make room and run again with"
            f" {setting('resume', True)}"
        ) from None


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """Raise StoreError for what a checkpoint of another program, or a damaged one, leads to."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, tarfile.TarError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise StoreError(f"is no checkpoint of this training: {reason}") from None


def _alone() -> Any:
    """Return orbax's options by which this process waits for no other."""
    import orbax.checkpoint as ocp

    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"sae{index}"
    )


def _name(step: int, extension: str) -> str:
    return f"{FOLDER}step_{step:010d}.{extension}"
