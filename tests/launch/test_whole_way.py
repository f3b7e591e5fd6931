"""The whole way, with one worker: asked for, installed from the archive, killed, resumed, checked.

Only Google is played: the start-up script, the archive, the distributed command, the bucket's
records and the watcher are the real ones.
"""

import functools
import sys

import numpy as np
import pytest

from extraction.reading.dataset import ActivationDataset
from extraction.storage import open_storage
from launch import pod_run
from launch.__main__ import main
from tests.fake_gcs.fixture import fake_gcs  # noqa: F401
from tests.launch.conftest import ROOT, executable
from tests.launch.test_worker_script import Worker

JOB = f"""#!/bin/bash
unset PYTHONDONTWRITEBYTECODE
export PYTHONPATH="$PYTHONPATH:{ROOT}"
if [[ ! -e ../killed ]]; then
  touch ../killed
  exec "{sys.executable}" -m tests.inference.killed_command SIGKILL 3 0 "${{@:3}}"
fi
exec "{sys.executable}" "$@"
"""
"""The python of the worker's environment; the first time the command dies after three commits."""


@pytest.fixture
def bucket(fake_gcs, monkeypatch, tiny_model, tiny_tasks):  # noqa: F811
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    files = {f"model/{path.name}": path for path in tiny_model.iterdir()}
    for name, path in {**files, "tasks.json": tiny_tasks}.items():
        fake_gcs.client().bucket("bucket").blob(name).upload_from_filename(path)
    return fake_gcs


def test_from_a_settings_file_to_a_run_that_is_whole(
    bucket, cloud, write_settings, tmp_path, monkeypatch, capsys, finished_run
):
    monkeypatch.setattr("launch.finished_run.open_storage", open_storage)
    monkeypatch.setattr(pod_run, "POLL", 0.3)
    monkeypatch.setattr("launch.life_cycle.UNSEEN_LIMIT", 60.0)
    Worker(cloud, tmp_path)
    executable(cloud.bin / "job-python", JOB)
    executable(cloud.folder / "start", '#!/bin/bash\nexec bash "$1"\n')
    quick = functools.partial(
        pod_run.worker_script, folder=str(tmp_path / "lib"), beat=1, linger=0, pause=0
    )
    monkeypatch.setattr(pod_run, "worker_script", quick)
    path = write_settings(
        extraction={
            "model_path": "gs://bucket/model", "tasks_file": "gs://bucket/tasks.json",
            "layers_to_extract": [1], "save_every_n_samples": 2, "self_check_rows": 1,
            "gcs_bucket": "gs://bucket/runs/a b's",
        },
        machine={"slice": "v5litepod-1"},
    )  # fmt: skip
    status = main(["run", str(path)])
    out = capsys.readouterr().out
    log = (tmp_path / "lib" / "arc-05b" / "log").read_text()
    assert status == 0, f"{out}\n{log}"
    assert "verdict: good" in out
    assert "the command ended with 137; it goes on with --resume" in log
    assert "units were committed before" in log
    assert not cloud.has_slice
    assert cloud.verbs("create") == ["create"]

    dataset = ActivationDataset("gs://bucket/runs/a b's", layer=1)
    reference = ActivationDataset(finished_run, layer=1)
    order = {name: i for i, name in enumerate(reference.keys().task_ids)}
    assert sorted(dataset.keys().task_ids) == sorted(order)
    wanted = reference[:][[order[name] for name in dataset.keys().task_ids]]
    np.testing.assert_allclose(dataset[:], wanted, rtol=0, atol=1e-4)
    writes = bucket.writes("bucket")
    assert {n for name, n in writes.items() if "_batch_" in name or "commits/" in name} == {1}
    used = tmp_path / "lib" / "arc-05b" / "source" / "inference" / "__pycache__"
    assert used.exists(), "what ran is what the archive holds"

    assert main(["logs", str(path)]) == 0
    assert "nothing is left to do for this slice" in capsys.readouterr().out
    assert main(["status", str(path)]) == 0
    assert "there is no slice" in capsys.readouterr().out
