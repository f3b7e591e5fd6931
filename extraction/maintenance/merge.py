"""Merge runs of the same kind, such as one per host or per part of the tasks, into one run.

Files are copied as they are, under consecutive batch numbers. Each is parsed and compared with its
commit record first, since somebody else may have written it. The sources stay as they are. Numbers
are reserved for the missing batches of an unfinished source, so that merging again when it is
finished adds them. An interrupted merge is continued by merging again.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.maintenance.checks.unique_keys import (
    Key,
    KeyIndex,
    row_hashes,
    row_keys,
    sequence_hashes,
    text_hashes,
)
from extraction.maintenance.committed_files import read_batch, read_outputs, read_record
from extraction.maintenance.rewrite import BatchToRewrite, rewrite
from extraction.progress import Progress, silent
from extraction.reading.read_ahead import in_order, threads_for
from extraction.reading.run_contents import token_ids
from extraction.run.identity import RunIdentity, check_identity, read_identity
from extraction.run.records import CommitLog
from extraction.run.totals import RunTotals
from extraction.storage import Storage
from extraction.writing.finalise import planned_batches

SAME = ("model_name", "hook_points", "hidden_dim", "file_format", "dtype")

PART_OF_THE_WORK = {
    "command", "samples_sha256", "save_every_n_samples", "batch_size", "tokens_per_batch",
    "merged_from", "converted_from",
}  # fmt: skip
"""Fingerprinted settings that choose and divide samples, but do not change any row."""

ABSENT = {"pack_length": 0, "repetition_penalty": 1.0}
"""Values of fingerprinted settings that a run does not name because its command or version lacks
them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One of the runs to merge.

    Attributes:
        storage: storage of the run.
        identity: identity of the run.
        log: commit log of its batches.
        batches: number of planned batches; of existing ones if no number was planned.
        first: number to add to a batch's number here to get its number in the merged run.
        is_planned: whether the number of batches is final.
    """

    storage: Storage
    identity: RunIdentity
    log: CommitLog
    batches: int
    first: int
    is_planned: bool


def merge(out: Storage, storages: Sequence[Storage], progress: Progress = silent) -> RunTotals:
    """Copy the batches of all runs into one, and return its totals.

    Args:
        out: an empty storage, or that of an interrupted merge of the same runs.
        storages: storages of the runs, in the order of their batches.
        progress: called with the progress of the merge.

    Raises:
        StoreError: the runs do not belong together, or share keys; then nothing was written.
        CorruptBatchError: a file is damaged.
        ExistingRunError: `out` holds another run.
    """
    sources = _open(storages)
    _refuse_differing(sources)
    wanted = _merged_identity(sources)
    check_identity(out, wanted, resume=True)  # before all keys are read
    batches = _look_through(sources, progress)
    return rewrite(out, wanted, batches, storages, progress, "batches copied")


def _open(storages: Sequence[Storage]) -> list[Source]:
    sources: list[Source] = []
    for storage in storages:
        identity = read_identity(storage)
        if identity is None:
            raise StoreError(f"{storage.address} holds no run")
        for other in sources:
            if other.identity.run_id == identity.run_id:
                raise StoreError(
                    f"{storage.address} and {other.storage.address} are the same run,"
                    f" {identity.run_id}"
                )
        log = CommitLog(storage)
        ids, planned = log.batch_ids(), planned_batches(storage, identity)
        batches = max(ids, default=0) if planned is None else planned
        if ids and not 1 <= min(ids) <= max(ids) <= batches:
            raise StoreError(f"{storage.address} has batches beyond its plan; run `verify` on it")
        sources.append(
            Source(
                storage=storage,
                identity=identity,
                log=log,
                batches=batches,
                first=sum(source.batches for source in sources),
                is_planned=planned is not None,
            )
        )
    return sources


def _refuse_differing(sources: Sequence[Source]) -> None:
    """Raise StoreError if two runs differ in settings that a merged run must share."""
    first = sources[0]
    for other in sources[1:]:
        pairs = {key: (getattr(first.identity, key), getattr(other.identity, key)) for key in SAME}
        one, two = first.identity.fingerprint, other.identity.fingerprint
        pairs |= {
            key: (one.get(key, ABSENT.get(key)), two.get(key, ABSENT.get(key)))
            for key in sorted({*one, *two} - PART_OF_THE_WORK)
        }
        differing = [f"{key}: {a!r} and {b!r}" for key, (a, b) in pairs.items() if a != b]
        if differing:
            raise StoreError(
                f"{first.storage.address} and {other.storage.address} differ in these settings, so"
                " they cannot be one run; nothing was changed:\n  " + "\n  ".join(differing)
            )


def _merged_identity(sources: Sequence[Source]) -> RunIdentity:
    first = sources[0].identity
    common = {
        key: value
        for key, value in first.fingerprint.items()
        if all(source.identity.fingerprint.get(key, ABSENT.get(key)) == value for source in sources)
    }
    special = {token_ids(source.identity.run) for source in sources}
    run: dict[str, Any] = {
        "command": "merge",
        "sources": [
            {"address": source.storage.address, "run": dict(source.identity.run)}
            for source in sources
        ],
    }
    if len(special) == 1 and None not in special:
        run["special_token_ids"] = [*(special.pop() or ())]
    return RunIdentity.new(
        model_name=first.model_name,
        hook_points=first.hook_points,
        hidden_dim=first.hidden_dim,
        file_format=first.file_format,
        dtype=first.dtype,
        planned_batches=(
            sum(source.batches for source in sources)
            if all(source.is_planned for source in sources)
            else None
        ),
        fingerprint=common
        | {"merged_from": [[source.identity.run_id, source.batches] for source in sources]},
        run=run,
    )


def _look_through(sources: Sequence[Source], progress: Progress) -> list[BatchToRewrite]:
    """Read the keys of all batches, and return the batches to copy.

    Raises:
        StoreError: two batches share a key or an output line's sample.
        CorruptBatchError: a file is damaged.
    """
    rows: KeyIndex[tuple[Source, int]] = KeyIndex()
    lines: KeyIndex[tuple[Source, int]] = KeyIndex()
    batches = [
        (source, batch_id) for source in sources for batch_id in sorted(source.log.batch_ids())
    ]
    work: list[BatchToRewrite] = []
    earlier, here = np.zeros(0, np.uint64), []
    again: set[int] = set()
    threads = threads_for(*(source.storage for source in sources))
    read = in_order(lambda batch: _hashes(*batch), batches, threads)
    for _, group in itertools.groupby(read, key=lambda item: item[0][0].first):
        for (origin, batch_id), (row_part, sequence_part, line_part) in group:
            progress("batches looked through", len(work), len(batches))
            rows.add((origin, batch_id), row_part)
            lines.add((origin, batch_id), line_part)
            here.append(sequence_part)
            known = set(sequence_part[np.isin(sequence_part, earlier)].tolist()) - again
            again |= known
            record = read_record(origin.log, origin.identity, batch_id)
            batch = BatchToRewrite(
                storage=origin.storage,
                identity=origin.identity,
                batch_id=batch_id,
                new_id=origin.first + batch_id,
                n_sequences=record.n_sequences - len(known),
            )
            work.append(batch)
        earlier, here, again = np.unique(np.concatenate([earlier, *here])), [], set()
    for index, keys, what in (
        (rows, _row_keys, "the key (task_id, sample_idx, position)"),
        (lines, _samples, "an output line of (task_id, sample_idx)"),
    ):
        for key, one, two, count in index.duplicates(lambda batch, keys=keys: keys(*batch)):
            places = " and in ".join(f"{b[0].storage.address} (batch {b[1]})" for b in (one, two))
            more = f", and {count - 1} more" if count > 1 else ""
            raise StoreError(
                f"{what} {json.dumps(key)}{more} occurs in {places}; nothing was changed"
            )
    return work


def _hashes(source: Source, batch_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the hashes of a batch's row keys, its samples with rows, and its output lines."""
    record = read_record(source.log, source.identity, batch_id)
    rows = sequences = lines = np.zeros(0, np.uint64)
    if record.files:
        hook = next(iter(record.files))
        keys = read_batch(source.storage, source.identity, record, hook, with_sha256=False).keys
        rows, sequences = row_hashes(keys), np.unique(sequence_hashes(keys))
    if record.outputs is not None:
        samples = _samples(source, batch_id)
        lines = text_hashes([task for task, _ in samples], [number for _, number in samples])
    return rows, sequences, lines


def _row_keys(source: Source, batch_id: int) -> list[Key]:
    record = source.log.read(batch_id)
    hook = next(iter(record.files))
    return row_keys(read_batch(source.storage, source.identity, record, hook).keys)


def _samples(source: Source, batch_id: int) -> list[Key]:
    outputs = source.log.read(batch_id).outputs
    assert outputs is not None
    lines = read_outputs(source.storage, outputs)
    return [(line["task_id"], line["sample_idx"]) for line in lines]
