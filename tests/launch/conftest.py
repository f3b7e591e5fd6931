"""What the tests of `launch` share: settings files, a gcloud that plays, a run that is finished."""

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest
import yaml

from extraction.storage import open_storage
from inference import distributed_inference_with_activations as distributed
from launch import commands, pod_run
from launch.settings import read_settings
from tests.fake_gcs.fixture import fake_gcs
from tests.oracle import make_checkpoint, random_tokens

__all__ = ["fake_gcs"]

FAKE = Path(__file__).with_name("fake_gcloud.py")
ROOT = Path(__file__).parents[2]

SETTINGS = {
    "name": "arc-05b",
    "extraction": {
        "model_path": "Qwen/Qwen2.5-0.5B",
        "tasks_file": "gs://my-bucket/arc_tasks.json",
        "layers_to_extract": [6, 12, 18, 23],
        "gcs_bucket": "gs://my-bucket/runs/arc-05b",
    },
    "machine": {
        "slice": "v5litepod-64",
        "project": "my-project",
        "zone": "us-west4-a",
        "provisioning": "spot",
    },
}


@pytest.fixture(scope="session", autouse=True)
def importable():
    """Processes that tests start find the packages, wherever they are started."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def write_settings(tmp_path, monkeypatch):
    """Writes a settings file: the one above with other sections; the folder is the present one."""
    monkeypatch.chdir(tmp_path)

    def write(*, without=(), **sections):
        found = {
            name: {**SETTINGS.get(name, {}), **section} if isinstance(section, dict) else section
            for name, section in (SETTINGS | sections).items()
            if name not in without
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(found, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture
def settings(write_settings):
    """The settings above."""
    return read_settings(write_settings())


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class FakeCloud:
    """The gcloud on PATH and its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.run = folder / "run"
        executable(
            self.bin / "gcloud",
            f'#!/bin/sh\nexec "{sys.executable}" -S -E "{FAKE}" "{folder}" "$@"\n',
        )

    def play(self, *lives, faults=(), stop=None):
        """Lives as in the fake's own words."""
        (self.folder / "lives.json").write_text(json.dumps(lives))
        (self.folder / "faults.json").write_text(json.dumps(faults))
        (self.folder / "stop.json").write_text(json.dumps(stop))

    def calls(self):
        """Every command so far."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self, *wanted):
        """Which of the words stood in the commands, in their order."""
        return [word for call in self.calls() for word in call if word in wanted]

    @property
    def has_slice(self):
        path = self.folder / "resource.json"
        return path.exists() and json.loads(path.read_text()) is not None


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A fake gcloud on PATH, a bucket that is a folder, and no waiting."""
    fake = FakeCloud(tmp_path / "cloud")
    monkeypatch.setenv("PATH", f"{fake.bin}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(pod_run, "POLL", 0.0)
    monkeypatch.setattr(commands, "PAUSE", 0.0)
    fake.run.mkdir()
    monkeypatch.setattr("launch.finished_run.open_storage", lambda _: open_storage(fake.run))
    return fake


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A checkpoint."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), num_hidden_layers=2)


@pytest.fixture(scope="session")
def tiny_tasks(tmp_path_factory):
    """A tasks file of 40 samples."""
    tasks = [
        {"task_id": f"t{i}", "token_ids": random_tokens(3 + i % 5, 211, seed=i)} for i in range(40)
    ]
    path = tmp_path_factory.mktemp("tiny_tasks") / "tasks.json"
    path.write_text(json.dumps(tasks))
    return path


@pytest.fixture(scope="session")
def finished_run(tiny_model, tiny_tasks, tmp_path_factory):
    """Folder of the activations of a run that is whole."""
    folder = tmp_path_factory.mktemp("finished")
    flags = ["--model_path", str(tiny_model), "--tasks_file", str(tiny_tasks),
             "--layers_to_extract", "1", "--output_dir", str(folder / "out"),
             "--activations_dir", str(folder / "act")]  # fmt: skip
    assert distributed.main(flags) == 0
    return folder / "act"


@pytest.fixture
def finishes(cloud, finished_run):
    """The workers of the fake do their work when they say so."""
    shutil.copytree(finished_run, cloud.folder / "finish")
    return cloud
