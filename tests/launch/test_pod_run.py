"""The whole life of a slice, played by a fake gcloud that records what it is asked."""

import json
import re
import shlex
import signal
import types

import pytest

from launch import pod_run
from launch.__main__ import main

PAIR = {"slice": "v4-16"}  # two hosts
QUEUED = ["WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING"]
WORK = ["ACTIVE - -", "ACTIVE installing -", "ACTIVE installing running", "ACTIVE running running"]
DONE = ["ACTIVE running exited:0:running", "ACTIVE exited:0:running exited:0:running"]


@pytest.fixture
def launch(write_settings):
    def launch(command="run", **sections):
        sections.setdefault("machine", PAIR)
        return main([command, str(write_settings(**sections))])

    return launch


def test_created_preempted_twice_resumed_and_finished(launch, finishes, capsys):
    finishes.play(
        [*QUEUED, *WORK, "SUSPENDING running running", "SUSPENDED"],
        [QUEUED[0], WORK[-1], "SUSPENDED"],
        [*QUEUED, *WORK, *DONE],
    )
    assert launch() == 0
    out = capsys.readouterr().out
    assert "verdict: good" in out
    assert out.count("the slice was preempted (SUSPENDED)") == 4  # each: taken away, asked for anew
    assert finishes.verbs("create", "delete") == ["create", "delete"] * 3
    assert not finishes.has_slice
    creates = [call for call in finishes.calls() if "create" in call]
    assert len({word for call in creates for word in call if "launch-attempt" in word}) == 3
    for number in range(3):
        script = (finishes.folder / f"startup-{number}.sh").read_text()
        assert "--resume=True" in script
    launched = len(finishes.calls())
    assert launch() == 0  # the run is whole: nothing is asked for again
    assert finishes.verbs("create") == ["create"] * 3
    assert len(finishes.calls()) == launched + 1


def test_a_run_that_is_not_whole_is_no_success(launch, cloud, capsys):
    cloud.play([WORK[-1], DONE[-1]])
    assert launch() == 1
    assert "verdict: foreign" in capsys.readouterr().out
    assert not cloud.has_slice


def test_install_fails_on_one_worker(launch, finishes, capsys):
    finishes.play(
        [WORK[0], "ACTIVE running exited:1:installing"],
        [WORK[-1], DONE[-1]],
    )
    assert launch() == 0
    assert "worker 1 ended with 1 while installing" in capsys.readouterr().out
    assert finishes.verbs("create", "delete") == ["create", "delete"] * 2
    assert any("worker-1.log" in word for call in finishes.calls() for word in call)


