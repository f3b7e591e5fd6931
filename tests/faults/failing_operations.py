"""The n-th file operation fails, for every n: once, or from then on; and writes that are short.

A run may go on by itself after one failure, or end with the one error that says so; after an end
it resumes. A full disk is waited for on a clock of its own, so that no test waits.
"""

import dataclasses
import errno
from collections.abc import Callable

from extraction.errors import StorageUnavailableError, StoreError
from extraction.writing import disk_retry
from tests.faults.children import Ended, Work, run_child
from tests.faults.faulty_os import (
    CODES,
    Before,
    FaultyOs,
    Operation,
    failure,
    install,
    kinds,
    lose_pages,
)
from tests.faults.judge import Campaign, Tally
from tests.faults.kills import record
from tests.faults.planned_run import PlannedRun, drive

ONCE = "an operation fails once"
FOREVER = "an operation and all after it fail"
FULL = "the disk is full from an operation on"
FULL_FOR_A_WHILE = "the disk is full for a while"
SHORT = "a short write"


class QuickClock:
    """Stands for `time` in `extraction.writing.disk_retry`: sleeping takes no time.

    Args:
        wake: called with the seconds slept so far, after each sleep.
    """

    def __init__(self, wake: Callable[[float], None] = lambda _: None):
        self.slept, self._wake = 0.0, wake

    def sleep(self, seconds: float) -> None:
        """Counts them."""
        self.slept += seconds
        self._wake(self.slept)


def faulty_run(run: PlannedRun, before: Before) -> Work:
    """A run whose operations may fail."""

    def work(tell):
        disk_retry.time = QuickClock()  # pyright: ignore
        install(FaultyOs(before=before))
        return drive(run, tell)

    return work


def once(number: int, code: int) -> Before:
    """The n-th operation fails."""

    def before(operation: Operation) -> None:
        if operation.number == number:
            if operation.name == "fsync":
                lose_pages(operation)
            raise failure(code)

    return before


def from_then_on(number: int, code: int) -> Before:
    """The n-th operation fails and all after it, but closing: nothing else would be possible."""

    def before(operation: Operation) -> None:
        if operation.number >= number:
            if operation.name == "fsync":
                lose_pages(operation)
            raise failure(code)

    return before


def short_write(number: int) -> Before:
    """The n-th operation, a write, writes a part, as the system may."""

    def before(operation: Operation) -> int | None:
        return 1 + len(operation.arguments[1]) // 3 if operation.number == number else None

    return before


def _full(operation: Operation) -> None:
    """There is no room for more; what needs none works."""
    needs_room = operation.name in {"posix_fallocate", "write", "mkdir", "link"}
    creates = operation.name == "open" and len(operation.arguments) > 2
    if needs_room or creates:
        raise failure(errno.ENOSPC)


def full_from_then_on(number: int) -> Before:
    """From the n-th operation on there is no room."""
    return lambda operation: _full(operation) if operation.number >= number else None


def full_for_a_while(number: int) -> Before:
    """For a few operations there is no room."""
    return lambda operation: _full(operation) if 0 <= operation.number - number < 16 else None


def check_end(tally: Tally, case: str, ended: Ended) -> None:
    """A run that fails says so in the one way that it has."""
    if ended.signal is not None:
        tally.fail(case, f"the run died of signal {ended.signal}")
    elif ended.error is None:
        tally.note("went on by itself")
    elif issubclass(ended.error, StorageUnavailableError):
        tally.note("said that the storage is unavailable")
    elif issubclass(ended.error, StoreError):
        tally.note("refused to begin")
        if any(event[0] == "committed" for event in ended.said):
            tally.fail(case, f"{ended.error.__name__} in the middle: {ended.message}")
    else:
        tally.fail(case, f"{ended.error.__name__}: {ended.message} ({ended.where})")


def faults_of(operation: Operation) -> dict[str, Before]:
    """What can go wrong with an operation, by its name in the table."""
    number = operation.number
    faults = {
        FULL: full_from_then_on(number),
        FULL_FOR_A_WHILE: full_for_a_while(number),
    }
    for name, code in CODES.items():
        if name != "EMFILE" or operation.name == "open":
            faults[f"{ONCE}, {name}"] = once(number, code)
            faults[f"{FOREVER}, {name}"] = from_then_on(number, code)
    if operation.name == "write":
        faults[SHORT] = short_write(number)
    return faults


def run(campaign: Campaign, only: str = "") -> None:
    """Every operation, every fault whose name begins with `only`."""
    operations = record(campaign)
    for operation, kind in zip(operations, kinds(operations), strict=True):
        for place, (fault, before) in enumerate(faults_of(operation).items()):
            if not fault.startswith(only) or (operation.number + 3 * place) % campaign.share.every:
                continue
            tally = campaign.tally(fault)
            case = f"operation {operation.number}, {operation.name} of {kind}"
            with campaign.case() as planned:
                ended = run_child(faulty_run(planned, before))
                check_end(tally, case, ended)
                if fault == FULL_FOR_A_WHILE and ended.error and ended.said:
                    tally.fail(case, "the run did not wait for room")
                planned = dataclasses.replace(planned, attempt=1)
                campaign.judge(tally, case, planned, ended.said)
