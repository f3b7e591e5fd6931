"""Batches of runs into another run: copied as they are, or in another format.

Every file is parsed on the way, and must hold what its record says, since the new run vouches for
it. What is written in another format is read back and compared, bit by bit. A rewriting that was
cut off goes on where it stopped.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from extraction.errors import StoreError
from extraction.formats import FORMATS, ParsedBatch
from extraction.formats.batch import KeyTable
from extraction.formats.float_types import bfloat16_bits, to_float32
from extraction.maintenance.committed_files import (
    check_same_rows,
    locked,
    naming,
    parse_committed,
    publish_once,
    read_batch,
    read_named,
    read_outputs,
    read_record,
)
from extraction.progress import Progress
from extraction.reading.read_ahead import in_order, threads_for
from extraction.run.identity import RunIdentity, begin, check_identity
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.rows import RowBlock, timestamp
from extraction.run.statistics import RowStatistics
from extraction.run.totals import RunTotals
from extraction.run_layout import batch_file, outputs_name
from extraction.storage import Content, Storage
from extraction.writing.disk_retry import patiently
from extraction.writing.finalise import copy_self_checks, write_metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchToRewrite:
    """A batch of a run, and what it becomes.

    Attributes:
        storage: storage of its run.
        identity: identity of its run.
        batch_id: number of the batch in its run.
        new_id: number of the batch in the new run.
        n_sequences: number of samples to record for the batch; None: the number in its record.
    """

    storage: Storage
    identity: RunIdentity
    batch_id: int
    new_id: int
    n_sequences: int | None = None


def rewrite(
    out: Storage,
    wanted: RunIdentity,
    batches: Sequence[BatchToRewrite],
    sources: Sequence[Storage],
    progress: Progress,
    what: str,
) -> RunTotals:
    """Write batches as a run and return its totals.

    Args:
        out: storage of the new run; empty, or with an earlier attempt at the same.
        wanted: identity of the new run, with the format to write.
        batches: batches of the source runs.
        sources: storages of the source runs; their self-checks are copied.
        progress: called with the number of rewritten batches.
        what: text for the progress line, such as "batches converted".

    Raises:
        StoreError: a file reads back otherwise than it was written.
        CorruptBatchError: a file is damaged.
        ExistingRunError: `out` holds another run.
    """
    check_identity(out, wanted, resume=True)
    with locked(out):
        begin(out, wanted)
        done = CommitLog(out).batch_ids()
        todo = [batch for batch in batches if batch.new_id not in done]

        def one(batch: BatchToRewrite) -> None:
            _rewrite_batch(batch, out, wanted)

        for number, _ in enumerate(in_order(one, todo, threads_for(out, *sources)), 1):
            progress(what, number, len(todo))
        copy_self_checks(sources, out)
        return write_metadata(out)


def _rewrite_batch(batch: BatchToRewrite, out: Storage, wanted: RunIdentity) -> None:
    source, identity = batch.storage, batch.identity
    record = read_record(CommitLog(source), identity, batch.batch_id)
    is_copied = (identity.file_format, identity.dtype) == (wanted.file_format, wanted.dtype)
    file_format = FORMATS[wanted.file_format]
    files, sidecars, statistics = {}, {}, dict(record.statistics)
    keys: KeyTable | None = None
    for hook in record.files:
        data: Content
        data, sidecar, before = _read_checked(source, identity, record, hook)
        keys = check_same_rows(source, record.files[hook], keys, before)
        if statistics[hook].largest is None:  # of version 0.1.0
            statistics[hook] = _statistics_of(before)
        if not is_copied:
            made = file_format.serialise(hook, before.block(), wanted.dtype)
            data, sidecar = made.data, made.sidecar
        name = batch_file(hook, batch.new_id, file_format.extension)
        files[hook] = publish_once(out, name, data)
        if sidecar is not None:
            assert file_format.sidecar_extension is not None
            second = batch_file(hook, batch.new_id, file_format.sidecar_extension)
            sidecars[hook] = publish_once(out, second, sidecar)
        del data
        if not is_copied:
            there = dataclasses.replace(record, files=files, sidecars=sidecars)
            after = read_batch(out, wanted, there, hook)
            _compare(before, after, f"{out.address}/{files[hook].file}")
            if before.dtype != after.dtype and after.dtype == "bfloat16":
                statistics[hook] = _statistics_of(after)
    outputs = record.outputs
    if outputs is not None:
        read_outputs(source, outputs)  # the new run vouches for them
        lines = read_named(source, outputs)
        outputs = publish_once(out, outputs_name(batch.new_id), lines)
    new = dataclasses.replace(
        record,
        batch_id=batch.new_id,
        n_sequences=record.n_sequences if batch.n_sequences is None else batch.n_sequences,
        files=files,
        sidecars=sidecars,
        outputs=outputs,
        statistics=statistics,
        written_at=timestamp(),
    )
    patiently(out.address, lambda: CommitLog(out).put(new))


def _statistics_of(batch: ParsedBatch) -> RowStatistics:
    return RowStatistics.of(to_float32(batch.stored, batch.dtype), keys=batch.keys)


def _read_checked(
    source: Storage, identity: RunIdentity, record: CommitRecord, hook: str
) -> tuple[bytes, bytes | None, ParsedBatch]:
    """The files of a hook point, and what they hold.

    Raises:
        CorruptBatchError: that is not what the record says.
    """
    file, second = record.files[hook], record.sidecars.get(hook)
    data = read_named(source, file)
    sidecar = None if second is None else read_named(source, second)
    with naming(source, file):
        return data, sidecar, parse_committed(identity, record, hook, data, sidecar)


def _compare(before: ParsedBatch, after: ParsedBatch, name: str) -> None:
    """Make sure that a file holds the rows that it was made of.

    Raises:
        StoreError: it does not.
    """
    for field in dataclasses.fields(RowBlock):
        if field.name != "activations":
            old, new = (getattr(batch.keys, field.name) for batch in (before, after))
            if not np.array_equal(old, new):
                raise StoreError(f"{name}: {field.name} came back otherwise than written")
    expected = before.stored
    if before.dtype != after.dtype:
        expected = to_float32(before.stored, before.dtype)
        if after.dtype == "bfloat16":
            expected = bfloat16_bits(expected)
    # As bits: NaN is not equal to itself.
    if expected.shape != after.stored.shape or expected.tobytes() != after.stored.tobytes():
        raise StoreError(f"{name}: activations came back otherwise than written")
