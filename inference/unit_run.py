"""A run of units, for both commands: refuse or resume, commit, finish.

    UnitRun    checks that the folder or bucket can be used, and holds no run or this one
    begin      takes the lock, writes `_run/run.json`, queues uploads that an attempt left
    commit     writes a unit's rows and output lines
    finish     writes `metadata.json`; once every unit is committed also `outputs.jsonl` and
               `submission.json`

A unit is done when its commit record is in the bucket; without a bucket, in the local folder. With
a bucket the local folder is only a spool.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np

from extraction.interruption import StopFlag
from extraction.run.identity import RunIdentity
from extraction.run.records import CommitLog
from extraction.run.rows import RowBlock
from extraction.run.totals import RunTotals
from extraction.run.vocabulary import of_ids
from extraction.run_layout import (
    METADATA_FILE,
    OUTPUTS_FILE,
    SELF_CHECKS,
    SUBMISSION_FILE,
    self_check_name,
)
from extraction.setting_names import setting
from extraction.storage import Storage
from extraction.writing.disk_retry import patiently
from extraction.writing.finalise import output_lines, read_self_check
from extraction.writing.run_writer import RunWriter
from inference.engine.plan import WINDOW, Unit
from inference.engine.prepare import Prepared
from inference.engine.pretrained import TOKENIZER_FILES, Pretrained
from inference.errors import SelfCheckError
from inference.inputs.prompt_tokens import special_ids
from inference.inputs.samples import separator_ids
from inference.inputs.tasks import tasks_digest
from inference.inputs.token_text import token_bytes_of
from inference.outputs import OutputsFile, write_submission
from inference.run_summary import Summary, Work
from inference.settings.commands import ExtractionSettings
from inference.settings.inputs import InputSettings

log = logging.getLogger(__name__)

INPUT_SETTINGS = [entry.name for entry in dataclasses.fields(InputSettings)]
"""Settings that change the samples, and by them the fingerprint."""

REFRESH_SECONDS, REFRESH_SHARE = 60.0, 20.0
"""Least time between two writes of `metadata.json`: in seconds, and in durations of a write."""


class UnitRun:
    """A run that a command commits its units to.

    Args:
        command: name of the command.
        prepared: settings, samples and model.
        units: the units of the plan.
        process: number of this process.
        run: further entries of the metadata's `run`, for people.
        run_id: id of a new run; None: a random one.

    Raises:
        StoreError: the folder or the bucket cannot be used, or holds another run.
    """

    def __init__(
        self,
        command: str,
        prepared: Prepared,
        units: Sequence[Unit],
        *,
        process: int = 0,
        run: dict[str, Any] | None = None,
        run_id: str | None = None,
    ):
        settings, pretrained = prepared.settings, prepared.pretrained
        self.settings = settings
        self.units = units
        self._prepared, self._process = prepared, process
        self._outputs = OutputsFile(settings.output_dir, may_exist=settings.resume)
        identity = RunIdentity.new(
            model_name=settings.model_path,
            hook_points=pretrained.model.hook_points,
            hidden_dim=pretrained.checkpoint.config.hidden_size,
            file_format=settings.format,
            dtype=settings.stored_dtype(str(pretrained.dtype)),
            planned_batches=len(units),
            fingerprint=_fingerprint(command, prepared),
            run=describe(command, settings, pretrained) | _changes(prepared) | (run or {}),
            run_id=run_id,
        )
        self._writer = RunWriter(
            settings.activations_dir,
            identity,
            upload_to=settings.upload_to,
            resume=settings.resume,
            process=process,
            spool_bytes=int(settings.spool_gb * 1e9),
            explaining={
                "samples_sha256": INPUT_SETTINGS,
                "interventions_sha256": ["interventions"],
            },
        )
        self._log, self._totals = CommitLog(self.storage), RunTotals()
        self._token_bytes = token_bytes_of(pretrained.tokenizer)
        self._known_ids: set[int] = set()
        self._done_before = 0
        self._score: str | None = None
        self._failed_check: str | None = None
        self.work = Work()
        self._next_refresh = time.monotonic() + REFRESH_SECONDS

    @property
    def storage(self) -> Storage:
        """The storage whose commit records count: the bucket, or the folder."""
        return self._writer.storage

    def begin(self, stack: contextlib.ExitStack, *, first: bool = True) -> None:
        """Claim the run until the stack is closed, which waits for all uploads.

        Args:
            stack: stack that ends the claim.
            first: whether this process begins the run; the run's other processes follow it.

        Raises:
            ExistingRunError: another process writes to the run, or began it first.
        """
        stack.enter_context(self._writer.begun(first=first))

    def committed(self) -> set[int]:
        """Return the numbers of the units that are committed, or wait to be uploaded."""
        ids = self._writer.committed()
        self._done_before = len(ids)
        return {batch_id - 1 for batch_id in ids}

    def commit(self, unit: Unit, block: RowBlock | None, lines: Sequence[dict[str, Any]]) -> None:
        """Commit a unit, and queue it for upload if the run is in a bucket.

        Args:
            unit: the unit.
            block: rows of its samples; None if there are none.
            lines: output lines of its samples.
        """
        texts = self._new_texts(block, lines)
        record = self._writer.commit(unit.number + 1, block, lines, vocabulary=texts)
        self._known_ids.update(texts or ())
        self.work.add(lines, 0 if block is None else len(block))
        self._writer.upload(record)
        self._refresh_metadata()

    def _new_texts(
        self, block: RowBlock | None, lines: Sequence[dict[str, Any]]
    ) -> dict[int, bytes] | None:
        """Return the text of a unit's token ids that this process has not committed yet."""
        if self._token_bytes is None:
            return None
        ids: set[int] = set() if block is None else set(np.unique(block.token_id).tolist())
        for line in lines:
            ids.update(line.get("prompt_token_ids") or (), line.get("generated_token_ids") or ())
        return of_ids(ids - self._known_ids, self._token_bytes)

    def _refresh_metadata(self) -> None:
        """Rewrite `metadata.json` from time to time, for readers of a running run."""
        if self._process == 0 and time.monotonic() > self._next_refresh:
            started = time.monotonic()
            self._writer.write_metadata(self._totals)
            took = time.monotonic() - started
            self._next_refresh = time.monotonic() + max(REFRESH_SECONDS, REFRESH_SHARE * took)

    def finish(self, self_check: Mapping[str, Any] | None, stop: StopFlag) -> RunTotals:
        """Write the derived files and return the totals; call it after all uploads.

        Args:
            self_check: result of this process's self-check: `rows`, `largest_error`, and if rows
                are wrong `failed`, a message. None: there was no self-check.
            stop: flag that is set when the run is to stop.

        Raises:
            Interrupted: the flag is set.
        """
        if self_check is not None:
            self._note_self_check(self_check)
        totals = self._writer.write_metadata(self._totals, here_too=True)
        stopped = (
            f"stopped; {len(totals):,} of {len(self.units):,} units are committed; to continue, add"
            f" {setting('resume', True)} to the same command"
        )
        stop.check(stopped)
        if len(totals) == len(self.units):
            patiently(str(self._outputs.path), lambda: self._write_outputs(stop, stopped))
        return totals

    def _write_outputs(self, stop: StopFlag, stopped: str) -> None:
        """Join the units' output lines in the order of the samples, a window at a time."""
        with self._outputs as outputs:
            for window, members in groupby(self.units, key=lambda u: u.samples[0] // WINDOW):
                stop.check(stopped)
                records = self._log.read_all(unit.number + 1 for unit in members)
                part = self._prepared.samples[window * WINDOW : (window + 1) * WINDOW]
                place = {(s.task_id, s.sample_idx): s.number for s in part}
                lines = list(output_lines(self.storage, records))
                for line in sorted(lines, key=lambda x: place[x["task_id"], x["sample_idx"]]):
                    outputs.write(line)
        self._score = write_submission(self._prepared.tasks, self._outputs.path, self.settings)
        if not self.storage.is_local:
            for name in (OUTPUTS_FILE, SUBMISSION_FILE):
                path = self._outputs.path.with_name(name)
                if path.exists():
                    self.storage.replace(name, path.read_bytes())

    def _note_self_check(self, found: Mapping[str, Any]) -> None:
        """Store the self-check's result, combined with those of earlier attempts."""
        name = self_check_name(self._process)
        known = name in self.storage.names(SELF_CHECKS)
        before = read_self_check(self.storage, name) if known else {}
        largest = max(before.get("largest_error") or 0.0, found["largest_error"])
        document = {
            "rows": before.get("rows", 0) + found["rows"],
            "largest_error": largest if math.isfinite(largest) else None,  # JSON has no infinity
        }
        self._failed_check = found.get("failed") or before.get("failed")
        if self._failed_check:
            document["failed"] = self._failed_check
        self.storage.replace(name, json.dumps(document).encode())

    def refuse_failed_check(self) -> None:
        """Raise SelfCheckError if a self-check of this or an earlier attempt failed."""
        if self._failed_check:
            raise SelfCheckError(
                f"{self._failed_check}; the rows in {self.storage.address} are kept, and"
                f" {METADATA_FILE} marks the failed check"
            )

    def summary(self, totals: RunTotals, details: Sequence[tuple[str, str]] = ()) -> Summary:
        """Return the summary for the end of a command.

        Args:
            totals: totals that `finish` returned.
            details: further lines of the command, as label and text.
        """
        return Summary(
            samples=len(self._prepared.samples),
            skipped=self._prepared.skipped,
            units=len(self.units),
            done_before=self._done_before,
            totals=totals,
            hook_points=self._writer.identity.hook_points,
            work=self.work,
            details=details,
            address=self.storage.address,
            outputs=str(self._outputs.path),
            score=self._score,
        )


def describe(command: str, settings: ExtractionSettings, pretrained: Pretrained) -> dict[str, Any]:
    """Return the settings, digests and versions from which any row can be computed again."""
    folder = pretrained.checkpoint.folder
    tokenizer = pretrained.tokenizer
    template = getattr(tokenizer, "chat_template", None)
    packages = ("jax", "jaxlib", "flax", "numpy", "transformers", "tokenizers")
    return {
        "command": command,
        "settings": dataclasses.asdict(settings),
        "compute_dtype": str(pretrained.dtype),
        "platform": jax.default_backend(),
        "weights_sha256": pretrained.checkpoint.weights_digest(),
        "tokenizer_sha256": {
            name: _file_digest(folder / name)
            for name in TOKENIZER_FILES
            if (folder / name).exists()
        },
        "chat_template_sha256": _digest(json.dumps(template).encode()) if template else None,
        "tasks_file_sha256": tasks_digest(settings.tasks_file) if settings.tasks_file else None,
        "special_tokens": {
            "bos": getattr(tokenizer, "bos_token_id", None),
            "eos": getattr(tokenizer, "eos_token_id", None),
            "around_a_text": tokenizer.num_special_tokens_to_add()
            if tokenizer is not None and settings.add_special_tokens
            else 0,
            "behind_a_document": list(separator_ids(settings, tokenizer)),
        },
        "special_token_ids": None if tokenizer is None else sorted(special_ids(tokenizer)),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _changes(prepared: Prepared) -> dict[str, Any]:
    """Return the interventions with their vectors, for the metadata; nothing if there are none."""
    return {} if prepared.steering is None else {"interventions": prepared.steering.record()}


def _fingerprint(command: str, prepared: Prepared) -> dict[str, Any]:
    """Return the settings that change the rows, and a digest of the samples."""
    settings, pretrained, steering = prepared.settings, prepared.pretrained, prepared.steering
    digest = hashlib.sha256()
    for s in prepared.samples:
        entry = [s.task_id, s.sample_idx, s.prompt, s.token_ids, dict(s.extra)]
        if settings.dataset is not None:  # selectors of a piece also read its whole document
            entry.append(s.positions)
        digest.update(json.dumps(entry).encode() + b"\n")
    values = dataclasses.asdict(settings)
    return {
        "command": command,
        "weights_sha256": pretrained.checkpoint.weights_digest(),
        "config": pretrained.checkpoint.config.to_dict(),
        "stop_token_ids": list(pretrained.checkpoint.stop_token_ids),
        "samples_sha256": digest.hexdigest(),
        "interventions_sha256": None if steering is None else steering.digest(),
        "compute_dtype": str(pretrained.dtype),
        "repetition_penalty": pretrained.repetition_penalty,
        **{
            entry.name: values[entry.name]
            for entry in dataclasses.fields(settings)
            if entry.metadata["decides"] in ("rows", "files")
        },
    }


def _file_digest(path: Path) -> str:
    return _digest(path.read_bytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
