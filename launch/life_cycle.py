"""The next action for a slice: a pure function of what is remembered and what is seen.

    requested -> granted -> installing -> running -> all exited with 0 -> deleted -> verified
                    |            |           |
                    +------------+-----------+--> suspended, failed, silent: deleted, replaced

The states of a queued resource are Google's own. An unknown state ends the run with a message;
every wait has a limit.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from extraction.command_parser import BAD_INPUT, FINAL
from launch.settings import Limits
from launch.slice_state import (
    Action,
    Check,
    Create,
    Delete,
    End,
    Goal,
    Seen,
    State,
    Wait,
    Wake,
    remember,
)

QUEUED = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
GOING = ("SUSPENDING", "DELETING")

GOING_LIMIT = 30 * 60.0
"""Most seconds that deleting a slice may take."""

UNSEEN_LIMIT = 5 * 60.0
"""Most seconds that a slice may be missing after its request or while its workers report."""

FAILED = 1
"""Exit status when the limits are used up."""


def decide(state: State, seen: Seen, workers: int, limits: Limits) -> tuple[State, Action]:
    """Return the new state and the next action.

    Args:
        state: the state remembered so far.
        seen: the slice and the reports as seen now.
        workers: number of workers of the slice.
        limits: when to give up.
    """
    state = remember(state, seen)
    if seen.resource is None:
        return _gone(state, seen, workers, limits)
    name, age = seen.resource.state, seen.time - state.since
    if name in GOING:
        if age < GOING_LIMIT:
            return state, Wait(f"the slice is being deleted ({name})")
        if name == "DELETING":
            return state, End(f"the slice has been {name} for {_span(age)}", FAILED)
        return _again(state, f"it has been {name} for {_span(age)}")
    if state.goal is not None:
        if seen.time - state.chosen < GOING_LIMIT:
            return state, Delete(state.reason)
        return state, End(f"the slice was deleted, but it is still there ({name})", FAILED)
    if name in QUEUED:
        if age < limits.wait_hours * 3600:
            return state, Wait(f"requested ({name})")
        why = f"no slice was granted within {_span(age)} ({name}); try another zone or provisioning"
        return _leave(state, why, FAILED)
    if name == "SUSPENDED":
        return _again(state, "the slice was preempted (SUSPENDED)")
    if name == "FAILED":
        detail = f": {seen.resource.detail}" if seen.resource.detail else ""
        return _again(state, f"the slice was not granted (FAILED{detail})")
    if name == "ACTIVE":
        return _active(state, seen, workers, limits)
    return state, End(f"the slice is in an unknown state: {name}. Nothing was changed", FAILED)


def _gone(state: State, seen: Seen, workers: int, limits: Limits) -> tuple[State, Action]:
    """Decide when there is no slice."""
    if state.goal is Goal.CHECK:
        return state, Check()
    if state.goal is Goal.END:
        return state, End(state.reason, state.status)
    if state.goal is None and state.attempt is not None:
        # Worker 0 deletes the slice when it has ended.
        codes = {number: report.code for number, (report, _) in state.lives.items()}
        if _all_done(codes, workers):
            return dataclasses.replace(state, goal=Goal.CHECK), Check()
        final = _final(codes)
        if final is not None:
            return state, End(_why_final(state, final), final)
        if seen.time - state.since < UNSEEN_LIMIT:
            return state, Wait("the slice is not found")
        failed = next((number for number, code in codes.items() if code), None)
        if failed is None:
            why = "the slice is gone, but none of its workers reported a failure"
            return state, End(why, FAILED)
        state = dataclasses.replace(state, reason=_failure(state, failed))
    spent = _spent(state, limits)
    if spent:
        return state, End(spent, FAILED)
    if state.attempts >= limits.attempts:
        why = f"; the last one: {state.reason}" if state.reason else ""
        return state, End(f"{state.attempts} slices were tried, as many as allowed{why}", FAILED)
    why = state.reason or "there is none yet"
    state = dataclasses.replace(
        state, attempts=state.attempts + 1, goal=None, woken=False, lives={}, since=seen.time
    )
    return state, Create(why)


def _active(state: State, seen: Seen, workers: int, limits: Limits) -> tuple[State, Action]:
    """Decide when there is a slice, by the reports of its workers."""
    lives = state.lives
    codes = {number: report.code for number, (report, _) in lives.items()}
    if _all_done(codes, workers):
        return _leave(state, "all workers are done", 0, Goal.CHECK)
    final = _final(codes)
    if final is not None:
        return _leave(state, _why_final(state, final), final)
    ended = {number: report for number, (report, _) in lives.items() if report.code}
    if ended:
        number, report = next(iter(ended.items()))
        told = min(lives[number][1] for number in ended)
        everyone = len(codes) == workers and None not in codes.values()
        if everyone or report.exited_in == "installing" or _late(seen, told, limits.silent_minutes):
            return _again(state, _failure(state, number))
    spent = _spent(state, limits)
    if spent:
        return _leave(state, spent, FAILED)
    missing = [number for number in range(workers) if number not in lives]
    if missing and _late(seen, state.since, limits.start_minutes):
        why = f"{_workers(missing)} did not report within {limits.start_minutes:g} minutes"
        return _wake(state, missing, why, seen, limits)
    silent = [
        number
        for number, (report, told) in lives.items()
        if report.code is None and _late(seen, told, limits.silent_minutes)
    ]
    if silent:
        why = f"{_workers(silent)} said nothing for {limits.silent_minutes:g} minutes"
        return _wake(state, silent, why, seen, limits)
    phases = [report.phase for report, _ in lives.values()]
    said = [f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases)]
    unheard = [f"{len(missing)} not heard of yet"] if missing else []
    return state, Wait(f"{workers} workers: {', '.join(said + unheard)}")


def _wake(
    state: State, workers: Sequence[int], why: str, seen: Seen, limits: Limits
) -> tuple[State, Action]:
    """Start silent workers again; if they were started again before, replace the slice."""
    if state.woken:
        return _again(state, f"{why}, also after they were started again")
    # Every worker gets the full time to start again.
    lives = {number: (report, seen.time) for number, (report, _) in state.lives.items()}
    state = dataclasses.replace(state, woken=True, since=seen.time, lives=lives)
    return state, Wake(tuple(workers), why)


def _again(state: State, why: str) -> tuple[State, Action]:
    """Delete the slice and request another, if the limits allow."""
    return _leave(state, why, 0, Goal.CREATE)


def _leave(state: State, why: str, status: int, goal: Goal = Goal.END) -> tuple[State, Action]:
    """Delete the slice, and then continue with a goal."""
    state = dataclasses.replace(state, goal=goal, reason=why, status=status, chosen=state.looked)
    return state, Delete(why)


def _all_done(codes: Mapping[int, int | None], workers: int) -> bool:
    return len(codes) == workers and all(code == 0 for code in codes.values())


def _failure(state: State, number: int) -> str:
    report, _ = state.lives[number]
    return f"worker {number} ended with {report.code} while {report.exited_in}"


def _final(codes: Mapping[int, int | None]) -> int | None:
    """Return the exit status of a worker that would end the same way again, or None."""
    return next((code for code in codes.values() if code in FINAL), None)


def _why_final(state: State, status: int) -> str:
    numbers = [number for number, (report, _) in state.lives.items() if report.code == status]
    what = "refused the input" if status == BAD_INPUT else "found wrong rows in the self-check"
    return f"{_workers(numbers)} {what} (exit status {status}); the log says why"


def _spent(state: State, limits: Limits) -> str:
    """Return why no more may be spent, or an empty text."""
    hours = state.active / 3600
    if hours >= limits.hours:
        return f"slices ran for {hours:.1f} hours; limits.hours allows {limits.hours:g}"
    if limits.dollars is not None and limits.dollars_per_hour is not None:
        dollars = hours * limits.dollars_per_hour
        if dollars >= limits.dollars:
            return f"slices cost about ${dollars:.0f}; limits.dollars allows ${limits.dollars:g}"
    return ""


def _late(seen: Seen, since: float, minutes: float) -> bool:
    return seen.time - since >= minutes * 60


def _workers(numbers: Sequence[int]) -> str:
    few = ", ".join(map(str, sorted(numbers)[:8]))
    return f"worker{'s' * (len(numbers) > 1)} {few}{', ...' if len(numbers) > 8 else ''}"


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes"
