"""Reading what a commit record vouches for, and publishing a copy of it.

Every command that reads batches reads them here, so none passes on what is damaged.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from extraction.checksums import crc32c, sha256
from extraction.errors import ConflictError, CorruptBatchError, StorageUnavailableError, StoreError
from extraction.formats import FORMATS, ParsedBatch
from extraction.formats.batch import KeyTable
from extraction.maintenance.checks.records import record_problems
from extraction.run.identity import RunIdentity, RunLock
from extraction.run.output_lines import parse_lines
from extraction.run.records import CommitLog, CommitRecord, CommittedFile
from extraction.run_layout import record_name
from extraction.storage import Content, Storage, pieces
from extraction.storage.bounded import get_listed
from extraction.storage.local import LocalStorage
from extraction.writing.disk_retry import patiently


def read_committed(storage: Storage, file: CommittedFile, *, with_sha256: bool = True) -> bytes:
    """The content of a file, checked against its record.

    Raises:
        CorruptBatchError: it is missing, cannot be read, or is another.
    """
    try:
        data = get_listed(storage, file.file, file.bytes)
    except FileNotFoundError:
        raise CorruptBatchError("is missing") from None
    except StorageUnavailableError:
        raise
    except StoreError as error:  # damaged on its way, each time
        raise CorruptBatchError(str(error)) from None
    except OSError as error:
        raise CorruptBatchError(f"cannot be read: {error.strerror or error}") from None
    if len(data) != file.bytes:
        raise CorruptBatchError(f"{len(data)} bytes, {file.bytes} by its record")
    found = crc32c(data)
    if found != file.crc32c:
        raise CorruptBatchError(f"crc32c {found}, {file.crc32c} by its record")
    if with_sha256 and sha256(data) != file.sha256:
        raise CorruptBatchError("sha256 is not that of its record")
    return data


def parse_committed(
    identity: RunIdentity,
    record: CommitRecord,
    hook_point: str,
    data: bytes,
    sidecar: bytes | None,
) -> ParsedBatch:
    """The rows of one hook point of a batch.

    Args:
        identity: of the run.
        record: of the batch.
        hook_point: whose file it is.
        data: of the file, as `read_committed` gives it.
        sidecar: of the second file, if the format has one.

    Raises:
        CorruptBatchError: it holds something else than the record says.
    """
    batch = FORMATS[identity.file_format].parse(data, sidecar)
    expected = (hook_point, record.n_rows, identity.dtype)
    found = (batch.hook_point, len(batch.row_keys), batch.dtype)
    if found != expected:
        raise CorruptBatchError(
            "holds {} with {} rows of {}, not {} with {} rows of {}".format(*found, *expected)
        )
    return batch


def read_batch(
    storage: Storage,
    identity: RunIdentity,
    record: CommitRecord,
    hook_point: str,
    *,
    with_sha256: bool = True,
) -> ParsedBatch:
    """Both of the above for one hook point of a batch.

    Raises:
        CorruptBatchError: a file is damaged; the message names it.
    """
    file, second = record.files[hook_point], record.sidecars.get(hook_point)
    data, sidecar = (
        None if part is None else read_named(storage, part, with_sha256=with_sha256)
        for part in (file, second)
    )
    assert data is not None
    with naming(storage, file):
        return parse_committed(identity, record, hook_point, data, sidecar)


def read_outputs(storage: Storage, file: CommittedFile) -> list[dict[str, Any]]:
    """The output lines of a batch.

    Raises:
        CorruptBatchError: the file is damaged, or holds something else; the message names it.
    """
    data = read_named(storage, file)
    with naming(storage, file):
        return parse_lines(data)


def check_same_rows(
    storage: Storage, file: CommittedFile, keys: KeyTable | None, batch: ParsedBatch
) -> KeyTable:
    """The keys of a batch's rows, which must be alike for all of its hook points.

    Args:
        storage: of the run.
        file: of this hook point.
        keys: of the hook points before; None: this is the first.
        batch: what the file holds.

    Raises:
        CorruptBatchError: the keys are others.
    """
    if keys is not None and not keys.same_rows(batch.row_keys):
        with naming(storage, file):
            raise CorruptBatchError("its rows are not those of the other hook points, by keys")
    return batch.row_keys


def read_record(log: CommitLog, identity: RunIdentity, batch_id: int) -> CommitRecord:
    """A commit record for who copies the batch: it must be one that its run can have.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it is damaged, or contradicts itself or the run's identity.
    """
    record = log.read(batch_id)
    problems = list(record_problems(record, identity))
    if problems:
        raise StoreError(f"{record_name(batch_id)}: {'; '.join(problems)}")
    return record


def read_named(storage: Storage, file: CommittedFile, *, with_sha256: bool = True) -> bytes:
    """As `read_committed`, with an error that names the file."""
    with naming(storage, file):
        return read_committed(storage, file, with_sha256=with_sha256)


@contextlib.contextmanager
def naming(storage: Storage, file: CommittedFile) -> Iterator[None]:
    """Puts the file's name before what is wrong with it."""
    try:
        yield
    except CorruptBatchError as error:
        raise CorruptBatchError(
            f"{storage.address}/{file.file}: {error}; `verify` tells what else is damaged"
        ) from None


def publish_once(storage: Storage, name: str, data: Content) -> CommittedFile:
    """Publishes a file, or finds that an earlier attempt did.

    Raises:
        ConflictError: another file has the name.
        StorageUnavailableError: the disk stayed full, or fails.
    """
    try:
        patiently(storage.address, lambda: storage.put_new(name, data))
    except FileExistsError:
        if storage.get(name) != b"".join(pieces(data)):
            raise ConflictError(
                f"{storage.address}/{name} exists and is another file; it was left as it is"
            ) from None
    return CommittedFile.of(name, data)


@contextlib.contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Nobody else of this program writes to the folder meanwhile; a bucket needs no lock.

    Raises:
        ExistingRunError: another process writes to it.
    """
    lock = RunLock(storage.folder) if isinstance(storage, LocalStorage) else None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
