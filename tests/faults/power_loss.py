"""The power is lost at every moment of a run, and everything not synced may be gone.

Every state that the disk may be in is looked at; each different one is laid out in a folder,
resumed and looked at again. Three histories: a run; a run that was killed at some operation and
resumed, as the page cache survives its process; and a resume after a loss of power.
"""

import functools
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

from tests.faults.children import run_child
from tests.faults.disk_model import Disk, Tree, lay_out
from tests.faults.faulty_os import FaultyOs, Operation, install, kinds
from tests.faults.independent_reading import standing_problems
from tests.faults.judge import Campaign, EnoughError, Tally
from tests.faults.kills import record
from tests.faults.planned_run import PlannedRun, Tell, drive

STATES = 48
"""Most states of one moment."""

TEMPORARY = re.compile(r"\.tmp-[^/]*")


def watched(run: PlannedRun, tell: Tell, kill_at: int | None = None) -> int:
    """A run that tells of each operation once it has succeeded."""

    def after(operation: Operation) -> None:
        content = None
        if operation.name in {"write", "fsync", "link", "replace"}:
            path = Path(operation.target or operation.path)
            content = path.read_bytes() if path.is_file() else None
        tell("operation", operation, content)
        if operation.number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    install(FaultyOs(after=after))
    return drive(run, tell)


def history(disk: Disk, work: Callable[[Tell], int]) -> None:
    """Lets a run happen to a disk."""
    for event in run_child(work).said:
        disk.hear(event)


def _same(tree: Tree) -> int:
    """Equal for trees that differ in left-overs only."""
    return hash(frozenset((TEMPORARY.sub(".tmp", name), data if ".tmp-" not in name else b"")
                          for name, data in tree.items()))  # fmt: skip


class PowerLoss:
    """Looks at the states of a disk, each different one once."""

    def __init__(self, campaign: Campaign):
        self._campaign = campaign
        self._generator = random.Random(3)
        self._seen: set[int] = set()
        self.resumable: list[Tree] = []
        """Every state that was laid out."""

    def look(self, tally: Tally, disk: Disk) -> None:
        """Looks at every state that a loss of power may leave."""
        for crash in disk.crashes(STATES, self._generator):
            tally.note("states of the disk looked at")
            problems = standing_problems(crash.tree, crash.said, self._campaign.whole)
            case = f"moment {crash.moment}"
            for problem in problems:
                tally.fail(case, problem)
            if problems and self._campaign.share.stop_at_failure:
                raise EnoughError
            different = _same(crash.tree)
            if different in self._seen:
                continue
            self._seen.add(different)
            if len(self._seen) % self._campaign.share.every:
                continue
            self.resumable.append(crash.tree)
            with self._campaign.case() as run:
                lay_out(crash.tree, run.folder)
                self._campaign.judge(tally, case, run)


def visible_and_not_synced(campaign: Campaign) -> list[int]:
    """Operations after which a killed process leaves a name that power may still take away.

    The last of each kind comes first: nothing that the run does later makes up for it.
    """
    operations = record(campaign)
    found = {}
    for operation, kind in zip(operations, kinds(operations), strict=True):
        if operation.name in {"mkdir", "link", "replace"}:
            found.setdefault((operation.name, kind), []).append(operation.number)
    last = [numbers.pop() for numbers in found.values()]
    others = sorted(number for numbers in found.values() for number in numbers)
    return last + others[:: campaign.share.every]


def run(campaign: Campaign) -> None:
    """All three histories."""
    power_loss = PowerLoss(campaign)
    with campaign.case() as planned:
        disk = Disk(planned.folder)
        history(disk, functools.partial(watched, planned))
    power_loss.look(campaign.tally("loss of power"), disk)

    tally = campaign.tally("SIGKILL, resume, loss of power")
    for killed in visible_and_not_synced(campaign):
        with campaign.case() as planned:
            disk = Disk(planned.folder)
            history(disk, functools.partial(watched, planned, kill_at=killed))
            disk.forget()  # looked at above
            history(disk, functools.partial(watched, planned))
        power_loss.look(tally, disk)

    tally = campaign.tally("loss of power, and again during the resume")
    generator = random.Random(4)
    trees = power_loss.resumable
    for tree in generator.sample(trees, min(len(trees), 1 + campaign.share.random // 8)):
        with campaign.case() as planned:
            lay_out(tree, planned.folder)
            disk = Disk(planned.folder)
            history(disk, functools.partial(watched, planned))
        power_loss.look(tally, disk)
