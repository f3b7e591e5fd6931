"""Reading files of committed batches, checked against the commit record, and copying them.

Every command that reads batches reads them here, so no command copies damaged files.
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
    """Return the content of a file, checked against its commit record.

    Raises:
        CorruptBatchError: the file is missing, cannot be read, or differs from its record.
    """
    try:
        data = get_listed(storage, file.file, file.bytes)
    except FileNotFoundError:
        raise CorruptBatchError("is missing") from None
    except StorageUnavailableError:
        raise
    except StoreError as error:  # it arrived damaged each time
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
    """Return the rows of one hook point of a batch, checked against its commit record.

    Args:
        identity: identity of the run.
        record: record of the batch.
        hook_point: hook point of the file.
        data: content of the file, as `read_committed` returns it.
        sidecar: content of the second file, if the format has one.

    Raises:
        CorruptBatchError: the file holds something else than the record says.
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
    """Read, check and parse the file of one hook point of a batch.

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
    """Return the output lines of a batch.

    Raises:
        CorruptBatchError: the file is damaged, or holds something else; the message names it.
    """
    data = read_named(storage, file)
    with naming(storage, file):
        return parse_lines(data)


def check_same_rows(
    storage: Storage, file: CommittedFile, keys: KeyTable | None, batch: ParsedBatch
) -> KeyTable:
    """Check that a hook point's rows have the keys of the batch's other hook points.

    Args:
        storage: storage of the run.
        file: file of this hook point.
        keys: keys of the hook points before; None for the first.
        batch: content of the file.

    Returns:
        The keys.

    Raises:
        CorruptBatchError: the keys differ.
    """
    if keys is not None and not keys.same_rows(batch.row_keys):
        with naming(storage, file):
            raise CorruptBatchError("its rows' keys differ from those of the other hook points")
    return batch.row_keys


def read_record(log: CommitLog, identity: RunIdentity, batch_id: int) -> CommitRecord:
    """Return a commit record, checked against itself and the run's identity.

    Raises:
        FileNotFoundError: there is none.
        StoreError: the record is damaged, or contradicts itself or the run's identity.
    """
    record = log.read(batch_id)
    problems = list(record_problems(record, identity))
    if problems:
        raise StoreError(f"{record_name(batch_id)}: {'; '.join(problems)}")
    return record


def read_named(storage: Storage, file: CommittedFile, *, with_sha256: bool = True) -> bytes:
    """Return the content of a file like `read_committed`; errors name the file."""
    with naming(storage, file):
        return read_committed(storage, file, with_sha256=with_sha256)


@contextlib.contextmanager
def naming(storage: Storage, file: CommittedFile) -> Iterator[None]:
    """Prefix the file's name to a CorruptBatchError that a `with` block raises."""
    try:
        yield
    except CorruptBatchError as error:
        raise CorruptBatchError(
            f"{storage.address}/{file.file}: {error}; `verify` lists all that is damaged"
        ) from None


def publish_once(storage: Storage, name: str, data: Content) -> CommittedFile:
    """Publish a file, unless an earlier attempt already published the same content.

    Raises:
        ConflictError: another file already has the name.
        StorageUnavailableError: the disk stayed full, or fails.
    """
    try:
        patiently(storage.address, lambda: storage.put_new(name, data))
    except FileExistsError:
        if storage.get(name) != b"".join(pieces(data)):
            raise ConflictError(
                f"{storage.address}/{name} exists with other content; it was left as it is"
            ) from None
    return CommittedFile.of(name, data)


@contextlib.contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Lock a run's folder against other writers for a `with` block; a bucket needs no lock.

    Raises:
        ExistingRunError: another process is writing to it.
    """
    lock = RunLock(storage.folder) if isinstance(storage, LocalStorage) else None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
