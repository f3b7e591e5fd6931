"""Checks of a batch's files against its commit record: levels 2 and 3 of `verify`."""

import dataclasses
from collections.abc import Container
from typing import Any

import numpy as np
import numpy.ma  # np.unique loads it lazily, which may fail in two threads at once

from extraction.errors import CorruptBatchError
from extraction.formats import ParsedBatch
from extraction.maintenance.checks.report import Problem
from extraction.maintenance.checks.row_statistics import (
    differing_large_rows,
    differing_statistics,
)
from extraction.maintenance.checks.unique_keys import (
    SequenceKey,
    row_hashes,
    sequence_hashes,
    text_hashes,
)
from extraction.maintenance.committed_files import parse_committed, read_committed
from extraction.run.identity import RunIdentity
from extraction.run.metadata import layer_field
from extraction.run.output_lines import parse_lines
from extraction.run.records import CommitRecord, CommittedFile
from extraction.run.rows import RowBlock
from extraction.run.statistics import RowStatistics
from extraction.storage import Storage
from extraction.writing.committer import keys_digest

KEY_COLUMNS = ("task_ids", "sample_idx", "step", "position", "token_id")


@dataclasses.dataclass(kw_only=True)
class Contents:
    """What the files of one batch hold.

    Attributes:
        problems: the damage.
        bytes_read: bytes of all files.
        widths: width of each hook point's rows.
        rows: uint64 hash of each row's key, at level 3.
        sequences: uint64 hash of each sample with rows, at level 3.
        lines: uint64 hash of each output line's sample, at level 3.
    """

    problems: list[Problem] = dataclasses.field(default_factory=list)
    bytes_read: int = 0
    widths: dict[str, int] = dataclasses.field(default_factory=dict)
    rows: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    sequences: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))
    lines: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))


def check_contents(
    storage: Storage,
    identity: RunIdentity,
    record: CommitRecord,
    level: int,
    known_bad: Container[str] = (),
) -> Contents:
    """Read and check all files of a batch.

    Args:
        storage: storage of the run.
        identity: identity of the run.
        record: record of the batch, checked by `record_problems`.
        level: 2 or 3.
        known_bad: files that are already reported, and not read again.
    """
    return _BatchCheck(storage, identity, record, level, known_bad).run()


