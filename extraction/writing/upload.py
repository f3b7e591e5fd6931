"""Upload from a local folder to the cloud: unit by unit, files first, commit record last.

During a run the local folder is a spool: each unit is committed there, uploaded in the background,
and removed when the cloud holds its commit record. The spool is bounded, so a slow network slows
the run down and never fills the disk. After a run `upload_folder` uploads a folder, and may be
repeated.

An object that an interrupted attempt left in the cloud is never overwritten: if it belongs to the
same unit of the same run it is kept, else the upload stops and says so.
"""

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable

from extraction.checksums import crc32c
from extraction.errors import ConflictError, CorruptBatchError, StoreError
from extraction.run.identity import begin, check_identity, read_identity
from extraction.run.records import CommitLog, CommitRecord, CommittedFile
from extraction.run.totals import RunTotals
from extraction.run_layout import (
    CLOSED_FILE,
    OUTPUTS_FOLDER,
    RUN_FOLDER,
    SELF_CHECKS,
    parse_batch_file,
    parse_outputs_name,
    record_name,
)
from extraction.storage import CloudStorage, Storage
from extraction.storage.bounded import TooLargeError, get_listed
from extraction.writing.finalise import write_metadata

log = logging.getLogger(__name__)

THREADS = 4
SPOOL_BYTES = 8 << 30


def upload_unit(local: Storage, cloud: CloudStorage, record: CommitRecord, run_id: str) -> None:
    """Publish a unit's files and its commit record in the cloud; keep the local files.

    Raises:
        CorruptBatchError: a local file differs from its commit record.
        ConflictError: the cloud holds another object of that name.
        StorageUnavailableError: the cloud cannot be reached, or refuses.
    """
    adopted: dict[str, CommittedFile] = {}
    for file in record.all_files():
        try:
            data = get_listed(local, file.file, file.bytes)
        except FileNotFoundError:
            if record.batch_id in CommitLog(cloud).batch_ids():
                return  # another process uploaded it and removed it from the spool that both share
            raise CorruptBatchError(
                f"{local.address}/{file.file} is missing; run verify there"
            ) from None
        except TooLargeError:
            data = b""
        if crc32c(data) != file.crc32c:
            raise CorruptBatchError(f"{local.address}/{file.file} is damaged; run verify there")
        attributes = _attributes(record, file, run_id)
        try:
            cloud.put_new(file.file, data, attributes)
        except FileExistsError:
            adopted[file.file] = _adopt(cloud, file, attributes)
    CommitLog(cloud).put(_with_files(record, adopted) if adopted else record)


def _adopt(cloud: CloudStorage, file: CommittedFile, attributes: dict[str, str]) -> CommittedFile:
    """Return the object that has the name already, if an earlier attempt at this unit made it."""
    found = cloud.attributes(file.file)
    if found.get("run_id") != attributes["run_id"]:
        raise ConflictError(
            f"{cloud.address}/{file.file} exists and belongs to run {found.get('run_id')!r}, not"
            f" to {attributes['run_id']!r}; it was left as it is; choose another prefix"
        )
    if found.get("keys_sha256") != attributes["keys_sha256"]:
        raise ConflictError(
            f"{cloud.address}/{file.file} is from an interrupted attempt at this batch that"
            " generated other tokens, as another kind of machine may; it was left as it is. When no"
            " other process of the run is alive, `python -m extraction repair --quarantine"
            f" {cloud.address}` moves it away"
        )
    info = cloud.info(file.file)
    assert info.crc32c is not None  # `CloudStorage.info` tells it of every object
    return CommittedFile(
        file=file.file, bytes=info.bytes, crc32c=info.crc32c, sha256=found["sha256"]
    )


def _with_files(record: CommitRecord, files: dict[str, CommittedFile]) -> CommitRecord:
    def now(file: CommittedFile) -> CommittedFile:
        return files.get(file.file, file)

    return dataclasses.replace(
        record,
        files={hook: now(file) for hook, file in record.files.items()},
        sidecars={hook: now(file) for hook, file in record.sidecars.items()},
        outputs=None if record.outputs is None else now(record.outputs),
    )


