"""Check that a run is whole: that its files are what its commit records say.

    level 1  records, names, sizes (in a bucket also checksums, from the listing), metadata.json,
             and whether all planned batches exist; reads no activations
    level 2  each file: checksum, safe parse, hook point, rows, width, dtype, non-finite rows
    level 3  sha256, unique keys, the same keys for all hook points, output lines, statistics

By default a folder is checked at level 2, and a bucket at level 1, since its listing has checksums.

A batch exists if its commit record exists. Batches missing in an unfinished run are reported as
incomplete, not as damage, and files that no record names only as notes.
"""

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path

from extraction.documents import read_json
from extraction.errors import CorruptBatchError, StoreError
from extraction.maintenance.checks.contents import Contents, check_contents
from extraction.maintenance.checks.metadata_file import check_metadata
from extraction.maintenance.checks.records import record_problems
from extraction.maintenance.checks.report import Report, missing_numbers
from extraction.maintenance.checks.unique_keys import Key, KeyIndex, row_keys
from extraction.maintenance.committed_files import read_batch, read_outputs
from extraction.progress import Progress, silent
from extraction.reading.collector_pause import collector_paused
from extraction.reading.read_ahead import in_order, threads_for
from extraction.run.identity import SCHEMA_VERSION, RunIdentity
from extraction.run.metadata import get_metadata
from extraction.run.records import CommitLog, CommitRecord, CommittedFile
from extraction.run.totals import BatchSummary, RunTotals
from extraction.run.vocabulary import lines
from extraction.run_layout import (
    CLOSED_FILE,
    COMMITS,
    DERIVED,
    METADATA_FILE,
    OUTPUTS_FOLDER,
    RUN_FILE,
    SELF_CHECKS,
    VOCABULARY_FILE,
    parse_batch_file,
    parse_record_name,
    record_name,
)
from extraction.setting_names import setting
from extraction.storage import FileInfo, Storage, open_storage
from extraction.storage.bounded import LARGEST_DOCUMENT, get_at_most
from extraction.storage.local import LocalStorage
from extraction.writing.finalise import planned_batches, read_self_check


def verify(
    run: Storage | str | Path, level: int | None = None, progress: Progress = silent
) -> Report:
    """Check a run.

    Args:
        run: its folder, its `gs://bucket/prefix`, or an open `Storage`; nothing is written.
        level: 1 to 3; None: 2 on this machine's disks, 1 in a bucket.
        progress: called with the progress of the checks.

    Raises:
        StorageUnavailableError: the storage cannot be reached.
    """
    storage = open_storage(run, writable=False) if isinstance(run, str | Path) else run
    if level is None:
        level = 2 if storage.is_local else 1
    report = Report(address=storage.address, level=level)
    identity = _read_identity(storage, report)
    if identity is None:
        return report
    report.run_id = identity.run_id
    batches, bad_files = _check_listing(storage, identity, report, progress)
    if level >= 2:
        _check_contents(storage, identity, batches, report, bad_files, progress)
    return report


@collector_paused()
def _check_listing(
    storage: Storage, identity: RunIdentity, report: Report, progress: Progress
) -> tuple[list[BatchSummary], set[str]]:
    """Check level 1; return the batches whose records are good, and the damaged files."""
    # Read in this order, so that a run may go on meanwhile: metadata.json lists only batches that
    # have a record, and the files of a record exist.
    metadata = _get(storage, METADATA_FILE)
    batch_ids = _batch_ids(storage, report)
    files = storage.infos() | storage.infos(OUTPUTS_FOLDER)
    is_empty = not batch_ids and not any(map(parse_batch_file, files))
    bad_files = _check_records(storage, identity, batch_ids, files, report, progress)
    totals = report.totals
    batches = totals.batches()
    _look_for_missing(storage, identity, batches, report)
    _note_others(storage, files, report)
    if is_empty and metadata is not None and report.unfinished:
        report.unfinished.append(
            f"there is no batch here, although {METADATA_FILE} may list some: a run with"
            f" {setting('gcs_bucket')} keeps its batches in the bucket; verify that address"
        )
        return [], set()
    if _is_derivable(storage, report):
        check_metadata(metadata, storage, identity, totals, CommitLog(storage).read, files, report)
        _check_vocabulary(storage, totals, report)
        for name in storage.names(SELF_CHECKS):
            failed = read_self_check(storage, name).get("failed")
            if failed:
                report.add(name, f"marks the rows as wrong: {failed}")
    return batches, bad_files


