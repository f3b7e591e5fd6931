"""SIGKILL: before and after every file operation, at random times, and twice in a row."""

import dataclasses
import functools
import os
import random
import signal
import time

from tests.faults.children import Work, run_child
from tests.faults.faulty_os import FaultyOs, Operation, install, kinds
from tests.faults.judge import Campaign
from tests.faults.planned_run import PlannedRun, Tell, drive


def record(campaign: Campaign) -> list[Operation]:
    """The operations of a run without faults, which are the same every time."""

    def work(run: PlannedRun, _: Tell) -> list[Operation]:
        operations: list[Operation] = []
        install(FaultyOs(after=operations.append))
        drive(run)
        return operations

    with campaign.case() as run:
        ended = run_child(functools.partial(work, run))
    if ended.value is None:
        raise AssertionError(f"{ended.error}: {ended.message} ({ended.where})")
    return ended.value


def killed_at(run: PlannedRun, number: int, when: str) -> Work:
    """A run that kills itself at an operation."""

    def kill(operation: Operation) -> None:
        if operation.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def work(tell):
        install(FaultyOs(before=kill) if when == "before" else FaultyOs(after=kill))
        return drive(run, tell)

    return work


def at_every_operation(campaign: Campaign) -> None:
    """The named points: what is being done, and to which file."""
    operations = record(campaign)
    for operation, kind in list(zip(operations, kinds(operations), strict=True)):
        for when in ("before", "after"):
            if (2 * operation.number + (when == "after")) % campaign.share.every:
                continue
            tally = campaign.tally(f"SIGKILL before and after each operation: {kind}")
            case = f"{when} operation {operation.number}, {operation.name}"
            with campaign.case() as run:
                ended = run_child(killed_at(run, operation.number, when))
                if ended.signal != signal.SIGKILL:
                    tally.fail(case, f"it was not killed, but {ended}")
                tally.note(operation.name)
                campaign.judge(tally, case, run, ended.said)


def at_random_times(campaign: Campaign) -> None:
    """A slow run, killed at any time by a clock that knows nothing of it."""
    tally = campaign.tally("SIGKILL at a random time")
    generator = random.Random(1)

    def slow(run: PlannedRun, tell: Tell) -> int:
        install(FaultyOs(before=lambda _: time.sleep(0.0005)))
        return drive(run, tell)

    with campaign.case() as run:
        started = time.monotonic()
        run_child(functools.partial(slow, run))
        whole = time.monotonic() - started
    for _ in range(campaign.share.random):
        seconds = generator.uniform(0, whole)
        with campaign.case() as run:
            ended = run_child(functools.partial(slow, run), kill_after=seconds)
            tally.note("killed" if ended.signal else "had finished")
            done = len(ended.committed())
            campaign.judge(tally, f"after {seconds:.3f} s, {done} commits", run, ended.said)


def twice(campaign: Campaign) -> None:
    """The resume is killed too."""
    tally = campaign.tally("SIGKILL, and again during the resume")
    generator = random.Random(2)
    total = len(record(campaign))
    for _ in range(campaign.share.random):
        first, second = generator.randint(1, total), generator.randint(1, total)
        with campaign.case() as run:
            said = run_child(killed_at(run, first, "after")).said
            run = dataclasses.replace(run, attempt=1)
            ended = run_child(killed_at(run, second, "after"))
            tally.note("killed twice" if ended.signal else "had finished")
            campaign.judge(tally, f"operations {first} and {second}", run, [*said, *ended.said])


def run(campaign: Campaign) -> None:
    """All of them."""
    at_every_operation(campaign)
    at_random_times(campaign)
    twice(campaign)