def test_bad_input_is_not_tried_again(launch, cloud, capsys):
    cloud.play([WORK[-1], "ACTIVE exited:2:running running"])
    assert launch() == 2
    assert "worker 0 refused the input" in capsys.readouterr().out
    assert cloud.verbs("create", "delete") == ["create", "delete"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_attempts_are_limited(state, launch, cloud, capsys):
    cloud.play(*[[QUEUED[0], state]] * 3)
    assert launch(limits={"attempts": 3}) == 1
    assert "3 slices were tried, as many as allowed" in capsys.readouterr().out
    assert cloud.verbs("create", "delete") == ["create", "delete"] * 3
    assert not cloud.has_slice


def test_never_granted(launch, cloud, capsys):
    cloud.play([QUEUED[0]])
    assert launch(limits={"wait_hours": 1e-4}) == 1
    assert "no slice was granted within" in capsys.readouterr().out
    assert cloud.verbs("create", "delete") == ["create", "delete"]


@pytest.mark.parametrize("state", ["STATE_UNSPECIFIED", "RESTING"])
def test_an_unknown_state_ends_it_and_changes_nothing(state, launch, cloud, capsys):
    cloud.play([state])
    assert launch() == 1
    out = capsys.readouterr().out
    assert f"an unknown state: {state}" in out
    assert "queued-resources delete arc-05b" in out.splitlines()[-1]
    assert cloud.verbs("delete") == []


def test_a_worker_that_never_reports_is_started_again_then_the_slice_is(launch, finishes, capsys):
    finishes.play(["ACTIVE running -"], [WORK[-1], DONE[-1]])
    assert launch(limits={"start_minutes": 1e-4, "silent_minutes": 60.0}) == 0
    out = capsys.readouterr().out
    assert "worker 1 did not report within" in out
    assert "what the journal holds" in out
    assert finishes.verbs("ssh", "create", "delete") == [
        *("create", "ssh", "ssh", "delete"),
        *("create", "delete"),
    ]
    assert all("--worker=1" in call for call in finishes.calls() if "ssh" in call)


def test_a_worker_that_falls_silent(launch, finishes, capsys):
    finishes.play([WORK[-1], *["ACTIVE running! running"] * 400], [WORK[-1], DONE[-1]])
    assert launch(limits={"silent_minutes": 0.02}) == 0
    assert "worker 0 said nothing for" in capsys.readouterr().out


def test_one_worker_cannot_be_reached_at_first(launch, finishes, capsys):
    broken = "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255]."
    finishes.play(["ACTIVE running -"], [DONE[-1]], faults=[["ssh runner", 1, broken, 3]])
    assert launch(limits={"start_minutes": 1e-4, "silent_minutes": 60.0}) == 0
    assert finishes.verbs("ssh") == ["ssh"] * 5  # a journal, three failures, a success
    assert "trying again" in capsys.readouterr().out


def test_worker_0_takes_the_slice_away(launch, finishes):
    finishes.play([WORK[-1], "gone exited:0:running exited:0:running"])
    assert launch() == 0
    assert finishes.verbs("create", "delete") == ["create"]


def test_a_slice_that_somebody_deleted(launch, cloud, capsys, monkeypatch):
    monkeypatch.setattr("launch.life_cycle.UNSEEN_LIMIT", 0.0)
    cloud.play([WORK[-1], "gone running running"])
    assert launch() == 1
    assert "the slice is gone" in capsys.readouterr().out


def test_a_watcher_that_comes_later_goes_on_with_what_is_there(launch, finishes):
    finishes.play([QUEUED[0], *WORK, *DONE])
    assert launch("create") == 0
    assert finishes.has_slice
    assert launch() == 0
    assert finishes.verbs("create", "delete") == ["create", "delete"]


def test_a_slice_of_somebody_else_is_left_alone(launch, cloud, capsys):
    cloud.play([WORK[-1]])
    (cloud.folder / "resource.json").write_text(
        json.dumps({"labels": {}, "steps": ["ACTIVE"], "step": 0})
    )
    assert launch() == 2
    assert "that launch did not create" in capsys.readouterr().err
    assert cloud.verbs("create", "delete") == []


def test_what_fails_in_passing_is_tried_again(launch, finishes):
    gone = "ERROR: (gcloud) There was a problem refreshing: 503 UNAVAILABLE"
    finishes.play(
        [WORK[-1], DONE[-1]],
        faults=[["describe", 1, gone, 2], ["cat", 1, gone, 1], ["delete", 1, gone, 1]],
    )
    assert launch() == 0
    assert finishes.verbs("create") == ["create"]


def test_a_lost_answer_to_create_does_not_make_two(launch, finishes, monkeypatch):
    """The slice is made, the answer says that it was not."""
    once = pod_run.commands.once
    lost = []

    def flaky(command):
        answer = once(command)
        if "create" in command and not lost:
            lost.append(command)
            return pod_run.commands.Answer(status=1, out="", error="503 UNAVAILABLE")
        return answer

    monkeypatch.setattr(pod_run.commands, "once", flaky)
    finishes.play([WORK[-1], DONE[-1]])
    assert launch() == 0
    assert lost
    assert finishes.verbs("create") == ["create"]


@pytest.mark.parametrize(
    ("message", "status"),
    [("ERROR: PERMISSION_DENIED: no", 2), ("ERROR: 503 UNAVAILABLE", 74)],
)
def test_what_does_not_mend_itself_is_told(message, status, launch, cloud, capsys):
    cloud.play([WORK[-1]], faults=[["describe", 1, message, 100]])
    assert launch() == status
    assert message in capsys.readouterr().err
    assert len(cloud.calls()) == (1 if status == 2 else pod_run.commands.TRIES)


def test_quota_is_told_by_google_and_ends_it(launch, cloud, capsys):
    cloud.play([WORK[-1]], faults=[["create", 1, "ERROR: INVALID_ARGUMENT: no such type", 9]])
    assert launch() == 2
    assert "no such type" in capsys.readouterr().err
    assert cloud.verbs("create") == ["create"]


CALLS = 14
"""Of the life below, at least; the test counts them."""


@pytest.fixture
def interruptible():
    """As at a terminal: what is started in the background is often told to ignore ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "name"),
    [(number, "SIGINT") for number in range(CALLS)] + [(0, "SIGTERM"), (4, "SIGTERM")],
)
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_at_any_call_leaves_a_command_that_cleans_up(number, name, launch, finishes, capsys):
    life = [QUEUED[0], WORK[-1], "SUSPENDED"], [WORK[-1], DONE[-1]]
    finishes.play(*life, stop=[number, name])
    before = signal.getsignal(signal.SIGTERM)
    assert launch() == 128 + signal.Signals[name]
    assert signal.getsignal(signal.SIGTERM) is before
    told = capsys.readouterr()
    line = re.search(r"to delete the slice, if there is one: (.*)", told.err)
    assert line
    finishes.play(*life)
    had_one = finishes.has_slice
    command = shlex.split(line[1])
    answer = pod_run.commands.once(command)
    assert answer.status == 0 if had_one else answer.is_missing
    assert not finishes.has_slice


def test_delete_is_harmless_when_there_is_nothing(launch, cloud):
    cloud.play(["ACTIVE"])
    assert launch("create") == 0
    assert launch("delete") == launch("delete") == 0
    assert not cloud.has_slice


def test_the_life_that_is_interrupted_has_so_many_calls(launch, finishes):
    finishes.play([QUEUED[0], WORK[-1], "SUSPENDED"], [WORK[-1], DONE[-1]])
    assert launch() == 0
    assert len(finishes.calls()) >= CALLS


def test_status_and_logs(launch, cloud, capsys, write_settings):
    cloud.play([WORK[1], WORK[1]])
    assert launch("create") == 0
    capsys.readouterr()
    assert launch("status") == 0
    out = capsys.readouterr().out
    assert "arc-05b: ACTIVE" in out
    assert "worker 1: no report yet" in out
    assert launch("logs") == 0
    assert "nothing has been written yet" in capsys.readouterr().err


def test_a_log_is_followed(launch, cloud, capsys, monkeypatch, write_settings):
    cloud.play([WORK[1]])
    assert launch("create") == 0
    capsys.readouterr()
    path = str(write_settings(machine=PAIR))
    assert main(["logs", path, "--follow"]) == 2
    assert "--follow needs --worker N, a number from 0 to 1" in capsys.readouterr().err
    resource = json.loads((cloud.folder / "resource.json").read_text())
    attempt = resource["labels"]["launch-attempt"]
    address = f"gs://my-bucket/runs/arc-05b/_launch/attempt-{attempt}/worker-1.log"
    lines = iter(["one\n", "one\ntwo\n", "one\ntwo\n"])

    def write(seconds):
        text = next(lines, None)
        if text is None:
            raise KeyboardInterrupt
        (cloud.folder / "log").write_text(text)
        upload = [str(cloud.bin / "gcloud"), "storage", "cp", str(cloud.folder / "log"), address]
        assert pod_run.commands.once(upload).status == 0

    monkeypatch.setattr("launch.launch_commands.time", types.SimpleNamespace(sleep=write))
    assert main(["logs", path, "--worker", "1", "--follow"]) == 130
    assert capsys.readouterr().out == "one\ntwo\n"
