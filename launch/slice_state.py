"""What is remembered of a slice, what is seen of it, and what can be done next (`life_cycle`)."""

import dataclasses
from collections.abc import Mapping, Sequence
from enum import Enum

from launch.gcloud import Report, Resource


class Goal(Enum):
    """What comes when the slice is gone."""

    CREATE = "create"
    CHECK = "check"
    END = "end"


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What is remembered from one look to the next; times in seconds.

    Attributes:
        attempts: slices that were asked for.
        attempt: name of the present one.
        goal: what comes when the slice is gone; None: it is not meant to go.
        reason: of the goal.
        status: exit status, where the goal is the end.
        chosen: when the goal was.
        phase: the slice's state when last looked at.
        since: when it was first seen.
        lives: of each worker its last report, and when it was first seen.
        woken: silent workers were started again, once in an attempt.
        active: seconds that slices were there, of all attempts.
        looked: when last looked.
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
    """What there is now.

    Attributes:
        resource: the slice; None: there is none.
        reports: of the workers of the present attempt.
        time: in seconds.
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
    """Ask for a slice."""

    why: str


@dataclasses.dataclass(frozen=True)
class Delete:
    """Take the slice away."""

    why: str


@dataclasses.dataclass(frozen=True)
class Wake:
    """Show what silent workers have to say, and run their start-up script again."""

    workers: Sequence[int]
    why: str


@dataclasses.dataclass(frozen=True)
class Check:
    """All workers are done: is the run whole?"""


@dataclasses.dataclass(frozen=True)
class End:
    """Stop, with a message and an exit status."""

    why: str
    status: int


Action = Wait | Create | Delete | Wake | Check | End


def remember(state: State, seen: Seen) -> State:
    """The state with what is seen now: times, the last words of each worker, hours that cost."""
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
