"""Two runs in one folder; a host that sleeps while another works; a clock that jumps back."""

import dataclasses
import datetime
import functools
import os
import signal

from extraction.errors import ExistingRunError
from extraction.run import rows
from tests.faults.children import Child, run_child
from tests.faults.faulty_os import FaultyOs, Operation, install
from tests.faults.independent_reading import files_of
from tests.faults.judge import Campaign
from tests.faults.kills import killed_at, record
from tests.faults.planned_run import PlannedRun, Tell, drive


def sleeping(run: PlannedRun, tell: Tell, number: int, *, first: bool = True) -> int:
    """A run that stops itself at an operation until someone wakes it."""

    def stop(operation: Operation) -> None:
        if operation.number == number:
            os.kill(os.getpid(), signal.SIGSTOP)

    install(FaultyOs(before=stop))
    return drive(run, tell, first=first)


def second_is_refused(campaign: Campaign) -> None:
    """While a run holds its folder, another is refused, with or without --resume."""
    for number in range(1, len(record(campaign)) + 1, campaign.share.every):
        for resume in (False, True):
            with campaign.case(resume=not resume) as run:
                other = dataclasses.replace(run, attempt=1, resume=resume)
                _refuse(campaign, run, other, number)


def _refuse(campaign: Campaign, run: PlannedRun, other: PlannedRun, number: int) -> None:
    tally = campaign.tally("a second run in the folder while the first stands still")
    case = f"operation {number}, the second with resume={other.resume}"
    first = Child(functools.partial(sleeping, run, number=number))
    assert first.wait_until_stopped()
    before = files_of(run.folder)
    second = run_child(functools.partial(drive, other))
    after = files_of(run.folder)
    first.signal(signal.SIGCONT)
    woken = first.wait()
    if second.error is None:
        tally.note("was quicker to lock, and finished")
        refused = woken.error
        if refused and files_of(run.folder) != after:
            tally.fail(case, "the first, refused, changed something")
    else:
        tally.note("refused")
        refused = second.error
        if after != before:
            tally.fail(case, "the second, refused, changed something")
        if woken.error:
            tally.fail(case, f"the first ended with {woken.error}: {woken.message}")
    if refused not in (None, ExistingRunError):
        tally.fail(case, f"not refused, but {refused}")
    look = run_child(functools.partial(campaign.look, run))
    campaign.count(tally, case, look, campaign.standing(run, woken.said))


def clock_jumps_back(campaign: Campaign) -> None:
    """Each look at the clock is a day earlier than the last, also after a kill."""
    tally = campaign.tally("a clock that jumps back, SIGKILL")

    class Backwards(datetime.datetime):
        looks = 0

        @classmethod
        def now(cls, tz=None):
            cls.looks += 1
            return datetime.datetime(2025, 1, 1, tzinfo=tz) - datetime.timedelta(days=cls.looks)

    def jumping(work):
        def work_then(tell):
            rows.datetime = type("Clock", (), {"datetime": Backwards, "UTC": datetime.UTC})
            return work(tell)

        return work_then

    total = len(record(campaign))
    for number in range(1, total + 1, 8 * campaign.share.every):
        with campaign.case() as run:
            ended = run_child(jumping(killed_at(run, number, "before")))
            run = dataclasses.replace(run, attempt=1)
            resumed = run_child(jumping(functools.partial(campaign.resumed, run)))
            standing = campaign.standing(run, ended.said)
            campaign.count(tally, f"operation {number}", resumed, standing)


def zombie_in_a_shared_folder(campaign: Campaign) -> None:
    """The second process of two stands still; the run is finished by one alone; it wakes."""
    tally = campaign.tally("a process of a shared folder wakes when another has finished the run")
    operations = record(campaign)
    begun = next(op.number for op in operations if op.name == "link")
    for number in range(1, len(operations) + 1, campaign.share.every):
        case = f"operation {number}"
        with campaign.case() as run:
            # The first process of two began the run, and died at its first commit.
            run_child(killed_at(run, begun, "after"))
            second = dataclasses.replace(run, attempt=1, process=1)
            zombie = Child(functools.partial(sleeping, second, number=number, first=False))
            if not zombie.wait_until_stopped():
                zombie.wait()  # it has less to do than a whole run
                continue
            alone = dataclasses.replace(run, attempt=2)
            ended = run_child(functools.partial(drive, alone))
            tally.note("the other was refused" if ended.error else "the other finished")
            if ended.error not in (None, ExistingRunError):
                tally.fail(case, f"the other ended with {ended.error}: {ended.message}")
            zombie.signal(signal.SIGCONT)
            woken = zombie.wait()
            if woken.error:
                tally.fail(case, f"the zombie ended with {woken.error}: {woken.message}")
            campaign.judge(tally, case, run, [*ended.said, *woken.said])


def run(campaign: Campaign) -> None:
    """All of them."""
    second_is_refused(campaign)
    clock_jumps_back(campaign)
    zombie_in_a_shared_folder(campaign)
