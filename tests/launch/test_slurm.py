"""The job's script, read by bash with a stand-in for `srun`."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from launch import slurm
from launch.__main__ import main
from launch.settings import extraction_flags, read_settings
from tests.launch.conftest import executable
from tests.launch.test_worker_script import HOSTILE


@pytest.fixture
def job(tmp_path):
    """Runs a script; what `srun` was given each time, the exit status, calls of `scontrol`."""

    def job(settings, *codes, restarted=0):
        record, control = tmp_path / "srun.jsonl", tmp_path / "scontrol"
        (tmp_path / "codes").write_text("\n".join(map(str, codes)))
        executable(
            tmp_path / "bin" / "srun",
            f"#!{sys.executable}\nimport json, pathlib, sys\n"
            f"codes = pathlib.Path({str(tmp_path / 'codes')!r})\n"
            f"print(json.dumps(sys.argv[1:]), file=open({str(record)!r}, 'a'))\n"
            "first, *rest = codes.read_text().split()\ncodes.write_text(' '.join(rest))\n"
            "raise SystemExit(int(first))\n",
        )
        executable(tmp_path / "bin" / "scontrol", f'#!/bin/sh\necho "$@" >>"{control}"\n')
        script = tmp_path / "job.sh"
        script.write_text(slurm.script(settings))
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "17",
                       "SLURM_RESTART_COUNT": str(restarted)}  # fmt: skip
        done = subprocess.run(
            ["bash", script], env=environment, cwd=tmp_path, timeout=60, check=False
        )
        calls = [json.loads(line) for line in record.read_text().splitlines()]
        return calls, done.returncode, control.read_text() if control.exists() else ""

    return job


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_reach_the_command_and_nothing_else(value, job, write_settings, tmp_path):
    text = HOSTILE[value]
    section = {"revision": text, "model_path": text, "output_dir": text}
    settings = read_settings(write_settings(extraction=section))
    ((first, *command),), status, _ = job(settings, 0)
    assert status == 0
    assert first == "--kill-on-bad-exit=1"
    assert command == ["python", "-m", slurm.MODULE, *extraction_flags(settings.extraction)]
    assert not list(tmp_path.rglob("canary*"))


@pytest.mark.parametrize(
    ("codes", "restarted", "status", "requeued"),
    [
        ([1, 137, 0], 0, 0, False),
        ([2], 0, 2, False),
        ([1, 1, 1, 9], 0, 9, False),  # restarts are limited
        ([143], 0, 143, True),
        ([143], 9, 143, False),  # attempts are limited
    ],
)
def test_what_follows_an_end(codes, restarted, status, requeued, job, settings):
    calls, code, control = job(settings, *codes, restarted=restarted)
    assert len(calls) == len(codes)
    assert code == status
    assert (control == "requeue 17\n") is requeued


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed here")
@pytest.mark.parametrize("value", HOSTILE)
def test_shellcheck_finds_nothing(value, write_settings, tmp_path):
    settings = read_settings(write_settings(extraction={"revision": HOSTILE[value]}))
    script = tmp_path / "job.sh"
    script.write_text(slurm.script(settings))
    found = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_options(write_settings):
    section = {
        "nodes": 4, "tasks_per_node": 2, "gpus_per_task": 1, "hours": 1.5, "partition": "gpu",
        "account": "lab", "python": "/shared/my venv/bin/python",
    }  # fmt: skip
    text = slurm.script(read_settings(write_settings(slurm=section)))
    options = dict(re.findall(r"^#SBATCH --([-a-z]+)=(.*)$", text, re.MULTILINE))
    assert options["nodes"] == "4"
    assert options["time"] == "90"
    assert options["gpus-per-task"] == "1"
    assert "JOB=('/shared/my venv/bin/python' -m" in text
    plain = slurm.script(read_settings(write_settings()))
    assert "gpus-per-task" not in plain
    assert "partition" not in plain


def test_queueing(write_settings, cloud, capsys, tmp_path):
    path = str(write_settings(without=["machine"]))
    assert main(["slurm", path, "--dry_run"]) == 0
    assert "sbatch arc-05b.launch/job.sh" in capsys.readouterr().out
    executable(cloud.bin / "sbatch", '#!/bin/sh\necho "Submitted batch job 17: $1"\n')
    assert main(["slurm", path]) == 0
    assert "Submitted batch job 17: arc-05b.launch/job.sh" in capsys.readouterr().out
