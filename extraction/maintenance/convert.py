"""One file format into another, each row compared with what is read back.

Batch numbers, keys and output lines stay. bfloat16 becomes float32 exactly; float32 becomes
bfloat16 only where it is asked for, and is then compared with the rounded value.
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
    batches = [
        BatchToRewrite(storage=source, identity=identity, batch_id=batch_id, new_id=batch_id)
        for batch_id in sorted(CommitLog(source).batch_ids())
    ]
    return rewrite(out, wanted, batches, [source], progress, "batches converted")
