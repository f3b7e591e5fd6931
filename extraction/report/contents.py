"""What the page of a run says, read from commit records and a few small files."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from extraction.errors import CorruptBatchError, StoreError
from extraction.hook_point_names import definition_of
from extraction.maintenance.committed_files import read_outputs, read_record
from extraction.progress import Progress
from extraction.reading.collector_pause import collector_paused
from extraction.report.samples import Samples, read_samples
from extraction.run.identity import RunIdentity, read_identity
from extraction.run.large_norms import LargeNorms
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.statistics import RowStatistics
from extraction.run.totals import RunTotals
from extraction.run_layout import SELF_CHECKS
from extraction.storage import Storage
from extraction.writing.finalise import planned_batches, read_self_check

LARGEST_OUTPUTS = 32 << 20
"""Bytes; larger output lines are not read to count samples and tokens."""

_BLOCK = re.compile(r"(layer_|layers\.)(\d+)(.*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HookPointContents:
    """A hook point of the run.

    Attributes:
        name: name of the hook point in the run.
        definition: description of the value; None if the hook point is not in the table.
        layer: number of its block; None outside the blocks.
        kind: name with `{i}` for the number of the block.
        statistics: statistics of its rows.
        large: rows above 10 times the median norm.
        width: numbers in a row; None if no row is finite.
        files: number of its files.
        bytes: bytes of its files.
    """

    name: str
    definition: str | None
    layer: int | None
    kind: str
    statistics: RowStatistics
    large: LargeNorms
    width: int | None
    files: int
    bytes: int

    @property
    def finite(self) -> int:
        """Number of rows whose numbers are all finite."""
        return self.statistics.rows - self.statistics.nonfinite_rows

    @property
    def largest_multiple(self) -> float:
        """Largest norm divided by the median norm; 0 if one of them is not known."""
        largest = self.statistics.largest
        median = self.statistics.median_norm() if largest else 0.0
        return largest[0].norm / median if largest and median else 0.0


@dataclasses.dataclass(kw_only=True)
class OutputCounts:
    """Counts over all output lines.

    Attributes:
        samples: number of lines.
        prompt_tokens: tokens of the prompts that ran.
        generated_tokens: generated tokens.
        finish_reasons: number of samples by finish reason.
        reasons: number of skipped samples by reason.
    """

    samples: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finish_reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Count some lines."""
        for line in lines:
            self.samples += 1
            finish = str(line.get("finish_reason"))
            self.finish_reasons[finish] += 1
            if finish == "skipped":
                self.reasons[str(line.get("reason"))] += 1
                continue
            prompt = line.get("prompt_token_ids")
            self.prompt_tokens += len(prompt) if isinstance(prompt, list) else 0
            self.generated_tokens += len(line.get("generated_token_ids", ()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContents:
    """The content of the page.

    Attributes:
        address: address of the run.
        identity: identity of the run.
        planned: number of batches of the complete run; None while it is not known.
        totals: totals over all batches.
        hook_points: all hook points.
        self_checks: results of self-checks.
        outputs: counts over output lines; None if there are none, or too many to read.
        outputs_bytes: bytes of the files of output lines.
        samples: some samples.
        problems: files that could not be read, in words.
    """

    address: str
    identity: RunIdentity
    planned: int | None
    totals: RunTotals
    hook_points: tuple[HookPointContents, ...]
    self_checks: tuple[Mapping[str, Any], ...]
    outputs: OutputCounts | None
    outputs_bytes: int
    samples: Samples
    problems: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every planned batch exists."""
        return len(self.totals) == self.planned

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that the run records; empty if it records none."""
        settings = self.identity.run.get("settings")
        return settings if isinstance(settings, Mapping) else {}

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's config that the run records; empty if it records none."""
        config = self.identity.fingerprint.get("config")
        return config if isinstance(config, Mapping) else {}


def read_contents(storage: Storage, progress: Progress) -> RunContents:
    """Read what the page of a run says.

    Args:
        storage: storage of the run.
        progress: called as commit records are read.

    Raises:
        StoreError: there is no run, or a commit record is damaged.
    """
    identity = read_identity(storage)
    if identity is None:
        raise StoreError(f"{storage.address} holds no run (no _run/run.json)")
    log = CommitLog(storage)
    read = _read_records(log, progress)
    first = next((b.batch_id for b in read.totals.batches() if b.n_rows and b.files), None)
    problems: list[str] = []
    return RunContents(
        address=storage.address,
        identity=identity,
        planned=planned_batches(storage, identity),
        totals=read.totals,
        hook_points=tuple(_hook_point(name, read) for name in identity.hook_points),
        self_checks=tuple(read_self_check(storage, name) for name in storage.names(SELF_CHECKS)),
        outputs=_count_outputs(storage, log, read, problems),
        outputs_bytes=read.outputs_bytes,
        samples=read_samples(
            storage, identity, None if first is None else read_record(log, identity, first)
        ),
        problems=tuple(problems),
    )


@dataclasses.dataclass(kw_only=True)
class _Read:
    """Sums over commit records."""

    totals: RunTotals = dataclasses.field(default_factory=RunTotals)
    files: Counter[str] = dataclasses.field(default_factory=Counter)
    bytes: Counter[str] = dataclasses.field(default_factory=Counter)
    with_outputs: list[int] = dataclasses.field(default_factory=list)
    outputs_bytes: int = 0

    def add(self, record: CommitRecord) -> None:
        self.totals.add(record)
        for files in (record.files, record.sidecars):
            for hook, file in files.items():
                self.files[hook] += 1
                self.bytes[hook] += file.bytes
        if record.outputs is not None:
            self.with_outputs.append(record.batch_id)
            self.outputs_bytes += record.outputs.bytes


@collector_paused()
def _read_records(log: CommitLog, progress: Progress) -> _Read:
    ids = sorted(log.batch_ids())
    read = _Read()
    for record in log.read_all(ids):
        read.add(record)
        progress("records read", len(read.totals), len(ids))
    return read


def _hook_point(name: str, read: _Read) -> HookPointContents:
    statistics = read.totals.statistics(name)
    finite = statistics.rows - statistics.nonfinite_rows
    block = _BLOCK.fullmatch(name)
    return HookPointContents(
        name=name,
        definition=definition_of(name),
        layer=int(block[2]) if block else None,
        kind=f"{block[1]}{{i}}{block[3]}" if block else name,
        statistics=statistics,
        large=LargeNorms.of(statistics),
        width=statistics.values // finite if finite else None,
        files=read.files[name],
        bytes=read.bytes[name],
    )


def _count_outputs(
    storage: Storage, log: CommitLog, read: _Read, problems: list[str]
) -> OutputCounts | None:
    if not read.with_outputs or read.outputs_bytes > LARGEST_OUTPUTS:
        return None
    counts = OutputCounts()
    for record in log.read_all(read.with_outputs):
        if record.outputs is not None:
            try:
                counts.add(read_outputs(storage, record.outputs))
            except CorruptBatchError as error:
                problems.append(str(error))
    return counts