class Uploader:
    """Uploads units in threads and removes them from the spool afterwards.

    Use it in a `with` block, whose end waits for all uploads.

    Args:
        spool: local folder that holds the committed units.
        cloud: storage that they are uploaded to.
        run_id: id of the run.
        spool_bytes: most bytes that may wait in the spool; a larger unit waits alone.
        threads: number of threads that upload.
    """

    def __init__(
        self,
        spool: Storage,
        cloud: CloudStorage,
        run_id: str,
        *,
        spool_bytes: int = SPOOL_BYTES,
        threads: int = THREADS,
    ):
        self._spool, self._cloud, self._run_id = spool, cloud, run_id
        self._limit = spool_bytes
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._queue: queue.SimpleQueue[CommitRecord | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"upload-{i}", daemon=True)
            for i in range(threads)
        ]

    def __enter__(self) -> "Uploader":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if exception_type is None:
            self._raise_failure()

    def add(self, record: CommitRecord) -> None:
        """Queue a committed unit for upload; block while the spool is full.

        Raises:
            StoreError: an earlier upload failed.
        """
        size = sum(file.bytes for file in record.all_files())
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._failure is not None
                    or self._waiting_bytes == 0
                    or self._waiting_bytes + size <= self._limit
                )
            )
            self._raise_failure()
            self._waiting_bytes += size
        self._queue.put(record)

    def add_left_over(self) -> None:
        """Queue the units that an earlier attempt committed to the spool and did not upload."""
        spool_log, in_cloud = CommitLog(self._spool), CommitLog(self._cloud).batch_ids()
        for batch_id in sorted(spool_log.batch_ids()):
            try:
                record = spool_log.read(batch_id)
            except FileNotFoundError:  # another process of the run has uploaded it meanwhile
                continue
            if batch_id in in_cloud:
                self._empty(record)
            else:
                self.add(record)
        for name in (*self._spool.names(), *self._spool.names(OUTPUTS_FOLDER)):
            parts = parse_batch_file(name)
            batch_id = parts.batch_id if parts else parse_outputs_name(name)
            if batch_id in in_cloud:  # killed after it removed the record
                self._spool.remove(name)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            try:
                if self._failure is None:  # after a failure only empty the queue
                    upload_unit(self._spool, self._cloud, record, self._run_id)
                    self._empty(record)
            except BaseException as error:
                self._failure = self._failure or error
            finally:
                with self._changed:
                    self._waiting_bytes -= sum(file.bytes for file in record.all_files())
                    self._changed.notify_all()

    def _empty(self, record: CommitRecord) -> None:
        """Remove a unit from the spool, its record first: files without one do not count."""
        self._spool.remove(record_name(record.batch_id))
        for file in record.all_files():
            self._spool.remove(file.file)


def upload_folder(
    local: Storage, cloud: CloudStorage, progress: Callable[[CommitRecord], None] = lambda _: None
) -> RunTotals:
    """Upload every unit of a local folder that the cloud lacks; keep the folder as it is.

    May be repeated, and continues where it was interrupted. Objects missing in the cloud are
    uploaded again if the folder has them.

    Returns:
        Totals of all batches in the cloud.

    Raises:
        StoreError: the folder holds no run, or the cloud another one.
        CorruptBatchError: an object that a record in the cloud names is missing or has changed.
    """
    identity = read_identity(local)
    if identity is None:
        raise StoreError(f"{local.address} holds no run")
    check_identity(cloud, identity, resume=True)
    if begin(cloud, identity).run_id != identity.run_id:
        raise ConflictError(f"{cloud.address} holds another run; choose another prefix")
    in_cloud = CommitLog(cloud).batch_ids()
    for record in CommitLog(local).records():
        if record.batch_id not in in_cloud:
            upload_unit(local, cloud, record, identity.run_id)
        progress(record)
    _check_listing(local, cloud, identity.run_id)
    closed = [name for name in local.names(RUN_FOLDER) if name == CLOSED_FILE]
    for name in (*closed, *local.names(SELF_CHECKS)):
        cloud.replace(name, local.get(name))
    return write_metadata(cloud)


def _check_listing(local: Storage, cloud: CloudStorage, run_id: str) -> None:
    """Compare the cloud's listing with its commit records, and upload missing files again.

    Raises:
        CorruptBatchError: an object differs from its record, or is missing here and there.
    """
    log = CommitLog(cloud)
    # Batches may be added meanwhile. List after reading the ids: then every one is in the listing.
    batch_ids = sorted(log.batch_ids())
    listed = cloud.infos() | cloud.infos(OUTPUTS_FOLDER)
    for record in log.read_all(batch_ids):
        for file in record.all_files():
            place, info = f"{cloud.address}/{file.file}", listed.get(file.file)
            if info is None:
                _put_back(local, cloud, record, file, run_id)
            elif info.bytes != file.bytes or info.crc32c not in (None, file.crc32c):
                raise CorruptBatchError(
                    f"{place} has {info.bytes} bytes and crc32c {info.crc32c}, but its record says"
                    f" {file.bytes} bytes and {file.crc32c}: it was changed after its upload, and"
                    " was left as it is; remove it, and upload again"
                )


def _put_back(
    local: Storage, cloud: CloudStorage, record: CommitRecord, file: CommittedFile, run_id: str
) -> None:
    """Upload a file that a commit record in the cloud names, but the cloud no longer holds."""
    try:
        data = get_listed(local, file.file, file.bytes)
    except (FileNotFoundError, TooLargeError):
        data = None
    if data is None or CommittedFile.of(file.file, data) != file:
        raise CorruptBatchError(
            f"{cloud.address}/{file.file} is missing, and {local.address} has no copy to upload"
            " again; its batch is lost here"
        )
    cloud.put_new(file.file, data, _attributes(record, file, run_id))
    log.warning("%s/%s was missing and was uploaded again", cloud.address, file.file)


def _attributes(record: CommitRecord, file: CommittedFile, run_id: str) -> dict[str, str]:
    """Return the attributes to store with an object."""
    return {"run_id": run_id, "keys_sha256": record.keys_sha256, "sha256": file.sha256}
