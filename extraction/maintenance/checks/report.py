"""The result of `verify`, for people and as JSON, and its exit status."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from extraction.run.totals import RunTotals

GOOD, DAMAGED, FOREIGN, INCOMPLETE = 0, 1, 3, 4
"""Exit statuses. A run that is both damaged and incomplete is DAMAGED."""

LEVELS = {
    1: "records and listing, no file read",
    2: "every file read, checksums compared",
    3: "every file read, sha256, keys, output lines and statistics compared",
}
"""What is read and compared at each level."""

LINES = 20
"""Most lines of a kind that are printed; the JSON has all."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One piece of damage.

    Attributes:
        file: name of the file in the run's folder.
        problem: description of the damage.
        batch_id: number of its batch; None: it concerns the whole run.
    """

    file: str
    problem: str
    batch_id: int | None = None

    def __str__(self) -> str:
        batch = "" if self.batch_id is None else f" (batch {self.batch_id})"
        return f"{self.file}{batch}: {self.problem}"


@dataclasses.dataclass(kw_only=True)
class Report:
    """The result of a verification.

    Attributes:
        address: address of the run.
        level: level of the checks, 1 to 3.
        run_id: id of the run; None if it cannot be read.
        foreign: why the folder cannot be checked; None if it can.
        verdict_if_foreign: the verdict if it cannot be checked.
        problems: the damage.
        unfinished: what an unfinished run still lacks.
        notes: harmless findings.
        counts: numbers of batches, files, rows and so on.
        totals: totals of the good records, from which `counts` are taken.
    """

    address: str
    level: int
    run_id: str | None = None
    foreign: str | None = None
    verdict_if_foreign: str = "foreign"
    problems: list[Problem] = dataclasses.field(default_factory=list)
    unfinished: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    totals: RunTotals = dataclasses.field(default_factory=RunTotals, compare=False, repr=False)

    def add(self, file: str, problem: str, batch_id: int | None = None) -> None:
        """Add a piece of damage."""
        self.problems.append(Problem(file=file, problem=problem, batch_id=batch_id))

    @property
    def verdict(self) -> str:
        """The verdict in one word: good, incomplete, damaged, foreign or unverifiable."""
        if self.foreign is not None:
            return self.verdict_if_foreign
        if self.problems:
            return "damaged"
        return "incomplete" if self.unfinished else "good"

    @property
    def exit_status(self) -> int:
        """Exit status of the command."""
        if self.foreign is not None:
            return FOREIGN
        return {"damaged": DAMAGED, "incomplete": INCOMPLETE, "good": GOOD}[self.verdict]

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "address": self.address,
            "run_id": self.run_id,
            "level": self.level,
            "verdict": self.verdict,
            "exit_status": self.exit_status,
            "counts": self.counts,
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
            "unfinished": self.unfinished,
            "foreign": self.foreign,
            "notes": self.notes,
        }

    def lines(self) -> Iterator[str]:
        """Yield the report's lines for people."""
        if self.foreign is not None:
            yield f"{self.address}: {self.foreign}"
        elif self.counts:
            run = f"run {self.run_id}" if self.run_id else "no run id"
            yield f"{self.address}: {run}"
            yield "  " + ", ".join(
                f"{count:,} {name.replace('_', ' ')}" for name, count in self.counts.items()
            )
        yield from _some("damaged", [str(problem) for problem in self.problems])
        yield from _some("incomplete", self.unfinished)
        yield from _some("note", self.notes)
        checked = "" if self.foreign is not None else f" (level {self.level}: {LEVELS[self.level]})"
        yield f"verdict: {self.verdict}{checked}"


def _some(label: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:LINES]:
        yield f"  {label}: {line}"
    if len(lines) > LINES:
        yield f"  {label}: {len(lines) - LINES:,} more; --json FILE lists all"


def missing_numbers(planned: int, there: Collection[int]) -> tuple[int, str]:
    """Return how many numbers from 1 to `planned` are missing, and which, as `1, 4-6`.

    At most ten ranges are named. Time and memory depend on `there` only, not on `planned`.
    """
    gaps: list[tuple[int, int]] = []
    last = 0
    for number in [*sorted(n for n in there if 1 <= n <= planned), planned + 1]:
        if number > last + 1:
            gaps.append((last + 1, number - 1))
        last = number
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in gaps[:10]]
    count = sum(high - low + 1 for low, high in gaps)
    return count, ", ".join(shown) + (", ..." if len(gaps) > 10 else "")
