"""`python -m launch local`: several processes as one run, one of which is killed in the middle."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from extraction.maintenance.verify import verify
from extraction.reading.dataset import ActivationDataset
from extraction.storage import open_storage
from launch.__main__ import main
from tests.extraction.written_runs import write_run

PACE = """
import sys, time
from extraction.writing.committer import Committer
commit = Committer.commit
def slow(self, *arguments, **named):
    time.sleep(0.4)
    return commit(self, *arguments, **named)
Committer.commit = slow
from inference.distributed_inference_with_activations import main
raise SystemExit(main(sys.argv[1:]))
"""
"""The distributed command with slow commits, so that there is a middle of it."""


@pytest.fixture
def local_settings(write_settings, tiny_model, tiny_tasks, tmp_path):
    def write(**limits):
        extraction = {
            "model_path": str(tiny_model), "tasks_file": str(tiny_tasks), "gcs_bucket": None,
            "layers_to_extract": [0, 1], "save_every_n_samples": 2, "self_check_rows": 1,
            "output_dir": str(tmp_path / "out"), "activations_dir": str(tmp_path / "act"),
        }  # fmt: skip
        return write_settings(without=["machine"], extraction=extraction, limits=limits)

    return write


@pytest.fixture
def slowly(monkeypatch, tmp_path):
    """The processes take their time for each commit."""
    (tmp_path / "paced").mkdir()
    (tmp_path / "paced" / "paced_command.py").write_text(PACE)
    path = f"{tmp_path / 'paced'}{os.pathsep}{os.environ['PYTHONPATH']}"
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr("launch.local.MODULE", "paced_command")


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def commits(folder):
    return len(list((folder / "act" / "_run" / "commits").glob("0*.json")))


def test_one_of_four_is_killed_in_the_middle(
    local_settings, slowly, tiny_tasks, finished_run, tmp_path, capfd
):
    lines = []

    def kill_one():
        wait_for(lambda: 2 <= commits(tmp_path) < 15)
        lines.append(capfd.readouterr().out)
        os.kill(int(re.findall(r"process 2 is (\d+)", lines[0])[-1]), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    status = main(["local", str(local_settings(restarts=1)), "--processes", "4"])
    killer.join()
    out = lines[0] + capfd.readouterr().out
    assert status == 0, out
    assert "process 2 ended with 137; stopping the others" in out
    assert "all start again and resume" in out
    assert "verdict: good" in out

    report = verify(open_storage(str(tmp_path / "act")), 3)
    assert report.verdict == "good", list(report.lines())
    for layer in (0, 1):
        dataset = ActivationDataset(tmp_path / "act", layer=layer)
        assert sorted(dataset.keys().task_ids) == sorted(f"t{i}" for i in range(40))
    reference = ActivationDataset(finished_run, layer=1)
    order = {name: i for i, name in enumerate(reference.keys().task_ids)}
    wanted = reference[:][[order[name] for name in dataset.keys().task_ids]]
    np.testing.assert_allclose(dataset[:], wanted, rtol=0, atol=1e-4)
    logs = [(tmp_path / "out" / "logs" / f"process-{i}.log").read_text() for i in range(4)]
    assert all(f"process {i} of 4" in log for i, log in enumerate(logs))


def test_sigterm_goes_to_all(write_settings, tmp_path):
    """Each is told once: a second SIGTERM would end the distributed command at once."""
    (tmp_path / "waits.py").write_text(
        "import pathlib, signal, sys, time\n"
        "mine = pathlib.Path(sys.argv[-1].replace('=', '_'))\n"
        "signal.signal(signal.SIGTERM, lambda *_: mine.open('a').write('x') and sys.exit(143))\n"
        "mine.touch()\n"
        "time.sleep(60)\n"
    )
    extraction = {"output_dir": str(tmp_path / "out")}
    command = [sys.executable, "-c",
               "import launch.local; launch.local.MODULE = 'waits';"
               " from launch.__main__ import main; raise SystemExit(main())",
               "local", str(write_settings(extraction=extraction)), "--processes", "2"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        wait_for(lambda: len(list(tmp_path.glob("--process_id_*"))) == 2)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143, out
    assert error.startswith("stopped")
    assert error.count("\n") == 1
    assert [path.read_text() for path in tmp_path.glob("--process_id_*")] == ["x", "x"]
    pids = re.findall(r"is (\d+)", out)
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_bad_input_is_not_tried_again(write_settings, tmp_path, capsys, monkeypatch):
    (tmp_path / "refuses.py").write_text("print('error: no such file')\nraise SystemExit(2)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("launch.local.MODULE", "refuses")
    path = write_settings(extraction={"output_dir": str(tmp_path / "out")})
    assert main(["local", str(path), "--processes", "1"]) == 2
    out = capsys.readouterr().out
    assert "process 0 ended with 2" in out
    assert "start again" not in out
    assert "error: " in (tmp_path / "out" / "logs" / "process-0.log").read_text()


def test_it_tells_how_much_is_committed(write_settings, tmp_path, capsys, monkeypatch):
    (tmp_path / "takes_time.py").write_text("import time; time.sleep(1)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("launch.local.MODULE", "takes_time")
    monkeypatch.setattr("launch.local.LOOK", 0.0)
    monkeypatch.setattr("extraction.progress.FIRST_SECONDS", 0.0)
    write_run(tmp_path / "act", planned=4)
    extraction = {"output_dir": str(tmp_path / "out"), "activations_dir": str(tmp_path / "act"),
                  "gcs_bucket": None}  # fmt: skip
    path = write_settings(without=["machine"], extraction=extraction)
    assert main(["local", str(path), "--processes", "1"]) == 4
    assert "units committed: 3 of 4" in capsys.readouterr().err


def test_restarts_are_limited(write_settings, tmp_path, capsys, monkeypatch):
    (tmp_path / "dies.py").write_text("raise SystemExit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("launch.local.MODULE", "dies")
    extraction = {"output_dir": str(tmp_path / "out")}
    path = write_settings(extraction=extraction, limits={"restarts": 2})
    assert main(["local", str(path), "--processes", "2"]) == 7
    out = capsys.readouterr().out
    assert out.count("ended with 7") == 3
    assert "restarted 2 times, as often as allowed" in out


def test_dry_run_shows_what_would_run(local_settings, capsys, tmp_path):
    assert main(["local", str(local_settings()), "--processes", "3", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert out.count("--num_processes=3") == 3
    assert "--process_id=2" in out
    assert not (tmp_path / "out").exists()
