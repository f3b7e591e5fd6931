"""A run without a model, which makes the calls of `inference.unit_run.UnitRun`, in its order.

It needs no JAX, so a process that holds it can be forked, killed and started anew a hundred times
a second. `test_planned_run` compares its file operations with those of `UnitRun`.

The plan: fourteen samples in eight units, of one to four rows for each of two hook points; some
are skipped, and one unit has no rows at all. Every number tells where it belongs.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from extraction.errors import ExistingRunError
from extraction.run.identity import RunIdentity, RunLock, begin, check_identity
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.rows import RowBlock, text_column
from extraction.run.totals import RunTotals
from extraction.storage import CloudStorage, Storage, open_cloud
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.disk_retry import patiently
from extraction.writing.finalise import output_lines, write_metadata
from inference.outputs import OutputsFile

HOOK_POINTS = ("layer_6", "layer_12")
UNITS = ((11, 12, 13), (10,), (8, 9), (3,), (2, 6, 7), (5,), (1, 4), (0,))
"""Numbers of the samples of each unit; the longest come first, as in a real plan."""

SKIPPED = frozenset({2, 3})
STEPS = (1, 3, 0, 0, 2, 4, 1, 2, 3, 1, 2, 1, 4, 2)
"""Rows of each sample."""

Tell = Callable[..., None]


def tell_nobody(*event: object) -> None:
    """For runs that are not watched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """Where a run goes and how.

    Attributes:
        folder: holds `activations` and `outputs`.
        attempt: stands in the timestamps, so that the files of two attempts differ.
        resume: as the flag of that name.
        file_format: of the batches.
        width: of the rows.
        refresh_after: units after which `metadata.json` is written in the middle of the run.
        cloud: `gs://bucket/prefix`; None: the folder keeps everything.
        process: number of the process.
    """

    folder: Path
    attempt: int = 0
    resume: bool = True
    file_format: str = "pickle"
    width: int = 4
    refresh_after: tuple[int, ...] = (2, 5)
    cloud: str | None = None
    process: int = 0

    @property
    def activations(self) -> Path:
        """The folder of the batches, or the spool."""
        return self.folder / "activations"

    @property
    def outputs(self) -> Path:
        """The folder of `outputs.jsonl`."""
        return self.folder / "outputs"


def sample_key(number: int) -> tuple[str, int]:
    """Task id and index of a sample."""
    return f"task_{number // 2}", number % 2


def unit_rows(run: PlannedRun, unit: int) -> RowBlock | None:
    """The rows of a unit, the same in every attempt but for their timestamps."""
    owners = [(n, step) for n in UNITS[unit] if n not in SKIPPED for step in range(STEPS[n])]
    if not owners:
        return None
    numbers = np.array([sum(STEPS[:n]) + step for n, step in owners])
    keys = [sample_key(n) for n, _ in owners]
    steps = np.array([step for _, step in owners], np.int32)
    columns = np.arange(run.width)
    return RowBlock(
        task_ids=text_column([task_id for task_id, _ in keys]),
        sample_idx=np.array([index for _, index in keys], np.int64),
        step=steps,
        position=np.array([n + 4 for n, _ in owners], np.int32) + steps,
        token_id=numbers.astype(np.int32) + 20,
        timestamps=text_column([f"2025-01-15T10:{run.attempt:02d}:00"] * len(owners)),
        activations={
            hook: (65536.0 * (2 * numbers[:, None] + place) + columns).astype(np.float32)
            for place, hook in enumerate(HOOK_POINTS)
        },
    )


def unit_lines(unit: int) -> list[dict[str, Any]]:
    """The output lines of a unit."""
    lines = []
    for number in UNITS[unit]:
        task_id, sample_idx = sample_key(number)
        skipped = number in SKIPPED
        line = {
            "task_id": task_id,
            "sample_idx": sample_idx,
            "prompt": f"prompt {number}",
            "prompt_token_ids": list(range(number + 5)),
            "generated_token_ids": [] if skipped else [20 + s for s in range(STEPS[number])],
            "text": None if skipped else f"text of {number} — …",
            "finish_reason": "skipped" if skipped else "length",
        }
        lines.append(line | {"reason": "too long"} if skipped else line)
    return lines


