"""Rewrite the files derived from a run's commit records, or from its files without records.

Nothing is ever deleted. Files that no record names do no harm and stay. With `quarantine` these
files and unreadable records are moved to `_run/quarantine/`, so that a run with --resume computes
their batches again.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator

from extraction.errors import CorruptBatchError, StorageUnavailableError, StoreError
from extraction.formats import FORMATS
from extraction.maintenance.checks.records import record_problems
from extraction.maintenance.committed_files import read_committed
from extraction.maintenance.rebuild_from_files import rebuild_from_files
from extraction.progress import Progress, silent
from extraction.run.identity import RunIdentity, RunLock, read_identity
from extraction.run.records import CommitLog
from extraction.run.totals import RunTotals
from extraction.run.vocabulary import lines
from extraction.run_layout import (
    METADATA_FILE,
    OUTPUTS_FILE,
    OUTPUTS_FOLDER,
    QUARANTINE,
    RUN_FOLDER,
    VOCABULARY_FILE,
    parse_batch_file,
    parse_lock_name,
    parse_outputs_name,
    record_name,
)
from extraction.setting_names import setting
from extraction.storage import Storage
from extraction.storage.local import LocalStorage
from extraction.writing.disk_retry import patiently
from extraction.writing.finalise import derived_document, planned_batches, write_metadata


@dataclasses.dataclass(kw_only=True)
class Repair:
    """The result of a repair.

    Attributes:
        done: a line for each action.
        damage: a line for each piece of damage that could not be repaired.
    """

    done: list[str] = dataclasses.field(default_factory=list)
    damage: list[str] = dataclasses.field(default_factory=list)


def repair(storage: Storage, *, quarantine: bool = False, progress: Progress = silent) -> Repair:
    """Rebuild `metadata.json`, and `outputs.jsonl` if it is in the run's folder.

    Args:
        storage: storage of the run.
        quarantine: whether to move away files that no record names.
        progress: called with the progress of reading.

    Raises:
        StoreError: there is no run, or another process may be writing while `quarantine` is set.
    """
    result = Repair()
    identity = read_identity(storage)
    if identity is None:
        if quarantine:
            raise StoreError(
                f"{storage.address} has no _run folder, which says which files are of use;"
                f" repair it without {setting('quarantine')}"
            )
        rebuilt = rebuild_from_files(storage, progress)
        result.done.append(
            f"{METADATA_FILE} lists {rebuilt.batches} batches that were found; without the _run"
            " folder nothing says whether any is missing"
        )
        result.damage += rebuilt.left_out
        return result
    log = CommitLog(storage)
    totals, named, unreadable = _read_records(storage, identity, log)
    if quarantine:
        _quarantine(storage, identity, len(totals), named, unreadable, result)
    elif unreadable:
        result.damage += [f"{name}: {problem}" for name, problem in unreadable.items()]
        result.damage.append(
            f"batches with a damaged record are left out; {setting('quarantine')} moves the"
            " records away, so that the run computes these batches again with"
            f" {setting('resume', True)}"
        )
    if result.damage:
        document = derived_document(storage, identity, totals)
        patiently(storage.address, lambda: storage.replace(METADATA_FILE, document))
        if totals.vocabulary:
            text = lines(totals.vocabulary)
            patiently(storage.address, lambda: storage.replace(VOCABULARY_FILE, text))
    else:
        totals = write_metadata(storage, totals)
    result.done.append(f"{METADATA_FILE} lists {len(totals)} batches")
    _refresh_outputs(storage, log, totals, result)
    return result


def _read_records(
    storage: Storage, identity: RunIdentity, log: CommitLog
) -> tuple[RunTotals, set[str], dict[str, str]]:
    """Return the totals of good records, the files they name, and the problems of other records."""
    totals, named, unreadable = RunTotals(), set(), {}
    for batch_id in sorted(log.batch_ids()):
        try:
            record = log.read(batch_id)
            problems = list(record_problems(record, identity))
            if problems:
                raise StoreError("; ".join(problems))
            totals.add(record)
            named.update(file.file for file in record.all_files())
        except StorageUnavailableError:
            raise
        except StoreError as error:
            unreadable[record_name(batch_id)] = str(error)
    return totals, named, unreadable


def _quarantine(
    storage: Storage,
    identity: RunIdentity,
    batches: int,
    named: Collection[str],
    unreadable: dict[str, str],
    result: Repair,
) -> None:
    with _nobody_writes(storage, identity, batches + len(unreadable)):
        found = [name for name in storage.names() if _is_batch_file(name)]
        found += [n for n in storage.names(OUTPUTS_FOLDER) if parse_outputs_name(n) is not None]
        for name in [*unreadable, *(name for name in found if name not in named)]:
            place = _move(storage, name)
            result.done.append(f"{name} moved to {place}")


def _is_batch_file(name: str) -> bool:
    parts = parse_batch_file(name)
    extensions = {f.extension for f in FORMATS.values()}
    extensions |= {f.sidecar_extension for f in FORMATS.values() if f.sidecar_extension}
    return parts is not None and parts.extension in extensions


@contextlib.contextmanager
def _nobody_writes(storage: Storage, identity: RunIdentity, batches: int) -> Iterator[None]:
    """Refuse to move files while a run may still write: it may be about to record them."""
    with contextlib.ExitStack() as stack:
        if isinstance(storage, LocalStorage):
            locks = map(parse_lock_name, storage.names(RUN_FOLDER))
            for number in sorted({0, *(lock for lock in locks if lock is not None)}):
                stack.callback(RunLock(storage.folder, number).release)
        elif batches != planned_batches(storage, identity):
            raise StoreError(
                f"{storage.address} is not finished, and another machine may be writing to it;"
                f" finish the run with {setting('resume', True)}, then quarantine what is left"
            )
        yield


def _move(storage: Storage, name: str) -> str:
    """Copy a file to the quarantine, then remove it; return its new name."""
    data = storage.get(name)
    base = QUARANTINE + name.rpartition("/")[2]
    for number in range(1000):
        place = base if number == 0 else f"{base}.{number}"
        try:
            storage.put_new(place, data)
        except FileExistsError:
            if storage.get(place) != data:
                continue
        storage.remove(name)
        return place
    raise StoreError(f"{QUARANTINE} holds 1000 other files named {name}; empty it")


def _refresh_outputs(storage: Storage, log: CommitLog, totals: RunTotals, result: Repair) -> None:
    """Rewrite `outputs.jsonl` if it exists and its lines differ from those of the batches.

    Only the run knows the order of its samples, so a file with the right lines stays.
    """
    if OUTPUTS_FILE not in storage.names():
        return
    lines: list[bytes] = []
    for batch in totals.batches():
        record = log.read(batch.batch_id)
        if record.outputs is not None:
            try:
                data = read_committed(storage, record.outputs)
            except CorruptBatchError as error:
                result.damage.append(f"{record.outputs.file}: {error}")
                return
            lines += [line for line in data.split(b"\n") if line]
    there = [line for line in storage.get(OUTPUTS_FILE).split(b"\n") if line]
    if Counter(there) != Counter(lines):
        document = b"".join(line + b"\n" for line in lines)
        patiently(storage.address, lambda: storage.replace(OUTPUTS_FILE, document))
        result.done.append(f"{OUTPUTS_FILE} written anew, {len(lines)} lines in batch order")
