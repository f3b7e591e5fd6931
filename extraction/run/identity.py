"""The identity of a run, and the lock that keeps other processes from writing to its folder.

`_run/run.json` is written once, when the run begins. Its *fingerprint* holds every setting that
changes the rows: a run is only resumed with the same fingerprint, so that a folder never mixes
different rows. Settings that may change between attempts (hosts, mesh, kernels) are not part of it.

`RunLock` keeps two processes from writing in one local folder at a time. It is the operating
system's lock on an open file, so it is released when its process ends, however that happens.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from extraction.documents import is_count, read_json
from extraction.errors import ExistingRunError, StoreError
from extraction.formats import FORMATS
from extraction.run.rows import timestamp
from extraction.run_layout import COMMITS, METADATA_FILE, RUN_FILE, lock_name
from extraction.setting_names import setting
from extraction.storage import Storage, file_operations, regular_files
from extraction.storage.bounded import get_at_most
from extraction.storage.names import check_hook_point
from extraction.version import __version__
from extraction.writing.disk_retry import patiently

SCHEMA_VERSION = 1
DTYPES = ("float32", "bfloat16")
"""Dtypes that activations may be stored in."""


def new_run_id() -> str:
    """Return a random run id, 32 hexadecimal digits."""
    return secrets.token_hex(16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """Content of `_run/run.json`.

    Attributes:
        run_id: random, 32 hexadecimal digits.
        model_name: name of the model, as the user gave it.
        hook_points: captured hook points, in the order of the metadata.
        hidden_dim: width of the residual stream.
        file_format: format of the batches.
        dtype: dtype of the stored activations.
        planned_batches: number of batches of the complete run; None: it is complete when closed.
        fingerprint: the settings that change the rows.
        run: settings and versions of the first attempt, with `program_version`, for people.
        created_at: time of the first attempt, ISO 8601, UTC.
        schema_version: version of the folder's layout.
    """

    run_id: str
    model_name: str
    hook_points: tuple[str, ...]
    hidden_dim: int
    file_format: str
    dtype: str
    planned_batches: int | None
    fingerprint: Mapping[str, Any]
    run: Mapping[str, Any]
    created_at: str
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self):
        plan = self.planned_batches
        fits = {
            "run_id": type(self.run_id) is str,
            "model_name": type(self.model_name) is str,
            "hook_points": all(type(hook_point) is str for hook_point in self.hook_points),
            "hidden_dim": is_count(self.hidden_dim),
            "file_format": type(self.file_format) is str and self.file_format in FORMATS,
            "dtype": type(self.dtype) is str and self.dtype in DTYPES,
            "planned_batches": plan is None or is_count(plan),
            "fingerprint": isinstance(self.fingerprint, Mapping),
            "run": isinstance(self.run, Mapping),
            "created_at": type(self.created_at) is str,
        }
        wrong = [name for name, is_so in fits.items() if not is_so]
        if wrong:
            raise StoreError(f"these fields have invalid values: {', '.join(wrong)}")
        for hook_point in self.hook_points:
            check_hook_point(hook_point)

    @classmethod
    def new(
        cls,
        *,
        model_name: str,
        hook_points: Sequence[str],
        hidden_dim: int,
        file_format: str = "pickle",
        dtype: str = "float32",
        planned_batches: int | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        run: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> "RunIdentity":
        """Return the identity of a run that begins now, with a new id unless one is given."""
        return cls(
            run_id=run_id or new_run_id(),
            model_name=model_name,
            hook_points=tuple(hook_points),
            hidden_dim=hidden_dim,
            file_format=file_format,
            dtype=dtype,
            planned_batches=planned_batches,
            fingerprint=dict(fingerprint or {}),
            run={"program_version": __version__, **(run or {})},
            created_at=timestamp(),
        )

    def to_json(self) -> bytes:
        """Return the file's content.

        Raises:
            StoreError: JSON cannot hold one of the values.
        """
        try:
            text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
            return (text + "\n").encode()
        except (TypeError, ValueError) as error:  # half of a surrogate pair, or a cycle
            raise StoreError(f"model_name and run must be valid in JSON: {error}") from None

    @classmethod
    def from_json(cls, data: bytes) -> "RunIdentity":
        """Return the identity from the file's content.

        Raises:
            StoreError: the file is damaged, or of a later version.
        """
        try:
            raw = read_json(data)
            version = raw["schema_version"]
            if type(raw["hook_points"]) is not list:
                raise ValueError("hook_points is not a list")
            if version <= SCHEMA_VERSION:
                return cls(**(raw | {"hook_points": tuple(raw["hook_points"])}))
        except StoreError as error:
            raise StoreError(f"{RUN_FILE} is damaged: {error}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{RUN_FILE} is damaged: {error!r}") from None
        raise StoreError(
            f"{RUN_FILE} is of version {version}, newer than this program, which reads versions up"
            f" to {SCHEMA_VERSION}"
        )


def read_identity(storage: Storage) -> RunIdentity | None:
    """Return the identity of the run in a folder, or None if the folder holds no run."""
    try:
        return RunIdentity.from_json(get_at_most(storage, RUN_FILE))
    except FileNotFoundError:
        return None


def check_identity(
    storage: Storage,
    wanted: RunIdentity,
    *,
    resume: bool,
    exclusive: bool = False,
    explaining: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Check that a run may begin or resume in a folder; write nothing.

    Args:
        storage: the folder.
        wanted: identity of the run that is to write there.
        resume: whether it may resume an existing run.
        exclusive: whether nobody else can write there now; then a run that never committed a batch
            is ignored.
        explaining: for an entry of the fingerprint, the settings that may explain a difference;
            they are named in the message, but not compared by themselves.

    Raises:
        ExistingRunError: the folder holds a run and `resume` is not set, or a run with other
            settings; the message names the settings that differ.
    """
    found = read_identity(storage)
    if found is None:
        left = _batch_files(storage)
        if not left:
            return
        found = read_identity(storage)  # another process may have begun a run in between
        if found is None:
            raise ExistingRunError(
                f"{storage.address} already holds a run ({left[0]} and {len(left) - 1} more files)"
                f" without {RUN_FILE}, so it cannot be resumed; nothing was changed; choose another"
                " folder"
            )
    if exclusive and not storage.names(COMMITS):
        return
    if not resume:
        raise ExistingRunError(
            f"{storage.address} already holds a run, begun {found.created_at}; nothing was changed;"
            f" {setting('resume', True)} goes on with it, another folder begins a new run"
        )
    differing = _differing(found, wanted)
    if differing:
        was, now = _settings(found), _settings(wanted)
        differing += [
            f"({name}: {was.get(name)!r} there, {now.get(name)!r} now)"
            for entry, names in (explaining or {}).items()
            if found.fingerprint.get(entry) != wanted.fingerprint.get(entry)
            for name in names
            if was.get(name) != now.get(name)
        ]
        raise ExistingRunError(
            f"{storage.address} holds a run with other settings, so it cannot be resumed with"
            " these; nothing was changed:\n  " + "\n  ".join(differing)
        )


