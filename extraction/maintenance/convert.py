"""One file format into another, each row compared with what is read back.

Batch numbers, keys and output lines stay. bfloat16 becomes float32 exactly; float32 becomes
bfloat16 only where it is asked for, and is then compared with the rounded value.
"""

import dataclasses

import numpy as np

from extraction.errors import StoreError
from extraction.formats import FORMATS, ParsedBatch, written_format
from extraction.formats.batch import KeyTable, check_dtype
from extraction.formats.float_types import bfloat16_bits, to_float32
from extraction.maintenance.committed_files import (
    check_same_rows,
    locked,
    publish_once,
    read_batch,
    read_named,
    read_outputs,
    read_record,
)
from extraction.progress import Progress, silent
from extraction.reading.read_ahead import in_order, threads_for
from extraction.run.identity import RunIdentity, begin, check_identity, read_identity
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.rows import RowBlock, timestamp
from extraction.run.statistics import RowStatistics
from extraction.run.totals import RunTotals
from extraction.storage import Storage
from extraction.writing.disk_retry import patiently
from extraction.writing.finalise import copy_self_checks, planned_batches, write_metadata


def convert(
    source: Storage,
    out: Storage,
    file_format: str,
    store_dtype: str | None = None,
    progress: Progress = silent,
) -> RunTotals:
    """Writes a run anew in another format and gives its totals.

    It can be repeated, and goes on where it was cut off.

    Args:
        source: of the run, which stays.
        out: empty, or of an earlier attempt at the same.
        file_format: to write, a name in `FORMATS`.
        store_dtype: to write; None: the run's own, or float32 where the format cannot hold it.
        progress: told how far it is.

    Raises:
        StoreError: there is no run, or the format does not hold the dtype.
        CorruptBatchError: a file is damaged.
        ExistingRunError: `out` holds another run.
    """
    identity = read_identity(source)
    if identity is None:
        raise StoreError(f"{source.address} holds no run")
    dtypes = written_format(file_format).dtypes
    if store_dtype is None:
        store_dtype = identity.dtype if identity.dtype in dtypes else "float32"
    check_dtype(file_format, dtypes, store_dtype)
    wanted = RunIdentity.new(
        model_name=identity.model_name,
        hook_points=identity.hook_points,
        hidden_dim=identity.hidden_dim,
        file_format=file_format,
        dtype=store_dtype,
        planned_batches=planned_batches(source, identity),
        fingerprint={**identity.fingerprint, "converted_from": identity.run_id},
        run={
            "program_version": "not recorded",  # of the rows, which are as they were
            **identity.run,
            "converted_from": [identity.file_format, identity.dtype],
        },
    )
    check_identity(out, wanted, resume=True)
    with locked(out):
        begin(out, wanted)
        log, done = CommitLog(source), CommitLog(out).batch_ids()
        todo = sorted(log.batch_ids() - done)

        def convert_batch(batch_id: int) -> None:
            _convert_batch(source, identity, read_record(log, identity, batch_id), out, wanted)

        for number, _ in enumerate(in_order(convert_batch, todo, threads_for(source, out)), 1):
            progress("batches converted", number, len(todo))
        copy_self_checks([source], out)
        return write_metadata(out)


def _convert_batch(
    source: Storage,
    identity: RunIdentity,
    record: CommitRecord,
    out: Storage,
    wanted: RunIdentity,
) -> None:
    file_format = FORMATS[wanted.file_format]
    files, sidecars, statistics = {}, {}, {}
    keys: KeyTable | None = None
    for hook in record.files:
        before = read_batch(source, identity, record, hook)
        keys = check_same_rows(source, record.files[hook], keys, before)
        batch = file_format.serialise(hook, before.block(), wanted.dtype)
        name = f"{hook}_batch_{record.batch_id:06d}"
        files[hook] = publish_once(out, f"{name}.{file_format.extension}", batch.data)
        if batch.sidecar is not None:
            second = f"{name}.{file_format.sidecar_extension}"
            sidecars[hook] = publish_once(out, second, batch.sidecar)
        statistics[hook] = record.statistics[hook]
        del batch
        there = dataclasses.replace(record, files=files, sidecars=sidecars)
        after = read_batch(out, wanted, there, hook)
        _compare(before, after, f"{out.address}/{files[hook].file}")
        if before.dtype != after.dtype and after.dtype == "bfloat16":
            statistics[hook] = RowStatistics.of(to_float32(after.stored, after.dtype))
    outputs = record.outputs
    if outputs is not None:
        read_outputs(source, outputs)  # the new run vouches for them
        outputs = publish_once(out, outputs.file, read_named(source, outputs))
    new = dataclasses.replace(
        record,
        files=files,
        sidecars=sidecars,
        outputs=outputs,
        statistics=statistics,
        written_at=timestamp(),
    )
    patiently(out.address, lambda: CommitLog(out).put(new))


def _compare(before: ParsedBatch, after: ParsedBatch, name: str) -> None:
    """Makes sure that a file holds the rows that it was made of.

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
