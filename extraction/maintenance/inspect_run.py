"""Describe a run for people: model, shapes, statistics, and a few rows with their tokens."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from extraction.errors import StoreError
from extraction.hook_point_names import few
from extraction.maintenance.checks.report import missing_numbers
from extraction.maintenance.committed_files import read_batch, read_outputs, read_record
from extraction.progress import Progress, silent
from extraction.reading.collector_pause import collector_paused
from extraction.run.changes import changes
from extraction.run.identity import RunIdentity, read_identity
from extraction.run.large_norms import LargeNorms, check_multiple
from extraction.run.largest_rows import MOST_KEPT
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.statistics import MAX_NORM_MULTIPLE
from extraction.run.totals import RunTotals
from extraction.run.vocabulary import Vocabulary, text_of
from extraction.storage import Storage
from extraction.writing.finalise import planned_batches

ROWS = 3
VALUES = 4
SHOWN = 4
"""Most positions and token ids that are printed for a hook point."""
PROMPT_TAIL = 60
"""Most characters of a prompt's end that are printed."""


def inspect_run(
    storage: Storage,
    rows: int = ROWS,
    progress: Progress = silent,
    *,
    max_norm_multiple: float = MAX_NORM_MULTIPLE,
) -> Iterator[str]:
    """Yield the lines that describe a run.

    Args:
        storage: storage of the run.
        rows: number of rows of the first batch to show.
        progress: called with the number of records read.
        max_norm_multiple: multiple of the median norm; rows above it are counted.

    Raises:
        StoreError: there is no run, a commit record is damaged, or the multiple is not a finite
            number above 0.
    """
    check_multiple(max_norm_multiple)
    identity = read_identity(storage)
    if identity is None:
        raise StoreError(f"{storage.address} holds no run (no _run/run.json)")
    log = CommitLog(storage)
    totals = _totals(storage, log, progress)
    yield from _overview(storage, identity, totals)
    yield ""
    yield from _statistics(identity, totals)
    yield ""
    yield from _large_norms(identity, totals, max_norm_multiple)
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
    for line in changes(identity.run):
        yield f"changed      {line}"


def _state(totals: RunTotals, planned: int | None) -> str:
    if planned is None:
        return f"{len(totals)} batches so far: still being written, or interrupted"
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
    rows = []
    for hook in identity.hook_points:
        found = totals.statistics(hook)
        finite = found.rows - found.nonfinite_rows
        row_width = found.values // finite if finite else "?"
        means: list[float | None] = [None] * 3
        if found.values:
            means = [
                found.total / found.values,
                found.total_squares / found.values,
                found.median_norm(),
            ]
        rows.append(
            [
                hook,
                f"[{found.rows}, {row_width}]",
                *map(_number, [*means, found.mean_norm()]),
                str(found.nonfinite_rows),
            ]
        )
    columns = ["hook point", "shape", "mean", "mean square", "median norm", "mean norm"]
    yield from _table([*columns, "non-finite"], rows)


def _large_norms(identity: RunIdentity, totals: RunTotals, multiple: float) -> Iterator[str]:
    """Yield a table of rows far above the median norm: their count, positions and effect."""
    yield f"norms above {multiple:g} times the median"
    rows, lacking, partly = [], [], []
    for hook in identity.hook_points:
        statistics = totals.statistics(hook)
        found = LargeNorms.of(statistics, multiple)
        finite = statistics.rows - statistics.nonfinite_rows
        count = f"{found.rows:,}" + (
            f" to {found.rows + found.unsettled:,}" * (found.unsettled > 0)
        )
        positions, token_ids = ([value for value, _ in part] for part in found.places)
        rows.append(
            [
                hook,
                count,
                f"{found.rows / finite:.2%}" if finite else "-",
                "-" if found.at_position_0 is None else f"{found.at_position_0:,}",
                _number(found.mean_without),
                _number(found.mean_norm_without),
                _few([str(position) for position in positions]),
                _few([_token(token_id, totals.vocabulary) for token_id in token_ids]),
            ]
        )
        if found.largest is None:
            lacking.append(hook)
        elif len(found.largest) < found.rows:
            partly.append(hook)
    columns = ["hook point", "rows", "share", "at position 0", "mean without", "norm without"]
    yield from _table([*columns, "positions", "tokens"], rows)
    if lacking:
        yield (
            f"of {few(lacking)} the version that wrote the run recorded no keys and no sums of"
            " norms; `convert` and `merge` add them to the run that they write"
        )
    if partly:
        yield (
            f"positions and token ids are those of the {MOST_KEPT} largest rows of {few(partly)};"
            " the other columns count all rows"
        )
    if any(row[1] != "0" for row in rows):
        call = f"ActivationDataset(...).batches(..., max_norm_multiple={multiple:g})"
        yield f"to leave such rows out: {call}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, the first column aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for cells in (columns, *rows):
        first, *others = zip(cells, widths, strict=True)
        yield "  ".join([first[0].ljust(first[1]), *(cell.rjust(w) for cell, w in others)])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _few(values: Sequence[str]) -> str:
    return ",".join(values[:SHOWN]) + (",..." if len(values) > SHOWN else "") or "-"


def _token(token_id: int, vocabulary: Vocabulary) -> str:
    """Return a token's text as JSON, or its id where the run does not record texts."""
    text = vocabulary.get(token_id)
    return str(token_id) if text is None else json.dumps(text_of(text), ensure_ascii=False)


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
