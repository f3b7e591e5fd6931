"""What `--dry_run` prints can be pasted into a shell, whatever the settings hold."""

import json
import subprocess

import pytest

from launch import gcloud, pod_run
from launch.__main__ import main
from launch.settings import read_settings
from tests.launch.test_worker_script import HOSTILE


@pytest.mark.parametrize("value", HOSTILE)
def test_pasted_lines_are_the_commands(value, write_settings, cloud, capsys, tmp_path, monkeypatch):
    extraction = {"gcs_bucket": f"gs://my-bucket/{HOSTILE[value]}", "revision": HOSTILE[value]}
    path = write_settings(extraction=extraction)
    settings = read_settings(path)
    monkeypatch.setattr(pod_run, "attempt_name", lambda: "A1")
    assert main(["run", str(path), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert cloud.calls() == []
    lines = [line for line in out.splitlines() if line.startswith("gcloud ")]
    cloud.play(["ACTIVE"])
    subprocess.run(["bash"], input="\n".join(lines), text=True, cwd=tmp_path, check=False,
                   capture_output=True)  # fmt: skip
    script = next(tmp_path.glob("*.launch/worker.sh")).relative_to(tmp_path)
    source = next(tmp_path.glob("*.launch/*.tar.gz"))
    wanted = [
        gcloud.upload(
            str(source.relative_to(tmp_path)), f"{gcloud.launch_folder(settings)}/{source.name}"
        ),
        gcloud.create(settings, script, "A1", source.name[7:23]),
        gcloud.describe(settings),
        gcloud.cat(f"{gcloud.attempt_folder(settings, 'TIME')}/worker-*.status"),
        gcloud.ssh(settings, 0, gcloud.JOURNAL),
        gcloud.ssh(settings, 0, gcloud.START_AGAIN),
        gcloud.delete(settings),
    ]
    assert cloud.calls() == [command[1:] for command in wanted]
    assert not list(tmp_path.rglob("canary*"))


def test_a_name_that_is_taken(write_settings, cloud, capsys, monkeypatch):
    names = iter(["A1", "A2"])
    monkeypatch.setattr(pod_run, "attempt_name", lambda: next(names))
    cloud.play(["ACTIVE"], ["ACTIVE"])
    path = str(write_settings())
    assert main(["create", path]) == 0
    before = json.loads((cloud.folder / "resource.json").read_text())["labels"]
    assert main(["create", path]) == 2
    assert "already exists" in capsys.readouterr().err
    assert json.loads((cloud.folder / "resource.json").read_text())["labels"] == before


@pytest.mark.parametrize("command", ["create", "run", "status", "logs", "delete", "gke"])
def test_without_gcloud_it_says_so(command, write_settings, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([command, str(write_settings())]) == 2
    assert "gcloud is not installed, or not on PATH" in capsys.readouterr().err


def test_wrong_words(capsys):
    for words in (["fly", "x"], ["run"], ["run", "x", "--dry"], ["local", "x", "--processes", "a"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith("error: ")