def _settings(identity: RunIdentity) -> Mapping[str, Any]:
    """Return the settings that the run records; empty if it records none."""
    settings = identity.run.get("settings") if isinstance(identity.run, Mapping) else None
    return settings if isinstance(settings, Mapping) else {}


def _differing(found: RunIdentity, wanted: RunIdentity) -> list[str]:
    """Return the differences that keep one run from being resumed as the other."""
    keys = ("hook_points", "hidden_dim", "file_format", "dtype", "planned_batches")
    pairs = {key: (getattr(found, key), getattr(wanted, key)) for key in keys}
    for key in sorted({*found.fingerprint, *wanted.fingerprint}):
        # JSON turns tuples into lists.
        plain = json.loads(json.dumps(wanted.fingerprint.get(key)))
        pairs[key] = (found.fingerprint.get(key), plain)
    return [f"{key}: {was!r} there, {now!r} now" for key, (was, now) in pairs.items() if was != now]


def begin(storage: Storage, wanted: RunIdentity, *, exclusive: bool = False) -> RunIdentity:
    """Publish the identity, or adopt the one that exists; call `check_identity` before.

    Args:
        storage: the folder.
        wanted: identity of the run.
        exclusive: as in `check_identity`; a run that never committed a batch is replaced.

    Returns:
        The identity that is in the folder.

    Raises:
        ExistingRunError: a run with other settings began at the same time.
        StorageUnavailableError: the disk stayed full, or fails.
    """
    replaces = exclusive and not storage.names(COMMITS)
    put = storage.replace if replaces else storage.put_new
    with contextlib.suppress(FileExistsError):
        patiently(storage.address, lambda: put(RUN_FILE, wanted.to_json()))
    check_identity(storage, wanted, resume=True)
    found = read_identity(storage)
    assert found is not None
    return found


def _batch_files(storage: Storage) -> list[str]:
    """Return files that only a run writes."""
    names = [name for name in storage.names() if name == METADATA_FILE or "_batch_" in name]
    return names + storage.names(COMMITS)


class RunLock:
    """A process's lock on a local folder, held until it is released or the process ends.

    Args:
        folder: folder of the run; made if it does not exist.
        process: number of the process among those of the run. Process 0 begins before the others,
            so any other lock that is held then belongs to an earlier attempt that still writes.

    Raises:
        ExistingRunError: another process holds the lock.
        StoreError: the folder cannot be locked: no permission, or a file system without locks.
    """

    def __init__(self, folder: Path, process: int = 0):
        name = lock_name(process)
        path = folder / name
        self._descriptor: int | None = None
        try:
            regular_files.check_folders(folder, name)
            file_operations.make_folder(path.parent)
            self._descriptor = _open_lock(path, os.O_CREAT)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if process == 0:
                _look_for_others(path)
        except BlockingIOError:
            self.release()
            raise ExistingRunError(
                f"another process is writing to {folder} now; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            self.release()
            raise StoreError(f"cannot lock {path}: {error.strerror}") from None

    def release(self) -> None:
        """Release the lock. Safe to call twice."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # it is closed; the run's own error matters more
                os.close(self._descriptor)
            self._descriptor = None


def _open_lock(path: Path, create: int = 0) -> int:
    descriptor = os.open(path, os.O_RDWR | create | regular_files.WITHIN_A_RUN, 0o666)
    regular_files.check_descriptor(descriptor, path)
    return descriptor


def _look_for_others(own: Path) -> None:
    """Raise BlockingIOError if a process of another number holds its lock."""
    for path in own.parent.glob("lock.*"):
        if path != own:
            descriptor = _open_lock(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(descriptor)
