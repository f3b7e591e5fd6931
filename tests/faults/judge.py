"""After a fault: what must hold at once, then a resume, then everything anew.

standing   every visible record names whole files; what was acknowledged is there
resumed    rows, lines, outputs.jsonl, metadata.json and file names are those of a run that
           nothing interrupted; `verify` at level 3 finds nothing
"""

import contextlib
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from extraction.maintenance.verify import verify
from extraction.storage import open_storage
from tests.faults.children import Ended, run_child
from tests.faults.independent_reading import Reading, compare, files_of, read, standing_problems
from tests.faults.planned_run import HOOK_POINTS, STEPS, PlannedRun, Tell, drive, tell_nobody

ROWS = len(HOOK_POINTS) * sum(STEPS)
"""Of a whole run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """How much of what could be tried is tried.

    Attributes:
        every: of what can be counted, every n-th.
        slow: the same for cases that take long.
        random: cases of what can only be drawn.
        stop_at_failure: one failure is enough to know.
    """

    every: int
    slow: int
    random: int
    stop_at_failure: bool = False


FULL = Share(every=1, slow=1, random=200)
SOME = Share(every=5, slow=5, random=40)
QUICK = Share(every=23, slow=43, random=6)
QUICK_SOME = Share(every=101, slow=101, random=3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found after one fault.

    Attributes:
        lost: rows that are not there after the resume, or not bit for bit.
        twice: rows too many.
        verify: exit status.
        problems: all that is wrong, these among it.
    """

    lost: int
    twice: int
    verify: int
    problems: list[str]


@dataclasses.dataclass(kw_only=True)
class Tally:
    """A line of the table.

    Attributes:
        fault: what was done.
        tried: how often.
        rows_expected: after all resumes together.
        rows_lost: of them.
        rows_twice: too many.
        verify_bad: resumed runs that `verify` finds fault with.
        failures: what went wrong, each with the case.
        notes: what else is worth knowing, and how often it was.
    """

    fault: str
    tried: int = 0
    rows_expected: int = 0
    rows_lost: int = 0
    rows_twice: int = 0
    verify_bad: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    notes: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, case: str, verdict: Verdict) -> None:
        """Counts a case."""
        self.tried += 1
        self.rows_expected += ROWS
        self.rows_lost += verdict.lost
        self.rows_twice += verdict.twice
        self.verify_bad += verdict.verify != 0
        self.failures += [f"{self.fault}, {case}: {problem}" for problem in verdict.problems]

    def fail(self, case: str, problem: str) -> None:
        """Counts something wrong that no verdict tells."""
        self.failures.append(f"{self.fault}, {case}: {problem}")

    def note(self, what: str) -> None:
        """Counts something that is not wrong."""
        self.notes[what] = self.notes.get(what, 0) + 1


class EnoughError(Exception):
    """A failure was found, and one is enough."""


class Campaign:
    """What the cases of a campaign share: a folder, an uninterrupted run, the table.

    Args:
        folder: for the cases' own.
        share: how much is tried.
        file_format: of the runs.
        width: of their rows.

    Attributes:
        tallies: the table's lines.
        whole: what the uninterrupted run holds.
    """

    def __init__(self, folder: Path, share: Share, file_format: str = "pickle", width: int = 4):
        self.folder, self.share, self.file_format = folder, share, file_format
        self._width = width
        self.tallies: dict[str, Tally] = {}
        self._cases = 0
        with self.case() as run:
            ended = run_child(functools.partial(drive, run))
            if ended.error or ended.signal:
                raise AssertionError(f"a run without faults ended with {ended}")
            self.whole: Reading = read(self.files(run))
        assert self.whole.count() == ROWS

    @contextlib.contextmanager
    def case(self, **options) -> Iterator[PlannedRun]:
        """A run in a folder of its own, which is taken away afterwards."""
        self._cases += 1
        folder = self.folder / f"case_{self._cases}"
        folder.mkdir()
        try:
            yield PlannedRun(
                folder=folder, file_format=self.file_format, width=self._width, **options
            )
        finally:
            shutil.rmtree(folder)

    def tally(self, fault: str) -> Tally:
        """The table's line for a kind of fault."""
        if self.file_format != "pickle":
            fault = f"{fault}; {self.file_format}"
        return self.tallies.setdefault(fault, Tally(fault=fault))

    def judge(self, tally: Tally, case: str, run: PlannedRun, said: Collection[tuple] = ()) -> None:
        """Looks at what a fault left, resumes, looks again, and counts the case."""
        standing = self.standing(run, said)
        self.count(tally, case, run_child(functools.partial(self.resumed, run)), standing)

    def standing(self, run: PlannedRun, said: Collection[tuple]) -> list[str]:
        """What must not be, before anything is resumed."""
        return standing_problems(self.files(run), said, self.whole)

    def resumed(self, run: PlannedRun, _: Tell = tell_nobody) -> Verdict:
        """Resumes a run, and looks; work for a child."""
        drive(dataclasses.replace(run, resume=True, attempt=run.attempt + 1))
        return self.look(run)

    def files(self, run: PlannedRun) -> dict[str, bytes]:
        """What a run has written."""
        return files_of(run.folder)

    def look(self, run: PlannedRun, _: Tell = tell_nobody) -> Verdict:
        """Compares a finished run with the uninterrupted one; work for a child."""
        try:
            found = compare(read(self.files(run)), self.whole)
            lost, twice, problems = found.lost, found.twice, list(found.others)
        except (KeyError, ValueError) as error:
            lost, twice, problems = ROWS, 0, [f"cannot be read: {error!r}"]
        report = verify(open_storage(run.cloud or run.activations), level=3)
        if report.exit_status:
            problems += [f"verify: {line}" for line in report.lines()]
        if lost or twice:
            problems.append(f"{lost} rows lost, {twice} twice")
        return Verdict(lost=lost, twice=twice, verify=report.exit_status, problems=problems)

    def count(self, tally: Tally, case: str, ended: Ended, standing: list[str]) -> None:
        """Counts a case whose resume ended."""
        verdict = ended.value
        if verdict is None:
            message = ended.message.replace(f"{self.folder}/", "")
            how = f"{ended.error or ended.signal}: {message} ({ended.where})"
            problem = f"the resume ended with {how}"
            verdict = Verdict(lost=ROWS, twice=0, verify=1, problems=[problem])
        verdict = dataclasses.replace(verdict, problems=[*standing, *verdict.problems])
        tally.add(case, verdict)
        if tally.failures and self.share.stop_at_failure:
            raise EnoughError


@contextlib.contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one; what a killed process leaves does not depend on it."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="faults-", dir=parent) as folder:
        yield Path(folder)