class StoreRun:
    """`UnitRun` without a model: the same methods with the same calls.

    Raises:
        StoreError: the folder or the bucket cannot be used, or holds another run.
    """

    def __init__(self, run: PlannedRun):
        self._run = run
        self._spool = LocalStorage(run.activations)
        self._cloud: CloudStorage | None = open_cloud(run.cloud) if run.cloud else None
        self.storage: Storage = self._cloud or self._spool
        self._outputs = OutputsFile(run.outputs, may_exist=run.resume)
        self._identity = RunIdentity.new(
            model_name="planned",
            hook_points=HOOK_POINTS,
            hidden_dim=run.width,
            file_format=run.file_format,
            planned_batches=len(UNITS),
            fingerprint={"units": UNITS},
            run={"command": "planned_run"},
        )
        for place in self._places():
            check_identity(place, self._identity, resume=run.resume, exclusive=place is self._spool)
        self._committer = Committer(self._spool, HOOK_POINTS, run.file_format)
        self._log, self._totals = CommitLog(self.storage), RunTotals()
        self._uploader: Any = None

    def _places(self) -> list[Storage]:
        return [self._spool] if self._cloud is None else [self._spool, self._cloud]

    def begin(self, stack: contextlib.ExitStack, *, first: bool = True) -> None:
        """See `UnitRun.begin`."""
        lock = RunLock(self._spool.folder, self._run.process)
        stack.callback(lock.release)
        if first:
            self._spool.remove_left_overs()
        for place in self._places():
            mine = self._identity
            found = begin(place, mine, exclusive=first and place is self._spool)
            if found.run_id != mine.run_id:
                if first and not self._run.resume:
                    raise ExistingRunError(f"another run was quicker to begin in {place.address}")
                self._identity = found
        if self._cloud is not None:
            from extraction.writing.upload import Uploader

            self._uploader = stack.enter_context(
                Uploader(self._spool, self._cloud, self._identity.run_id)
            )
            self._uploader.add_left_over()

    def committed(self) -> set[int]:
        """See `UnitRun.committed`."""
        ids = self._log.batch_ids() | CommitLog(self._spool).batch_ids()
        return {batch_id - 1 for batch_id in ids}

    def commit(self, unit: int) -> CommitRecord:
        """See `UnitRun.commit`; the unit's rows are made here."""
        block, lines = unit_rows(self._run, unit), unit_lines(unit)
        record = self._committer.commit(unit + 1, block, lines)
        if self._uploader is not None:
            self._uploader.add(record)
        return record

    def refresh_metadata(self) -> None:
        """See `UnitRun`, which does so now and then."""
        write_metadata(self.storage, self._totals)

    def finish(self) -> RunTotals:
        """See `UnitRun.finish`."""
        copies = [] if self._cloud is None else [self._spool]
        totals = write_metadata(self.storage, self._totals, copies)
        if len(totals) == len(UNITS):
            patiently(str(self._outputs.path), self._write_outputs)
        return totals

    def _write_outputs(self) -> None:
        place = {sample_key(n): n for n in range(len(STEPS))}
        with self._outputs as outputs:
            lines = list(output_lines(self.storage, self._log.records()))
            for line in sorted(lines, key=lambda x: place[x["task_id"], x["sample_idx"]]):
                outputs.write(line)
        if self._cloud is not None:
            self._cloud.replace(self._outputs.path.name, self._outputs.path.read_bytes())


def drive(run: PlannedRun, tell: Tell = tell_nobody, *, first: bool = True) -> int:
    """Runs what is missing, as `simple_extraction_inference.run` does; the number of batches.

    Args:
        run: to begin or go on with.
        tell: called with "committed" and a batch's id when its commit has returned, and with
            "finished" when all is done.
        first: see `UnitRun.begin`.
    """
    store_run = StoreRun(run)
    with contextlib.ExitStack() as stack:
        store_run.begin(stack, first=first)
        committed = store_run.committed()
        for unit in range(len(UNITS)):
            if unit in committed:
                continue
            record = store_run.commit(unit)
            tell("committed", record.batch_id)
            if unit in run.refresh_after:
                store_run.refresh_metadata()
        stack.close()  # waits for the uploads
        totals = store_run.finish()
    tell("finished")
    return len(totals)
