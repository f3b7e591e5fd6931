"""The SkyPilot task: its fields are SkyPilot's, and its command is the distributed command's.

`tests/launch/check_skypilot.py` lets SkyPilot's own parser read it, in an environment of its own.
"""

import dataclasses
import shlex

import pytest
import yaml

from inference.settings.command_line import make_parser, parse_settings
from inference.settings.commands import DistributedSettings
from launch.__main__ import main
from launch.settings import read_settings
from launch.worker_script import MODULE


def written(capsys, tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    assert main(["sky", str(settings)]) == 0
    (file,) = tmp_path.glob("*.launch/task.yaml")
    return yaml.safe_load(file.read_text()), capsys.readouterr().out


def test_the_task_asks_for_the_slice_and_goes_on(capsys, tmp_path, monkeypatch, write_settings):
    path = write_settings(machine={"provisioning": "spot", "slice": "v5e-64"})
    task, out = written(capsys, tmp_path, monkeypatch, path)
    settings = read_settings(path)
    resources = task["resources"]
    assert resources["accelerators"] == "tpu-v5litepod-64"
    assert resources["accelerator_args"]["runtime_version"] == "v2-alpha-tpuv5-lite"
    assert resources["use_spot"] is True
    zone = settings.machine.zone
    assert resources["infra"] == f"gcp/{zone[:-2]}/{zone}"
    assert resources["job_recovery"]["recover_on_exit_codes"] == [74, 143]
    assert f"sky jobs launch --name {settings.name}" in out
    python, dash_m, module, *flags = shlex.split(task["run"])
    assert (dash_m, module) == ("-m", MODULE)
    parsed = parse_settings(make_parser(DistributedSettings, ""), DistributedSettings, flags)
    assert parsed == dataclasses.replace(settings.extraction, resume=True)
    assert python.rpartition("/")[0] in task["setup"]


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"slice": "v5litepod-63"}, "not a known TPU slice"),
        ({"provisioning": "reserved"}, "for reserved slices use"),
    ],
)
def test_what_skypilot_would_take_and_google_would_not(machine, words, write_settings, capsys):
    assert main(["sky", str(write_settings(machine=machine))]) == 2
    assert words in capsys.readouterr().err


def test_a_secret_is_passed_by_name(capsys, tmp_path, monkeypatch, write_settings):
    path = write_settings(hugging_face_token_secret="projects/my-project/secrets/hugging-face")
    task, out = written(capsys, tmp_path, monkeypatch, path)
    assert task["secrets"] == {"HF_TOKEN": None}
    assert "--secret HF_TOKEN" in out