def _get(storage: Storage, name: str) -> bytes | None:
    try:
        return get_metadata(storage) if name == METADATA_FILE else get_at_most(storage, name)
    except FileNotFoundError:
        return None


def _read_identity(storage: Storage, report: Report) -> RunIdentity | None:
    """Return the run's identity; None if it cannot be read, and note the reason in the report."""
    data = _get(storage, RUN_FILE)
    if data is None:
        if storage.names(COMMITS):
            report.add(RUN_FILE, "is missing; the run can be neither checked nor resumed")
            return None
        left = [n for n in storage.names() if n == METADATA_FILE or parse_batch_file(n)]
        report.foreign = "holds no run"
        if left:
            report.verdict_if_foreign = "unverifiable"
            report.foreign = (
                f"holds files of a run ({left[0]} and {len(left) - 1} more) without its _run"
                " folder, which says what they should be; copy _run too, it is small"
            )
        return None
    try:
        version = read_json(data)["schema_version"]
        if type(version) is int and version > SCHEMA_VERSION:
            report.foreign = (
                f"holds a run of schema version {version}, newer than this program, which reads"
                f" versions up to {SCHEMA_VERSION}"
            )
            return None
    except (ValueError, KeyError, TypeError):
        pass  # reported below
    try:
        identity = RunIdentity.from_json(data)
    except StoreError as error:
        report.add(RUN_FILE, str(error))
        return None
    return identity


def _batch_ids(storage: Storage, report: Report) -> list[int]:
    """Return the numbers of the batches that have a commit record, in order."""
    ids = []
    for name in storage.names(COMMITS):
        batch_id = parse_record_name(name)
        if batch_id is None:
            report.notes.append(f"{name} is not a commit record")
        else:
            ids.append(batch_id)
    return sorted(ids)


def _check_records(
    storage: Storage,
    identity: RunIdentity,
    batch_ids: Sequence[int],
    files: dict[str, FileInfo],
    report: Report,
    progress: Progress,
) -> set[str]:
    """Check level 1 of every commit record, and the listing of every file that it names.

    Args:
        storage: storage of the run.
        identity: identity of the run.
        batch_ids: numbers of the records, in order.
        files: the listing; files that a record names are removed from it.
        report: receives the problems and the totals of the good records.
        progress: called with the progress of the checks.

    Returns:
        The names of the damaged files.
    """
    totals = report.totals
    bad: set[str] = set()
    named: set[str] = set()
    for batch_id, record in CommitLog(storage).read_each(batch_ids):
        name = record_name(batch_id)
        progress("records checked", len(totals), len(batch_ids))
        if not isinstance(record, CommitRecord):
            report.add(name, str(record), batch_id)
            continue
        problems = list(record_problems(record, identity))
        record_files = record.all_files()
        for file in record_files:
            if file.file in named:
                problems.append(f"{file.file} is named by another record too")
        for problem in problems:
            report.add(name, problem, batch_id)
        if problems:
            continue
        totals.add(record)
        for file in record_files:
            named.add(file.file)
            problem = _listed_wrong(file, files.pop(file.file, None))
            if problem is not None:
                bad.add(file.file)
                report.add(file.file, problem, batch_id)
    report.counts = {
        "batches": len(totals),
        "files": totals.n_files,
        "bytes": totals.n_bytes,
        "rows": totals.n_rows,
        "sequences": totals.n_sequences,
    }
    return bad


def _listed_wrong(file: CommittedFile, info: FileInfo | None) -> str | None:
    if info is None:
        return "is missing"
    if info.bytes != file.bytes:
        return f"{info.bytes} bytes, {file.bytes} by its record"
    if info.crc32c is not None and info.crc32c != file.crc32c:
        return f"crc32c {info.crc32c}, {file.crc32c} by its record"
    return None


def _look_for_missing(
    storage: Storage, identity: RunIdentity, batches: Sequence[BatchSummary], report: Report
) -> None:
    """Report which planned batches do not exist."""
    try:
        planned = planned_batches(storage, identity)
    except StoreError as error:
        report.add(CLOSED_FILE, str(error))
        return
    if planned is None:
        report.unfinished.append("the run was not closed: it is still running, or was interrupted")
        return
    report.counts["planned_batches"] = planned
    damaged = {problem.batch_id for problem in report.problems}
    there = {batch.batch_id for batch in batches}
    known = there | {batch_id for batch_id in damaged if batch_id is not None}
    missing, which = missing_numbers(planned, known)
    if missing:
        report.unfinished.append(f"{missing} of {planned} batches are missing: {which}")
    for batch_id in sorted(there):
        if batch_id > planned or batch_id < 1:
            name = record_name(batch_id)
            report.add(name, f"the run has only {planned} batches", batch_id)


