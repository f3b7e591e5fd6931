"""The distributed command gives the simple command's rows, whatever the mesh."""

import json
import subprocess
import sys

import numpy as np
import pytest

from inference import distributed_inference_with_activations as distributed
from inference import simple_extraction_inference as simple
from tests.inference.whole_runs import (
    SMALL_BATCHES,
    arguments,
    assert_same,
    part_of,
    read_run,
    run_processes,
)
from tests.oracle import random_tokens


@pytest.mark.parametrize("mesh", ["8,1", "4,2", "2,4", "1,8"])
def test_every_mesh_gives_the_simple_commands_rows(
    mesh, run_checkpoint, run_tasks, reference, tmp_path
):
    flags = [*SMALL_BATCHES, "--mesh_shape", mesh]
    assert distributed.main(arguments(tmp_path, run_checkpoint, run_tasks, *flags)) == 0
    run = read_run(tmp_path)
    assert_same(run, reference)
    described = run[1]["run"]
    assert described["mesh"] == dict(zip(("data", "model"), map(int, mesh.split(",")), strict=True))
    (check,) = described["self_check"]
    assert check["rows"] == 4
    assert 0 < check["largest_error"] < 1e-4


@pytest.mark.parametrize("new_tokens", ["0", "1"])
def test_prefill_alone(new_tokens, run_checkpoint, run_tasks, tmp_path):
    flags = ["--max_new_tokens", new_tokens]
    for name, command in (("a", simple), ("b", distributed)):
        (tmp_path / name).mkdir()
        assert command.main(arguments(tmp_path / name, run_checkpoint, run_tasks, *flags)) == 0
    assert_same(read_run(tmp_path / "b"), read_run(tmp_path / "a"))


def test_sampled_texts_are_those_of_the_simple_command(run_checkpoint, run_tasks, tmp_path):
    flags = ["--temperature", "0.8", "--top_p", "0.9", "--random_seed", "5"]
    for name, command in (("a", simple), ("b", distributed)):
        (tmp_path / name).mkdir()
        assert command.main(arguments(tmp_path / name, run_checkpoint, run_tasks, *flags)) == 0
    assert_same(read_run(tmp_path / "b"), read_run(tmp_path / "a"))


def test_one_sample_and_only_skipped_samples(run_checkpoint, tmp_path):
    for name, lengths in (("one", [12]), ("none", [0, 2000])):
        folder = tmp_path / name
        folder.mkdir()
        tasks = [
            {"task_id": f"t{i}", "token_ids": random_tokens(n, 208)} for i, n in enumerate(lengths)
        ]
        (folder / "tasks.json").write_text(json.dumps(tasks))
        assert distributed.main(arguments(folder, run_checkpoint, folder / "tasks.json")) == 0
        lines, metadata, rows = read_run(folder)
        assert len(lines) == len(lengths)
        ran = sum(1 for n in lengths if 0 < n < 1000)
        assert metadata["complete"] is True
        assert metadata["total_sequences"] == ran
        assert bool(rows) == bool(ran)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mesh_shape", "3,2"], "needs 6 devices, there are 8; what fits: 8,1 4,2 2,4 1,8"),
        (["--mesh_shape", "0,8"], "what fits"),
        (["--mesh_shape", "8"], "must look like 8,8"),
        (["--mesh_shape", "a,b"], "must look like 8,8"),
        (["--attention", "splash"], "'splash' runs on TPU"),
        (["--attention", "cudnn", "--mesh_shape", "4,2"], "needs a model axis of 1"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--num_processes", "2"], "go together"),
        (["--coordinator_address", "x:1", "--num_processes", "2", "--process_id", "2"], "0 to 1"),
    ],
)
def test_meshes_and_processes_that_do_not_fit(
    flags, words, run_checkpoint, run_tasks, tmp_path, capsys
):
    assert distributed.main(arguments(tmp_path, run_checkpoint, run_tasks, *flags)) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_refused(run_checkpoint, run_tasks, tmp_path, capsys):
    (tmp_path / "act" / "_run" / "commits").mkdir(parents=True)
    (tmp_path / "act" / "_run" / "commits" / "000001.json").write_text("{}")
    assert distributed.main(arguments(tmp_path, run_checkpoint, run_tasks)) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(("processes", "mesh"), [(2, "4,1"), (4, "2,2"), (2, "1,4")])
def test_real_processes(processes, mesh, run_checkpoint, run_tasks, reference, tmp_path):
    """Two and four processes of their own units; and two that share every batch (1,4)."""
    short = [task for task in json.loads(run_tasks.read_text()) if len(task["token_ids"]) <= 40]
    (tmp_path / "tasks.json").write_text(json.dumps(short))
    devices = 4 // processes
    flags = [*SMALL_BATCHES, "--mesh_shape", mesh]
    command = arguments(tmp_path, run_checkpoint, tmp_path / "tasks.json", *flags)
    statuses, outputs = run_processes(processes, devices, command)
    assert statuses == [0] * processes, "\n".join(outputs)
    run = read_run(tmp_path)
    assert_same(run, part_of(reference, {task["task_id"] for task in short}))
    if processes == 4:  # each has some
        assert run[1]["run"]["processes"] == 4
        assert len({batch["batch_id"] for batch in run[1]["batches"]}) >= 4


def test_004s_own_mesh_on_64_devices(demo_checkpoint, demo_tasks, tmp_path):
    """14 and 2 heads on 8,8: the batch takes both axes, and the log says so."""
    tasks_file = tmp_path / "tasks.json"
    tasks_file.write_text(json.dumps(demo_tasks))
    flags = ["--model_path", str(demo_checkpoint), "--tasks_file", str(tasks_file),
             "--max_new_tokens", "3", "--predictions_per_task", "12"]  # fmt: skip
    places = {
        name: ["--output_dir", str(tmp_path / name / "out"),
               "--activations_dir", str(tmp_path / name / "act")]
        for name in ("a", "b")
    }  # fmt: skip
    assert simple.main([*flags, *places["a"]]) == 0
    mesh = ["--batch_size", "8", "--mesh_shape", "8,8", "--tokens_per_batch", "256"]
    (status,), (output,) = run_processes(1, 64, [*flags, *places["b"], *mesh])
    assert status == 0, output
    assert "64-way data parallel" in output
    assert_same(read_run(tmp_path / "b"), read_run(tmp_path / "a"))


def test_a_process_that_never_comes_is_named_and_ends_the_wait(run_checkpoint, run_tasks, tmp_path):
    command = [sys.executable, "-m", "inference.distributed_inference_with_activations",
               *arguments(tmp_path, run_checkpoint, run_tasks),
               "--coordinator_address", "127.0.0.1:1", "--num_processes", "2",
               "--process_id", "1", "--initialization_timeout", "5"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "waiting up to 5 s for 2 processes at 127.0.0.1:1" in done.stderr
    assert not (tmp_path / "act").exists()


def test_rows_do_not_depend_on_the_batch(run_checkpoint, run_tasks, reference, tmp_path):
    """One large batch a bucket instead of many small ones."""
    assert distributed.main(arguments(tmp_path, run_checkpoint, run_tasks)) == 0
    run = read_run(tmp_path)
    assert_same(run, reference)
    assert len({batch["batch_id"] for batch in run[1]["batches"]}) < 12
    assert all(np.isfinite(row[2]).all() for row in run[2].values())
