"""Every gcloud command that can be emitted is one that gcloud's own parser takes; its answers."""

import inspect
import json
import os
import shutil
import subprocess
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference.planner.machines import MACHINES
from launch import gcloud
from launch.commands import Command
from launch.settings import read_settings

NO_ACCOUNT = "You do not currently have an active account selected"

EVERYTHING = {
    "provisioning": "reserved",
    "runtime_version": "v2-alpha-tpuv6e",
    "service_account": "worker@my-project.iam.gserviceaccount.com",
    "network": "my-network",
    "subnetwork": "projects/my-project/regions/us-west4/subnetworks/mine",
    "internal_ips": True,
}


def every_command(write_settings, folder):
    """By the function of `launch.gcloud` that makes it."""
    script = folder / "worker.sh"
    script.write_text("exit\n")
    found: dict[str, list[Command]] = {}

    def add(made, *arguments):
        found.setdefault(made.__name__, []).append(made(*arguments))

    machines = [
        {"provisioning": "spot"},
        EVERYTHING,
        {"slice": "v5p-128", "zone": "us-east5-a", "provisioning": "on-demand"},
    ]
    for machine in machines:
        settings = read_settings(write_settings(machine=machine))
        add(gcloud.create, settings, script, "20261121-120000", "0123456789abcdef")
    for made in (settings, read_settings(write_settings(machine=EVERYTHING))):
        add(gcloud.ssh, made, 3, gcloud.JOURNAL)
        add(gcloud.ssh, made, 3, gcloud.START_AGAIN)
    add(gcloud.describe, settings)
    add(gcloud.delete, settings)
    found["delete"].append([*gcloud.delete(settings), "--async"])
    add(gcloud.upload, str(script), "gs://my-bucket/a 'b' $(c)/worker.sh")
    add(gcloud.download, "gs://my-bucket/a/source.tar.gz", "/work/source.tar.gz")
    add(gcloud.cat, "gs://my-bucket/a b/worker-*.status")
    add(gcloud.read_secret, "projects/p/secrets/hf")
    add(gcloud.read_secret, "projects/p/secrets/hf/versions/7")
    return found


def test_every_function_that_makes_a_command_is_tried(write_settings, tmp_path):
    makers = {
        name
        for name, made in inspect.getmembers(gcloud, inspect.isfunction)
        if made.__module__ == gcloud.__name__
        and typing.get_type_hints(made).get("return") == Command
        and not name.startswith("_")
    }
    assert set(every_command(write_settings, tmp_path)) == makers


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")
def test_the_real_gcloud_takes_every_command(write_settings, tmp_path):
    """It parses first, and then finds that nobody is logged in."""
    environment = os.environ | {
        "CLOUDSDK_CONFIG": str(tmp_path / "nobody"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }
    for name in ("CLOUDSDK_CORE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"):
        environment.pop(name, None)

    def answer(command):
        return subprocess.run(
            command, env=environment, cwd=tmp_path, text=True, capture_output=True,
            stdin=subprocess.DEVNULL, timeout=120, check=False,
        )  # fmt: skip

    made = [
        command for some in every_command(write_settings, tmp_path).values() for command in some
    ]
    assert all(command[0] == "gcloud" for command in made)
    wrong = [[*made[0], "--sport"], [*made[0][:-1], "--labels=A B"]]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(answer, made + wrong))
    for command, said in zip(made, answers, strict=False):
        assert NO_ACCOUNT in said.stderr, f"{command}: {said.stderr}"
        assert said.returncode == 1
    for said in answers[len(made) :]:  # or this test could not fail
        assert said.returncode == 2
        assert NO_ACCOUNT not in said.stderr


def test_the_slice_is_asked_for_by_its_own_name(write_settings):
    settings = read_settings(write_settings(machine={"slice": "v5e-64"}))
    command = gcloud.create(settings, Path("worker.sh"), "a", "b")
    assert "--accelerator-type=v5litepod-64" in command
    runtime = MACHINES["v5litepod-64"].runtime_version
    assert f"--runtime-version={runtime}" in command
    assert "--spot" in command
    assert not any(isinstance(word, list) for word in command)


def test_what_describe_prints():
    text = json.dumps(
        {
            "name": "projects/p/locations/z/queuedResources/n",
            "state": {"state": "FAILED", "failedData": {"error": {"message": "no capacity"}}},
            "tpu": {"nodeSpec": [{"node": {"labels": {"launch-attempt": "a"}}, "nodeId": "n"}]},
        }
    )
    found = gcloud.parse_resource(text)
    assert (found.state, found.attempt, found.source, found.detail) == (
        *("FAILED", "a", None),
        "no capacity",
    )
    for text in ("", "[]", "{}", '{"state": "ACTIVE"}', "<html>"):
        assert gcloud.parse_resource(text).state.startswith("no state in")
    assert gcloud.parse_resource('{"state": {"state": "ACTIVE"}}').attempt is None


def test_reports_of_other_attempts_and_torn_lines_do_not_count():
    lines = ["a 0 17 running", "a 1 18 exited 0 running", "b 2 19 running"]
    text = "\n".join([*lines, "a x 1 running", "a 3", "", "a 4 1 exited"])
    found = gcloud.parse_reports(text, "a")
    assert {number: (report.phase, report.code) for number, report in found.items()} == {
        0: ("running", None),
        1: ("exited", 0),
        4: ("exited", None),
    }
