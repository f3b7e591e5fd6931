"""Checkpoints of a training: written by orbax into a spool, then published whole in any storage.

A checkpoint is one file `checkpoints/step_0000000500.tar`, and a record of its size and checksum
beside it, which is published last: a checkpoint without a record does not count. They are written
by a thread while the training goes on; the state was copied before.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import mmap
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from extraction.checksums import crc32c
from extraction.documents import is_count, read_json
from extraction.errors import StorageUnavailableError, StoreError
from extraction.run_layout import RUN_FOLDER
from extraction.storage import Storage
from extraction.storage.bounded import get_at_most
from extraction.storage.local import LocalStorage
from extraction.writing.disk_retry import patiently

log = logging.getLogger(__name__)

FOLDER = "checkpoints/"
STATE, PROGRESS = "state", "progress.json"
_RECORD = re.compile(re.escape(FOLDER) + r"step_(\d{10})\.json")
MOST_RECORD_BYTES = 1 << 16
MOST_BYTES = 1 << 42


def spool_of(storage: Storage) -> Path:
    """Return a folder of this process's own for the checkpoint that is being written.

    It lies beside the published ones, or for a bucket in the system's folder for temporary files.
    Those of killed processes are removed; only the holder of the training's lock may call this.
    """
    if isinstance(storage, LocalStorage):
        above = storage.folder.absolute() / RUN_FOLDER / "spool"  # as orbax wants it
    else:
        key = hashlib.sha256(str(storage.address).encode()).hexdigest()[:16]
        above = Path(tempfile.gettempdir()) / f"sae-checkpoints-{key}"
    for left in above.glob("*"):
        if not (left.name.isdecimal() and _is_alive(int(left.name))):
            shutil.rmtree(left, ignore_errors=True)
    return above / str(os.getpid())


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


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
    """

    def __init__(self, storage: Storage, keep: int):
        self._storage, self._keep = storage, keep
        self._spool: Path | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "sae-checkpoint")
        self._writing: concurrent.futures.Future | None = None

    def steps(self) -> list[int]:
        """Return the steps of the published checkpoints, ascending."""
        found = map(_RECORD.fullmatch, self._storage.names(FOLDER))
        return sorted(int(match[1]) for match in found if match)

    def busy(self) -> bool:
        """Return whether one is being written."""
        return self._writing is not None and not self._writing.done()

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
        if self._spool is not None:
            shutil.rmtree(self._spool, ignore_errors=True)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """Make an empty folder for a checkpoint, and remove it afterwards."""
        if self._spool is None:
            self._spool = spool_of(self._storage)
        shutil.rmtree(self._spool, ignore_errors=True)
        self._spool.mkdir(parents=True)
        try:
            yield self._spool
        finally:
            shutil.rmtree(self._spool, ignore_errors=True)

    def _write(self, step: int, states: Any, progress: str) -> None:
        patiently(self._storage.address, lambda: self._publish(step, states, progress))
        for old in self.steps()[: -self._keep]:
            self._storage.remove(_name(old, "json"))  # first the record: no damage in between
            self._storage.remove(_name(old, "tar"))

    def _publish(self, step: int, states: Any, progress: str) -> None:
        import orbax.checkpoint as ocp

        with self._folder() as folder:
            with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as writer:
                writer.save(folder / STATE, states)
            (folder / PROGRESS).write_text(progress, encoding="utf-8")
            packed = folder / "packed.tar"
            with tarfile.open(packed, "w") as archive:
                for name in (STATE, PROGRESS):
                    archive.add(folder / name, name)
            with (
                packed.open("rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
                memoryview(content) as data,
            ):
                record = {"bytes": len(data), "crc32c": crc32c(data), "step": step}
                self._storage.replace(_name(step, "tar"), data)
            self._storage.replace(_name(step, "json"), json.dumps(record).encode())

    def restore(self, abstract: Mapping[str, Any]) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None if there is none at all.

        A damaged one is named in a warning, and the one before it is taken: the training comes to
        the same weights from any of them.

        Args:
            abstract: shapes and dtypes of the states.

        Raises:
            StoreError: all of them are damaged.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                return self._restored(step, abstract)
            except StorageUnavailableError:
                raise
            except (StoreError, FileNotFoundError) as error:
                problems.append(f"{self._storage.address}/{_name(step, 'tar')}: {error}")
                log.warning("%s; trying the checkpoint before it", problems[-1])
        if problems:
            raise StoreError(f"no checkpoint can be read: {'; '.join(problems)}")
        return None

    def _restored(self, step: int, abstract: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint of a step; raise StoreError if it is damaged."""
        import orbax.checkpoint as ocp

        with _damage_named():
            record = read_json(get_at_most(self._storage, _name(step, "json"), MOST_RECORD_BYTES))
            size, checksum = record["bytes"], record["crc32c"]
        data = get_at_most(self._storage, _name(step, "tar"), MOST_BYTES)
        if (size, checksum) != (len(data), crc32c(data)):
            raise StoreError("is damaged: it has not the size and checksum of its record")
        with self._folder() as folder, _damage_named():
            packed = folder / "packed.tar"
            packed.write_bytes(data)
            del data
            with tarfile.open(packed) as archive:
                archive.extractall(folder, filter="data")  # nothing outside of the folder
            progress = read_json((folder / PROGRESS).read_bytes())
            counts = progress["counters"]
            if not (type(counts) is list and len(counts) == 3 and all(map(is_count, counts))):
                raise ValueError(f"counters {counts!r}")
            if type(progress["metrics"]) is not list or type(progress["positions"]) is not list:
                raise ValueError("metrics and positions must be lists")
            with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
                states = reader.restore(folder / STATE, dict(abstract))
        return Checkpoint(states, progress)


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
