"""Joins runs of the same kind, such as one for each host or each part of the tasks, into one.

Files are copied as they are, under the next batch numbers. Each is parsed on the way, and must hold
what its record says: somebody else may have written it, and the merged run vouches for it. The
sources stay. Batches of a source that is not finished keep their place, so that merging again when
it is adds what was missing; so does merging again after a merge that was cut off.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence

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
"""Of the fingerprint: which samples a run has and how it cuts them, not what their rows are."""

ABSENT = {"pack_length": 0, "repetition_penalty": 1.0}
"""Of the fingerprint: what a run did that does not name a setting, as its command or its version
does not know it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One of the runs.

    Attributes:
        storage: of the run.
        identity: of the run.
        log: of its batches.
        batches: planned, or existing where no number was planned.
        first: batch number in the merged run of what would be batch 0 here.
        is_planned: whether the number of batches is final.
    """

    storage: Storage
    identity: RunIdentity
    log: CommitLog
    batches: int
    first: int
    is_planned: bool


def merge(out: Storage, storages: Sequence[Storage], progress: Progress = silent) -> RunTotals:
    """Copies the batches of all runs into one and gives its totals.

    Args:
        out: empty, or of an earlier attempt at the same.
        storages: of the runs, in the order of their batches.
        progress: told how far it is.

    Raises:
        StoreError: the runs do not belong together, or share keys; nothing was written then.
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
            raise StoreError(f"{storage.address} has batches beyond its plan; `verify` tells more")
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
    """Raises StoreError that names the settings by which two runs do not belong together."""
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
                f"{first.storage.address} and {other.storage.address} differ, and cannot be one"
                " run; nothing was changed:\n  " + "\n  ".join(differing)
            )


def _merged_identity(sources: Sequence[Source]) -> RunIdentity:
    first = sources[0].identity
    common = {
        key: value
        for key, value in first.fingerprint.items()
        if all(source.identity.fingerprint.get(key, ABSENT.get(key)) == value for source in sources)
    }
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
        run={
            "command": "merge",
            "sources": [
                {"address": source.storage.address, "run": dict(source.identity.run)}
                for source in sources
            ],
        },
    )


def _look_through(sources: Sequence[Source], progress: Progress) -> list[BatchToRewrite]:
    """Reads the keys of all batches.

    Raises:
        StoreError: a key or an output line's sample stands in two batches.
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
                f"{what} {json.dumps(key)}{more} stands in {places}; nothing was changed"
            )
    return work


def _hashes(source: Source, batch_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the rows' keys, of the sequences, and of the output lines' samples."""
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
