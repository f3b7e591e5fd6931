"""What a run holds, for people: model, shapes, statistics, and a few rows with their tokens."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from extraction.errors import StoreError
from extraction.maintenance.checks.report import missing_numbers
from extraction.maintenance.committed_files import read_batch, read_outputs, read_record
from extraction.progress import Progress, silent
from extraction.reading.collector_pause import collector_paused
from extraction.run.identity import RunIdentity, read_identity
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.statistics import OUTLIER_FACTOR
from extraction.run.totals import RunTotals
from extraction.storage import Storage
from extraction.writing.finalise import planned_batches

ROWS = 3
VALUES = 4
PROMPT_TAIL = 60
"""Characters of a prompt's end that are shown."""


def inspect_run(storage: Storage, rows: int = ROWS, progress: Progress = silent) -> Iterator[str]:
    """The lines to print.

    Args:
        storage: of the run.
        rows: of its first batch that are shown.
        progress: told how far it is.

    Raises:
        StoreError: there is no run, or a record is damaged.
    """
    identity = read_identity(storage)
    if identity is None:
        raise StoreError(f"{storage.address} holds no run (no _run/run.json)")
    log = CommitLog(storage)
    totals = _totals(storage, log, progress)
    yield from _overview(storage, identity, totals)
    yield ""
    yield from _statistics(identity, totals)
    with_rows = next((batch.batch_id for batch in totals.batches() if batch.n_rows), None)
    if with_rows is not None and rows > 0:
        yield ""
        yield from _some_rows(storage, identity, read_record(log, identity, with_rows), rows)


@collector_paused()
def _totals(storage: Storage, log: CommitLog, progress: Progress) -> RunTotals:
    ids = sorted(log.batch_ids())
    totals = RunTotals()
    for record in log.read_all(ids):
        totals.add(record)
        progress("records read", len(totals), len(ids))
    return totals


def _overview(storage: Storage, identity: RunIdentity, totals: RunTotals) -> Iterator[str]:
    planned = planned_batches(storage, identity)
    n_hooks = len(identity.hook_points)
    version = identity.run.get("program_version", "not recorded")
    yield f"run          {identity.run_id}, begun {identity.created_at}, program version {version}"
    yield f"model        {identity.model_name}"
    yield f"state        {_state(totals, planned)}"
    yield f"hook points  {', '.join(identity.hook_points)}"
    yield f"rows         {totals.n_rows:,} for each of {n_hooks} hook points, of" + (
        f" {totals.n_sequences:,} sequences"
    )
    yield f"stored       {identity.file_format}, {identity.dtype}, {totals.n_files:,} files," + (
        f" {_size(totals.n_bytes)}, in {storage.address}"
    )
    if totals.last_written_at:
        yield f"last batch   {totals.last_written_at}"
    settings = identity.run.get("settings")
    if isinstance(settings, Mapping) and "max_new_tokens" in settings:
        yield f"new tokens   at most {settings['max_new_tokens']}"


def _state(totals: RunTotals, planned: int | None) -> str:
    if planned is None:
        return f"{len(totals)} batches so far, not closed: it goes on, or was cut off"
    if len(totals) == planned:
        return f"complete, {planned} batches"
    _, which = missing_numbers(planned, [batch.batch_id for batch in totals.batches()])
    return f"incomplete, {len(totals)} of {planned} batches; missing {which}"


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if unit != "bytes" else f"{int(number)} bytes"
        number /= 1000
    return f"{number:.4g} TB"


def _statistics(identity: RunIdentity, totals: RunTotals) -> Iterator[str]:
    columns = ("mean", "mean square", "median norm", f">{OUTLIER_FACTOR:.0f}x median")
    width = max(map(len, ("hook point", *identity.hook_points))) + 2
    yield (
        "hook point".ljust(width)
        + "shape".rjust(18)
        + "".join(column.rjust(14) for column in columns)
        + "non-finite".rjust(12)
    )
    for hook in identity.hook_points:
        found = totals.statistics(hook)
        finite = found.rows - found.nonfinite_rows
        row_width = found.values // finite if finite else None
        shape = f"[{found.rows}, {'?' if row_width is None else row_width}]"
        cells = ["-"] * 4
        if found.values:
            cells = [
                f"{found.total / found.values:.4g}",
                f"{found.total_squares / found.values:.4g}",
                f"{found.median_norm():.4g}",
                f"{found.outlier_share():.2%}",
            ]
        yield (
            hook.ljust(width)
            + shape.rjust(18)
            + "".join(cell.rjust(14) for cell in cells)
            + str(found.nonfinite_rows).rjust(12)
        )


def _some_rows(
    storage: Storage, identity: RunIdentity, record: CommitRecord, rows: int
) -> Iterator[str]:
    hook = next(hook for hook in identity.hook_points if hook in record.files)
    block = read_batch(storage, identity, record, hook).block()
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    if record.outputs is not None:
        told = read_outputs(storage, record.outputs)
        lines = {(line["task_id"], line["sample_idx"]): line for line in told}
    yield f"first rows of {record.files[hook].file}"
    for i in range(min(rows, len(block))):
        key = (block.task_ids[i], int(block.sample_idx[i]))
        values = ", ".join(f"{value:.4g}" for value in block.activations[hook][i, :VALUES])
        yield (
            f"  task_id {json.dumps(key[0], ensure_ascii=False)}, sample_idx {key[1]},"
            f" step {block.step[i]}, position {block.position[i]}, token_id {block.token_id[i]}:"
            f" [{values}, ...]"
        )
        prompt = lines.get(key, {}).get("prompt")
        if isinstance(prompt, str) and block.step[i] == 0:
            tail = prompt[-PROMPT_TAIL:]
            dots = "..." if len(prompt) > len(tail) else ""
            yield f"    the prompt ends {dots}{json.dumps(tail, ensure_ascii=False)}"
