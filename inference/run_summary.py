"""The summary at the end of a run: warnings, labelled numbers, and what to do next."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from extraction.run.large_norms import LargeNorms
from extraction.run.statistics import RowStatistics
from extraction.run.totals import RunTotals

HOOK_POINTS_SHOWN = 12
"""Hook points with a line of their own."""


@dataclasses.dataclass(kw_only=True)
class Work:
    """The work of this process: what it ran and committed.

    Attributes:
        samples: number of samples that ran.
        prompt_tokens: number of their prompt tokens.
        generated_tokens: number of their generated tokens.
        rows: number of rows of each hook point.
        seconds: from the beginning to the end.
        loading: seconds of them in which parameters were read.
        compiling: seconds of them in which programs were compiled.
    """

    samples: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    rows: int = 0
    seconds: float = 0.0
    loading: float = 0.0
    compiling: float = 0.0

    def add(self, lines: Sequence[Mapping[str, Any]], rows: int) -> None:
        """Count a unit.

        Args:
            lines: output lines of the unit.
            rows: number of rows of each hook point.
        """
        ran = [line for line in lines if line["finish_reason"] != "skipped"]
        self.samples += len(ran)
        self.prompt_tokens += sum(len(line["prompt_token_ids"]) for line in ran)
        self.generated_tokens += sum(len(line["generated_token_ids"]) for line in ran)
        self.rows += rows

    @property
    def running(self) -> float:
        """Seconds without loading and compiling."""
        return max(self.seconds - self.loading - self.compiling, 1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of the summary.

    Attributes:
        samples: samples of the run.
        skipped: samples that cannot run.
        units: units of the run.
        done_before: units that were committed when this process began.
        totals: totals of all committed units.
        hook_points: hook points of the run.
        work: work of this process.
        details: further lines, label and text.
        address: address of the activations.
        outputs: path of `outputs.jsonl`.
        score: score of ARC tasks, or None.
    """

    samples: int
    skipped: int
    units: int
    done_before: int
    totals: RunTotals
    hook_points: Sequence[str]
    work: Work
    details: Sequence[tuple[str, str]]
    address: str
    outputs: str
    score: str | None

    def lines(self) -> Iterator[str]:
        """Yield the lines to print."""
        totals = self.totals
        if self.skipped:
            text = f"{self.skipped:,} of {self.samples:,} samples are skipped; {self.outputs} says"
            yield _line("warning", f"{text} why")
        for hook in self.hook_points:
            bad = totals.statistics(hook).nonfinite_rows
            if bad:
                yield _line("warning", f"{bad:,} rows of {hook} hold numbers that are not finite")
        is_complete = len(totals) == self.units
        if is_complete and self.done_before == self.units:
            yield "nothing to do: complete"
        else:
            yield from self._work()
        for label, text in self.details:
            yield _line(label, text)
        state = "complete" if is_complete else f"of {self.units:,}, not complete yet"
        yield _line(
            "in the run",
            f"{self.samples:,} samples, {totals.n_sequences:,} with rows; {totals.n_rows:,} rows"
            f" (one vector per token) for each of {len(self.hook_points)} hook points;"
            f" {len(totals):,} units, {state}",
        )
        yield from self._norms()
        yield _line("activations", self.address)
        if is_complete:
            yield _line("outputs", self.outputs)
        yield _line("next", f"python -m extraction verify {self.address}")
        yield _line("", f"python -m extraction inspect {self.address}")
        if self.score is not None:
            yield _line("score", self.score)

    def _norms(self) -> Iterator[str]:
        """The median norm of each hook point, and the rows far above it."""
        labels = iter(("norms",))
        for hook in self.hook_points[:HOOK_POINTS_SHOWN]:
            statistics = self.totals.statistics(hook)
            if statistics.values:
                yield _line(next(labels, ""), f"{hook}: {norms_text(statistics)}")
        more = len(self.hook_points) - HOOK_POINTS_SHOWN
        if more > 0:
            yield _line("", f"{more:,} more hook points, which inspect shows")

    def _work(self) -> Iterator[str]:
        work = self.work
        before = f"; {self.done_before:,} of {self.units:,} units were committed before"
        yield _line(
            "ran now",
            f"{work.samples:,} samples: {work.prompt_tokens:,} prompt tokens,"
            f" {work.generated_tokens:,} generated tokens, {work.rows:,} rows for each hook point"
            f"{before if self.done_before else ''}",
        )
        yield _line(
            "time",
            f"{work.seconds:.1f} s: loading {work.loading:.1f} s, compiling {work.compiling:.1f} s,"
            f" running {work.running:.1f} s",
        )
        rates = (
            (work.samples, "samples/s"),
            (work.prompt_tokens, "prompt tokens/s"),
            (work.rows, "rows/s"),
        )
        shown = ", ".join(f"{count / work.running:,.4g} {unit}" for count, unit in rates)
        yield _line("throughput", f"{shown} while running, without loading and compiling")


def _line(label: str, text: str) -> str:
    return f"{label:14}{text}"


def norms_text(statistics: RowStatistics) -> str:
    """Return the median norm of a hook point's rows, and what the rows far above it change."""
    found = LargeNorms.of(statistics)
    text = f"median {statistics.median_norm():.4g}"
    if found.mean_norm is not None:
        text += f", mean {found.mean_norm:.4g}"
    above = f"{found.multiple:g} times the median"
    if not found.rows + found.unsettled:
        return f"{text}; no row above {above}"
    finite = statistics.rows - statistics.nonfinite_rows
    least = "at least " if found.unsettled else ""
    text += f"; {least}{found.rows:,} of {finite:,} rows above {above}"
    if found.mean_norm_without is not None:
        text += f", {found.at_position_0:,} of them at position 0; mean without them"
        text += f" {found.mean_norm_without:.4g}"
    return text
