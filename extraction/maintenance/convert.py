"""Convert a run to another file format, and compare each row with what is read back.

Batch numbers, keys and output lines stay the same. bfloat16 becomes float32 exactly; float32
becomes bfloat16 only on request, and is then compared with the rounded value.
"""

from extraction.errors import StoreError
from extraction.formats import written_format
from extraction.formats.batch import check_dtype
from extraction.maintenance.rewrite import BatchToRewrite, rewrite
from extraction.progress import Progress, silent
from extraction.run.identity import RunIdentity, read_identity
from extraction.run.records import CommitLog
from extraction.run.totals import RunTotals
from extraction.storage import Storage
from extraction.writing.finalise import planned_batches


def convert(
    source: Storage,
    out: Storage,
    file_format: str,
    store_dtype: str | None = None,
    progress: Progress = silent,
) -> RunTotals:
    """Write a run in another format, and return its totals.

    An interrupted conversion is continued by calling this again.

    Args:
        source: storage of the run, which stays as it is.
        out: an empty storage, or that of an interrupted conversion of the same run.
        file_format: format to write, a name in `FORMATS`.
        store_dtype: dtype to store; None: the run's own, or float32 if the format cannot store it.
        progress: called with the progress of the conversion.

    Raises:
        StoreError: there is no run, or the format cannot store the dtype.
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
            "program_version": "not recorded",  # version that computed the rows
            **identity.run,
            "converted_from": [identity.file_format, identity.dtype],
        },
    )
    batches = [
        BatchToRewrite(storage=source, identity=identity, batch_id=batch_id, new_id=batch_id)
        for batch_id in sorted(CommitLog(source).batch_ids())
    ]
    return rewrite(out, wanted, batches, [source], progress, "batches converted")