class _BatchCheck:
    """The check of one batch; keeps one hook point's rows in memory at a time."""

    def __init__(
        self,
        storage: Storage,
        identity: RunIdentity,
        record: CommitRecord,
        level: int,
        known_bad: Container[str],
    ):
        self._storage, self._identity, self._record = storage, identity, record
        self._deep = level >= 3
        self._known_bad = known_bad
        self._found = Contents()
        self._keys: RowBlock | None = None
        self._keys_file = ""

    def run(self) -> Contents:
        for hook, file in self._record.files.items():
            self._check_file(hook, file)
        lines = self._read_lines()
        if self._deep:
            self._check_keys(lines)
        return self._found

    def _add(self, file: str, problem: str) -> None:
        batch_id = self._record.batch_id
        self._found.problems.append(Problem(file=file, problem=problem, batch_id=batch_id))

    def _read(self, file: CommittedFile) -> bytes | None:
        if file.file in self._known_bad:
            return None
        try:
            data = read_committed(self._storage, file, with_sha256=self._deep)
        except CorruptBatchError as error:
            self._add(file.file, str(error))
            return None
        self._found.bytes_read += len(data)
        return data

    def _check_file(self, hook: str, file: CommittedFile) -> None:
        record = self._record
        second = record.sidecars.get(hook)
        data = self._read(file)
        sidecar = self._read(second) if second else None
        if data is None or (second and sidecar is None):
            return
        try:
            batch = parse_committed(self._identity, record, hook, data, sidecar)
        except CorruptBatchError as error:
            self._add(file.file, str(error))
            return
        self._check_width(hook, file, batch)
        rows = batch.block().activations[hook]
        if self._deep:
            recorded, found = record.statistics[hook], RowStatistics.of(rows, keys=batch.keys)
            problems = differing_statistics(recorded, found, rows)
            if not problems and recorded.largest is not None:
                problems = differing_large_rows(recorded, found, batch.block(), hook)
            for problem in problems:
                self._add(file.file, problem)
            self._compare_keys(file, batch.keys)
        else:
            bad = int((~np.isfinite(rows).all(axis=1)).sum())
            if bad != record.statistics[hook].nonfinite_rows:
                recorded = record.statistics[hook].nonfinite_rows
                self._add(file.file, f"{bad} rows are not finite, but its record says {recorded}")

    def _check_width(self, hook: str, file: CommittedFile, batch: ParsedBatch) -> None:
        width = self._found.widths[hook] = batch.stored.shape[1]
        # layer_i is the residual stream; other hook points have other widths.
        is_stream = type(layer_field(hook)) is int and self._record.n_rows > 0
        if is_stream and width != self._identity.hidden_dim:
            self._add(file.file, f"rows of {width} numbers, not {self._identity.hidden_dim}")

    def _compare_keys(self, file: CommittedFile, keys: RowBlock) -> None:
        if self._keys is None:
            self._keys, self._keys_file = keys, file.file
            return
        for name in KEY_COLUMNS:
            if not np.array_equal(getattr(keys, name), getattr(self._keys, name)):
                self._add(file.file, f"{name} differ from those of {self._keys_file}")

    def _read_lines(self) -> list[dict[str, Any]] | None:
        """Return the output lines; None if there are none or they are damaged."""
        file = self._record.outputs
        data = None if file is None else self._read(file)
        if data is None or not self._deep:
            return None
        assert file is not None
        try:
            lines = parse_lines(data)
        except CorruptBatchError as error:
            self._add(file.file, str(error))
            return None
        return lines

    def _check_keys(self, lines: list[dict[str, Any]] | None) -> None:
        """Compare rows with output lines, and both with the record."""
        record, keys = self._record, self._keys
        if keys is not None:
            self._found.rows = row_hashes(keys)
            self._found.sequences = np.unique(sequence_hashes(keys))
        if (keys is None and record.files) or (lines is None and record.outputs is not None):
            return  # the damage is reported already
        # Two batches may share a sample only in a run without output lines.
        if lines is not None:
            assert record.outputs is not None
            self._found.lines = text_hashes(
                [line["task_id"] for line in lines], [line["sample_idx"] for line in lines]
            )
            if len(self._found.sequences) != record.n_sequences:
                name = self._keys_file or record.outputs.file
                count = len(self._found.sequences)
                self._add(name, f"{count} samples, but its record says {record.n_sequences}")
            selected = self._identity.fingerprint.get("positions", "last")
            for problem in lines_against_rows(lines, keys, last_token=selected == "last"):
                self._add(record.outputs.file, problem)
        if keys_digest(keys, lines or ()) != record.keys_sha256:
            name = self._keys_file or (record.outputs.file if record.outputs else "")
            self._add(name, "keys_sha256 of its rows and generated tokens differs from its record")


def lines_against_rows(
    lines: list[dict[str, Any]], keys: RowBlock | None, *, last_token: bool
) -> list[str]:
    """Return the contradictions between output lines and rows of a batch.

    Args:
        lines: output lines of all samples of the batch.
        keys: keys of its rows; None if it has none.
        last_token: whether each forward pass gave exactly one row, that of the last token. If not,
            steps are not checked.
    """
    steps: dict[SequenceKey, list[int]] = {}
    if keys is not None:
        sequences = zip(keys.task_ids, keys.sample_idx.tolist(), keys.step.tolist(), strict=True)
        for task_id, sample_idx, step in sequences:
            steps.setdefault((task_id, sample_idx), []).append(step)
    problems, told = [], set()
    for line in lines:
        sample = line["task_id"], line["sample_idx"]
        told.add(sample)
        found = steps.get(sample, [])
        if line.get("finish_reason") == "skipped":
            if found:
                problems.append(f"{sample} was skipped, but has {len(found)} rows")
            continue
        expected = max(1, len(line.get("generated_token_ids", [])))
        if last_token and sorted(found) != list(range(expected)):
            problems.append(f"{sample} has rows of steps {found[:8]}, not of 0 to {expected - 1}")
    without = [sample for sample in steps if sample not in told]
    problems += [f"{sample} has rows, but no output line" for sample in without]
    return problems
