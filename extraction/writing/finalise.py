"""Files derived from the commit records, by any process, at any time.

`metadata.json` says what the run holds; `outputs.jsonl` joins the output lines of all batches in
the order of the samples. Both are pure functions of `_run/`, so it does not matter which process
writes them last, or whether that process belongs to the run.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from extraction.documents import is_count, read_json
from extraction.errors import StoreError, UnsafeFileError
from extraction.reading.collector_pause import collector_paused
from extraction.reading.read_ahead import read_files
from extraction.run.identity import RunIdentity, read_identity
from extraction.run.large_norms import summary_of
from extraction.run.metadata import BatchFile, metadata_document
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.totals import RunTotals
from extraction.run.vocabulary import lines
from extraction.run_layout import (
    CLOSED_FILE,
    METADATA_FILE,
    SELF_CHECKS,
    VOCABULARY_FILE,
    self_check_name,
)
from extraction.storage import Storage
from extraction.storage.bounded import TooLargeError, get_at_most
from extraction.writing.disk_retry import STALL_TIMEOUT, patiently


def write_metadata(
    storage: Storage,
    totals: RunTotals | None = None,
    copies: Sequence[Storage] = (),
    *,
    stall_timeout: float = STALL_TIMEOUT,
) -> RunTotals:
    """Write `metadata.json` and the vocabulary of all committed batches; return their totals.

    Another process may commit a batch and write the file in between, and be overwritten with less.
    So each process looks again after writing, and writes again if there is more: the last file
    names every batch.

    Args:
        storage: storage of the run.
        totals: those of an earlier call for the same run, which are brought up to date; their
            commit records are not read again.
        copies: further storages that the same document is written to.
        stall_timeout: seconds to wait while the disk is full.

    Raises:
        StoreError: the folder holds no run.
        StorageUnavailableError: the disk stayed full, or fails.
    """
    identity = read_identity(storage)
    if identity is None:
        raise StoreError(f"{storage.address} holds no run")
    log, totals = CommitLog(storage), RunTotals() if totals is None else totals
    while True:
        with collector_paused():
            seen = totals.read_new(log), storage.names(SELF_CHECKS)
            document = derived_document(storage, identity, totals)
        for place in (storage, *copies):
            if totals.vocabulary:  # first: a run whose metadata.json is complete has it
                write = functools.partial(place.replace, VOCABULARY_FILE, lines(totals.vocabulary))
                patiently(place.address, write, stall_timeout)
            write = functools.partial(place.replace, METADATA_FILE, document)
            patiently(place.address, write, stall_timeout)
        if seen == (log.batch_ids(), storage.names(SELF_CHECKS)):
            return totals


def derived_document(
    storage: Storage, identity: RunIdentity, totals: RunTotals, *, list_files: bool = True
) -> bytes:
    """Return `metadata.json` for these totals; without `list_files` it names no batch's files."""
    batches = [
        BatchFile(
            batch_id=batch.batch_id,
            hook_point=hook,
            file=batch.files[hook],
            n_samples=batch.n_rows,
        )
        for batch in (totals.batches() if list_files else ())
        for hook in identity.hook_points
        if hook in batch.files
    ]
    statistics = {hook: summary_of(totals.statistics(hook)) for hook in identity.hook_points}
    planned = planned_batches(storage, identity)
    checks = [read_self_check(storage, name) for name in storage.names(SELF_CHECKS)]
    return metadata_document(
        model_name=identity.model_name,
        hook_points=identity.hook_points,
        hidden_dim=identity.hidden_dim,
        batches=batches,
        total_sequences=totals.n_sequences,
        complete=len(totals) == planned,
        file_format=identity.file_format,
        dtype=identity.dtype,
        run={**identity.run, "self_check": checks} if checks else identity.run,
        more={
            "run_id": identity.run_id,
            "created_at": identity.created_at,
            "planned_batches": planned,
            "fingerprint": dict(identity.fingerprint),
            "statistics": statistics,
        },
    )


def read_self_check(storage: Storage, name: str) -> dict[str, Any]:
    """Return what a process's self-check found when it computed some rows again.

    Its fields: `rows` that were computed again (version 0.1.0: `samples`), `largest_error` (null
    if infinite) and, where rows are wrong, `failed`, which says how.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        found = read_json(get_at_most(storage, name))
    except (UnsafeFileError, TooLargeError):
        raise
    except ValueError as error:
        raise StoreError(f"{name} is damaged: {error!r}") from None
    if not (
        isinstance(found, dict)
        and is_count(found.get("rows", found.get("samples")))
        and isinstance(found.get("largest_error"), int | float | None)
        and isinstance(found.get("failed", ""), str)
    ):
        raise StoreError(f"{name} is damaged: it must be an object with rows and largest_error")
    return found


def copy_self_checks(sources: Sequence[Storage], out: Storage) -> None:
    """Copy the self-checks of other runs into a run, so that wrong rows stay marked."""
    found = [read_self_check(source, n) for source in sources for n in source.names(SELF_CHECKS)]
    for number, check in enumerate(found):
        out.replace(self_check_name(number), json.dumps(check).encode())


def planned_batches(storage: Storage, identity: RunIdentity) -> int | None:
    """Return the number of batches of the finished run; None while it is not known."""
    if identity.planned_batches is not None:
        return identity.planned_batches
    try:
        batches = read_json(get_at_most(storage, CLOSED_FILE))["batches"]
        if not is_count(batches):
            raise ValueError(f"batches {batches!r}")
        return batches
    except FileNotFoundError:
        return None
    except (UnsafeFileError, TooLargeError):
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{CLOSED_FILE} is damaged: {error!r}") from None


def close(storage: Storage, batches: int) -> None:
    """Record that a run without a plan has ended, with so many batches."""
    document = (json.dumps({"batches": batches}) + "\n").encode()
    patiently(storage.address, lambda: storage.replace(CLOSED_FILE, document))


def output_lines(storage: Storage, records: Iterable[CommitRecord]) -> Iterator[dict[str, Any]]:
    """Yield the output lines of all batches, batch by batch."""
    files = [record.outputs for record in records if record.outputs is not None]
    largest = max((file.bytes for file in files), default=0)
    for _, found in read_files(storage, [file.file for file in files], largest):
        if not isinstance(found, bytes):
            raise found
        yield from (json.loads(line) for line in found.split(b"\n") if line)
