"""The remembered state of a slice, what is seen of it, and the possible actions (`life_cycle`)."""

import dataclasses
from collections.abc import Mapping, Sequence
from enum import Enum

from launch.gcloud import Report, Resource


class Goal(Enum):
    """What to do when the slice is deleted."""

    CREATE = "create"
    CHECK = "check"
    END = "end"


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What is remembered between two looks; times in seconds.

    Attributes:
        attempts: number of slices requested so far.
        attempt: name of the present attempt.
        goal: what to do when the slice is deleted; None: it is not being deleted.
        reason: reason of the goal.
        status: exit status, if the goal is the end.
        chosen: time when the goal was chosen.
        phase: state of the slice at the last look.
        since: time when this state was first seen.
        lives: last report of each worker, and the time when it was first seen.
        woken: whether silent workers were started again in this attempt.
        active: seconds that slices were active, in all attempts.
        looked: time of the last look.
    """

    attempts: int = 0
    attempt: str | None = None
    goal: Goal | None = None
    reason: str = ""
    status: int = 0
    chosen: float = 0.0
    phase: str = ""
    since: float = 0.0
    lives: Mapping[int, tuple[Report, float]] = dataclasses.field(default_factory=dict)
    woken: bool = False
    active: float = 0.0
    looked: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What is seen in one look.

    Attributes:
        resource: the slice; None: there is none.
        reports: last reports of the workers of the present attempt.
        time: time of the look, in seconds.
    """

    resource: Resource | None
    reports: Mapping[int, Report]
    time: float


@dataclasses.dataclass(frozen=True)
class Wait:
    """Look again later."""

    why: str


@dataclasses.dataclass(frozen=True)
class Create:
    """Request a slice."""

    why: str


@dataclasses.dataclass(frozen=True)
class Delete:
    """Delete the slice."""

    why: str


@dataclasses.dataclass(frozen=True)
class Wake:
    """Print the journals of silent workers, and run their start-up script again."""

    workers: Sequence[int]
    why: str


@dataclasses.dataclass(frozen=True)
class Check:
    """Verify the run, since all workers are done."""


@dataclasses.dataclass(frozen=True)
class End:
    """Stop, with a message and an exit status."""

    why: str
    status: int


Action = Wait | Create | Delete | Wake | Check | End


def remember(state: State, seen: Seen) -> State:
    """Return the state updated by a look: times, last reports, hours that cost."""
    phase = "" if seen.resource is None else seen.resource.state
    passed = max(0.0, seen.time - state.looked) if state.looked else 0.0
    lives = {
        number: (report, seen.time)
        if number not in state.lives or state.lives[number][0] != report
        else state.lives[number]
        for number, report in seen.reports.items()
    }
    return dataclasses.replace(
        state,
        phase=phase,
        since=state.since if phase == state.phase and state.since else seen.time,
        lives=lives,
        active=state.active + (passed if phase == state.phase == "ACTIVE" else 0.0),
        looked=seen.time,
    )