def _note_others(storage: Storage, files: Collection[str], report: Report) -> None:
    """Note the files that no commit record names."""
    damaged = any(problem.file.startswith(COMMITS) for problem in report.problems)
    more = " (among the readable records)" if damaged else ""
    report.notes += [f"{n}: no record names it{more}" for n in sorted({*files} - DERIVED)]
    if isinstance(storage, LocalStorage):
        for path in storage.temporary_files():
            name = path.relative_to(storage.folder)
            report.notes.append(f"{name}: temporary, of a process that is writing or was killed")


def _is_derivable(storage: Storage, report: Report) -> bool:
    """Return whether everything that `metadata.json` is derived from can be read."""
    for name in storage.names(SELF_CHECKS):
        try:
            read_self_check(storage, name)
        except StoreError as error:
            report.add(name, str(error).removeprefix(f"{name} "))
    if any(
        problem.file.startswith((COMMITS, CLOSED_FILE, SELF_CHECKS)) for problem in report.problems
    ):
        report.notes.append(f"{METADATA_FILE} was not compared, because records are damaged")
        return False
    return True


def _check_vocabulary(storage: Storage, totals: RunTotals, report: Report) -> None:
    """Compare `_run/vocabulary.jsonl` of a complete run with the records."""
    if report.unfinished or not totals.vocabulary:
        return
    expected = lines(totals.vocabulary)
    try:
        found = get_at_most(storage, VOCABULARY_FILE, max(LARGEST_DOCUMENT, 2 * len(expected)))
    except FileNotFoundError:
        report.add(VOCABULARY_FILE, "is missing; `repair` writes it")
        return
    except StoreError as error:
        report.add(VOCABULARY_FILE, str(error).removeprefix(f"{VOCABULARY_FILE} "))
        return
    if found != expected:
        report.add(VOCABULARY_FILE, "differs from the records; `repair` writes it anew")


def _check_contents(
    storage: Storage,
    identity: RunIdentity,
    batches: Sequence[BatchSummary],
    report: Report,
    bad_files: set[str],
    progress: Progress,
) -> None:
    """Check levels 2 and 3."""
    rows: KeyIndex[int] = KeyIndex()
    sequences: KeyIndex[int] = KeyIndex()
    lines: KeyIndex[int] = KeyIndex()
    widths: dict[str, int] = {}
    total, done = report.counts["bytes"], 0

    log = CommitLog(storage)

    def check(batch_id: int) -> Contents:
        return check_contents(storage, identity, log.read(batch_id), report.level, bad_files)

    batch_ids = [batch.batch_id for batch in batches]
    for batch_id, found in in_order(check, batch_ids, threads_for(storage)):
        report.problems += found.problems
        done += found.bytes_read
        progress("bytes checked", done, total)
        for hook, width in found.widths.items():
            if widths.setdefault(hook, width) != width:
                problem = f"{hook} has rows of {width} numbers, {widths[hook]} in batches before"
                report.add(record_name(batch_id), problem, batch_id)
        rows.add(batch_id, found.rows)
        sequences.add(batch_id, found.sequences)
        lines.add(batch_id, found.lines)
    report.counts["bytes_read"] = done
    if report.level < 3:
        return
    distinct, told = sequences.distinct(), report.counts["sequences"]
    if not report.problems and distinct != told:
        report.add(COMMITS, f"{distinct} samples have rows, but the records say {told}")

    def keys_of(batch_id: int) -> list[Key]:
        record = log.read(batch_id)
        for hook in record.files:
            with contextlib.suppress(CorruptBatchError):  # reported already
                return row_keys(read_batch(storage, identity, record, hook).keys)
        return []

    def samples_of(batch_id: int) -> list[Key]:
        outputs = log.read(batch_id).outputs
        assert outputs is not None
        told = read_outputs(storage, outputs)
        return [(line["task_id"], line["sample_idx"]) for line in told]

    for index, read, what in (
        (rows, keys_of, "keys (task_id, sample_idx, position) of rows"),
        (lines, samples_of, "samples (task_id, sample_idx) of output lines"),
    ):
        for key, first, second, count in index.duplicates(read):
            where = f"in batches {first} and {second}" if first != second else f"in batch {first}"
            report.add(record_name(second), f"{count} {what} occur twice, {where}: {key}", second)
