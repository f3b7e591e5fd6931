"""What is derived from the commit records, by any process, at any time.

`metadata.json` says what the folder holds; `outputs.jsonl` joins the output lines of all batches
in the order of the samples. Both are pure functions of the records, so it does not matter which
process writes them last.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from extraction.commit_log import CommitLog, CommitRecord
from extraction.metadata import METADATA_FILE, BatchFile, metadata_document
from extraction.storage import Storage


def write_metadata(
    storage: Storage,
    *,
    model_name: str,
    hook_points: tuple[str, ...],
    hidden_dim: int,
    file_format: str,
    planned_batches: int,
    run: Mapping[str, Any],
) -> list[CommitRecord]:
    """Writes `metadata.json` and returns the records it was made of.

    Args:
        storage: of the run.
        model_name: as the user named it.
        hook_points: captured ones.
        hidden_dim: width of the residual stream.
        file_format: of the batches.
        planned_batches: the run is complete when so many exist.
        run: settings, versions and checks.
    """
    records = CommitLog(storage).records()
    batches = [
        BatchFile(
            batch_id=record.batch_id,
            hook_point=hook,
            file=record.files[hook].file,
            n_samples=record.n_rows,
        )
        for record in records
        for hook in hook_points
        if hook in record.files
    ]
    document = metadata_document(
        model_name=model_name,
        hook_points=hook_points,
        hidden_dim=hidden_dim,
        batches=batches,
        total_sequences=sum(record.n_sequences for record in records),
        complete=len(records) == planned_batches,
        file_format=file_format,
        run=run,
    )
    storage.replace(METADATA_FILE, document)
    return records


def output_lines(storage: Storage, records: list[CommitRecord]) -> Iterator[dict[str, Any]]:
    """The output lines of all batches, batch by batch."""
    for record in records:
        for line in storage.get(record.outputs.file).split(b"\n"):
            if line:
                yield json.loads(line)
