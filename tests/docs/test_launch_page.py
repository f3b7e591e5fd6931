"""docs/launch.md: its files are read, its commands are taken, its output is what is printed."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.settings import (
    GkeSettings,
    Limits,
    MachineSettings,
    RunSettings,
    SlurmSettings,
    read_settings,
)

PAGE = (Path(__file__).parents[2] / "docs/launch.md").read_text(encoding="utf-8")
FILES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line) for line in re.findall(r"^    ((?:gcloud|python) .*)$", PAGE, re.MULTILINE)
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the page's two settings files."""
    monkeypatch.chdir(tmp_path)
    for name, text in zip(("arc-05b", "demo"), FILES, strict=True):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def test_the_files_are_settings(here):
    assert read_settings(here / "arc-05b.yaml").machine is not None
    assert read_settings(here / "demo.yaml").machine is None


def test_the_dry_run_prints_what_the_page_says(here, capsys):
    (wanted,) = re.findall(r"```output\n(.*?)```", PAGE, re.DOTALL)
    assert main(["run", "arc-05b.yaml", "--dry_run"]) == 0
    pattern = "".join(r"[-\w]+" if part == "..." else re.escape(part)
                      for part in re.split(r"(\.\.\.)", wanted.strip()))  # fmt: skip
    assert re.fullmatch(pattern, capsys.readouterr().out.strip())
    assert (here / "arc-05b.launch" / "worker.sh").exists()


def test_every_launch_command_runs_dry(here, capsys):
    launched = [command[3:] for command in COMMANDS if command[:3] == ["python", "-m", "launch"]]
    names = {words[0] for words in launched}
    assert {"create", "run", "status", "logs", "delete", "gke", "slurm", "local"} <= names
    for words in launched:
        if words[0] != "plan":
            dry = words if "--dry_run" in words else [*words, "--dry_run"]
            assert main(dry) == 0, words
    assert "#SBATCH" in capsys.readouterr().out


def test_the_refusal_is_what_the_page_says(here, capsys):
    (wanted,) = re.findall(r"^    (error: .*)$", PAGE, re.MULTILINE)
    text = (here / "arc-05b.yaml").read_text().replace("  zone:", "  zon:")
    (here / "arc-05b.yaml").write_text(text)
    assert main(["run", "arc-05b.yaml"]) == 2
    assert capsys.readouterr().err.strip() == wanted


def test_every_field_is_in_the_table():
    rows = dict(re.findall(r"^\| `?\(?(\w+)\)?`? \| (.*) \|$", PAGE, re.MULTILINE))
    for section, kind in {
        "top": RunSettings, "machine": MachineSettings, "limits": Limits, "gke": GkeSettings,
        "slurm": SlurmSettings,
    }.items():  # fmt: skip
        names = {field.name for field in dataclasses.fields(kind)}
        assert names <= set(re.findall(r"`(\w+)`", rows[section])), section
    for field in dataclasses.fields(Limits):
        if field.default is not None:
            assert f"`{field.name}` {field.default:g}" in rows["limits"]


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")
def test_the_real_gcloud_takes_the_commands_of_the_page(tmp_path):
    """It parses first, and then finds that nobody is logged in."""
    (tmp_path / "arc_tasks.json").write_text("{}")
    environment = os.environ | {
        "CLOUDSDK_CONFIG": str(tmp_path / "nobody"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }
    tried = [command for command in COMMANDS if command[0] == "gcloud" and command[1] != "auth"]
    assert len(tried) >= 7

    def answer(command):
        return subprocess.run(
            command, env=environment, cwd=tmp_path, input="token", text=True, capture_output=True,
            timeout=120, check=False,
        )  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        for command, said in zip(tried, pool.map(answer, tried), strict=True):
            assert "do not currently have an active account" in said.stderr, (command, said.stderr)
