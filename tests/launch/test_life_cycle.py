"""What is decided, without any slice; times in seconds."""

import dataclasses

import pytest

from launch.gcloud import Report, Resource
from launch.life_cycle import GOING_LIMIT, UNSEEN_LIMIT, decide
from launch.settings import Limits
from launch.slice_state import Check, Create, Delete, End, Goal, Seen, State, Wait, Wake

LIMITS = Limits(attempts=3, hours=10.0, wait_hours=2.0, start_minutes=20.0, silent_minutes=15.0)
RUNNING = Report(phase="running", line="a 0 1 running")
DONE = Report(phase="exited", line="a 0 2 exited 0 running", code=0, exited_in="running")
KILLED = Report(phase="exited", line="a 0 2 exited 137 running", code=137, exited_in="running")


def seen(state, time, *reports):
    resource = None if state is None else Resource(state=state, attempt="a")
    return Seen(resource=resource, reports=dict(enumerate(reports)), time=time)


def follow(state, *looks, workers=2, limits=LIMITS):
    """State and action after some looks."""
    action = None
    for look in looks:
        state, action = decide(state, look, workers, limits)
    return state, action


ASKED = State(attempts=1, attempt="a")


def test_the_straight_way():
    state, action = follow(State(), seen(None, 0))
    assert isinstance(action, Create)
    assert state.attempts == 1
    state = dataclasses.replace(state, attempt="a")
    for look in (
        seen("WAITING_FOR_RESOURCES", 10), seen("PROVISIONING", 20), seen("ACTIVE", 30),
        seen("ACTIVE", 60, RUNNING), seen("ACTIVE", 90, RUNNING, RUNNING),
        seen("ACTIVE", 120, DONE, RUNNING),
    ):  # fmt: skip
        state, action = decide(state, look, 2, LIMITS)
        assert isinstance(action, Wait), look
    state, action = decide(state, seen("ACTIVE", 150, DONE, DONE), 2, LIMITS)
    assert isinstance(action, Delete)
    state, action = decide(state, seen(None, 180), 2, LIMITS)
    assert isinstance(action, Check)
    assert state.active == 120


@pytest.mark.parametrize(
    "name", ["CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "SUSPENDING",
             "DELETING", "ACTIVE"],
)  # fmt: skip
def test_nothing_waits_without_a_limit(name):
    _, action = follow(ASKED, seen(name, 100), seen(name, 100 + 3600 * 24.0))
    assert not isinstance(action, Wait)


def test_a_slice_that_is_not_seen_yet_is_waited_for():
    state, action = follow(ASKED, seen(None, 100), seen(None, 100 + UNSEEN_LIMIT / 2))
    assert isinstance(action, Wait)
    _, action = follow(state, seen(None, 101 + UNSEEN_LIMIT))
    assert isinstance(action, End)
    _, action = follow(state, seen("ACTIVE", 150))
    assert isinstance(action, Wait)


def test_worker_0_took_it_away_after_a_failure():
    state, action = follow(
        ASKED, seen("ACTIVE", 100, RUNNING, RUNNING), seen(None, 200, KILLED, KILLED),
        seen(None, 200 + UNSEEN_LIMIT, KILLED, KILLED),
    )  # fmt: skip
    assert isinstance(action, Create)
    assert "ended with 137" in action.why
    assert state.attempts == 2


def test_one_that_ends_has_the_others_time_to_end_too():
    state, action = follow(
        ASKED, seen("ACTIVE", 100, RUNNING, RUNNING), seen("ACTIVE", 200, KILLED, RUNNING)
    )
    assert isinstance(action, Wait)
    _, action = follow(state, seen("ACTIVE", 200 + 15 * 60.0, KILLED, RUNNING))
    assert isinstance(action, Delete)
    _, action = follow(state, seen("ACTIVE", 230, KILLED, KILLED))
    assert isinstance(action, Delete)


def test_a_silent_worker_is_woken_once():
    state, action = follow(ASKED, seen("ACTIVE", 100, RUNNING), seen("ACTIVE", 1300, RUNNING))
    assert isinstance(action, Wake)
    assert action.workers == (1,)
    state, action = follow(state, seen("ACTIVE", 1400, RUNNING))
    assert isinstance(action, Wait)
    state, action = follow(state, seen("ACTIVE", 2600, RUNNING))
    assert isinstance(action, Delete)
    assert state.goal is Goal.CREATE


def test_what_does_not_go_away_ends_it():
    state, action = follow(ASKED, seen("SUSPENDED", 100))
    assert isinstance(action, Delete)
    state, action = follow(state, seen("SUSPENDED", 110))
    assert isinstance(action, Delete), "tried again"
    _, action = follow(state, seen("SUSPENDED", 100 + GOING_LIMIT))
    assert isinstance(action, End)
    assert action.status == 1


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"hours": 1.0}, "1.0 hours; limits.hours allows 1"),
        ({"dollars": 80.0, "dollars_per_hour": 76.8}, "allows $80"),
    ],
)
def test_hours_and_dollars_are_those_of_all_attempts(limits, words):
    limits = dataclasses.replace(LIMITS, silent_minutes=1e9, start_minutes=1e9, **limits)
    looks = [seen("ACTIVE", 1.0 + 60 * i, RUNNING, RUNNING) for i in range(33)]
    state, action = follow(ASKED, *looks, limits=limits)
    assert isinstance(action, Wait)
    state, action = follow(state, seen("SUSPENDED", 3000), seen(None, 3010), limits=limits)
    assert isinstance(action, Create)
    looks = [seen("ACTIVE", 10_000 + 60 * i, RUNNING, RUNNING) for i in range(34)]
    state, action = follow(state, *looks, limits=limits)
    assert isinstance(action, Delete)
    assert words in action.why
    state, action = follow(state, seen(None, 90_000), limits=limits)
    assert isinstance(action, End)
    assert action.status == 1
