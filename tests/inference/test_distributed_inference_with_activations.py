"""The distributed command gives the simple command's rows, whatever the mesh."""

import json
import os
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest

from inference import distributed_inference_with_activations as distributed
from inference import simple_extraction_inference as simple
from tests.oracle import make_checkpoint, random_tokens, row_error

LAYERS = ("0", "2", "3")
LENGTHS = [1, 3, 16, 17, 20, 36, 40, 70, 66, 80, 75, 70, 140, 0, 1022, 5, 5, 5, 9, 15, 2, 39, 8]
NEW_TOKENS = 7
STOP = list(range(0, 208, 13))
SMALL_BATCHES = ["--batch_size", "3", "--tokens_per_batch", "128", "--save_every_n_samples", "20"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Eight query heads and two KV heads, so that model axes of 2, 4 and 8 divide."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, vocab_size=208, num_attention_heads=8, num_key_value_heads=2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": STOP}))
    return folder


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory):
    tasks = [
        {"task_id": f"t{i}", "token_ids": random_tokens(n, 208, seed=i)}
        for i, n in enumerate(LENGTHS)
    ]
    path = tmp_path_factory.mktemp("tasks") / "tasks.json"
    path.write_text(json.dumps(tasks))
    return path


def arguments(folder, checkpoint, tasks_file, *flags):
    return ["--model_path", str(checkpoint), "--tasks_file", str(tasks_file),
            "--output_dir", str(folder / "out"), "--activations_dir", str(folder / "act"),
            "--layers_to_extract", *LAYERS, "--max_new_tokens", str(NEW_TOKENS),
            *flags]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled_programs(tmp_path_factory):
    """The compilation cache, shared by these tests, not the user's own."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.getbasetemp().parent / "xla")
    yield
    del os.environ["JAX_COMPILATION_CACHE_DIR"]


def read_run(folder):
    """Output lines, metadata, and every row by layer and key."""
    text = (folder / "out" / "outputs.jsonl").read_text(encoding="utf-8")
    metadata = json.loads((folder / "act" / "metadata.json").read_text())
    rows = {}
    for batch in metadata["batches"]:
        data = pickle.loads((folder / "act" / batch["file"]).read_bytes())
        assert len(data["activations"]) == batch["n_samples"]
        for r in data["activations"]:
            key = (data["layer"], r["task_id"], r["sample_idx"], r["position"])
            assert key not in rows
            rows[key] = (r["step"], r["token_id"], r["activation"])
    assert len(rows) == metadata["total_samples"] * len(metadata["layers_extracted"])
    return [json.loads(line) for line in text.split("\n") if line], metadata, rows


def assert_same(run, reference):
    """Equal lines in equal order, and equal rows."""
    lines, metadata, rows = run
    wanted_lines, wanted_metadata, wanted_rows = reference
    assert lines == wanted_lines
    assert metadata["complete"] is True
    for key in ("layers_extracted", "hidden_dim", "total_samples", "total_sequences"):
        assert metadata[key] == wanted_metadata[key]
    assert rows.keys() == wanted_rows.keys()
    for key, (step, token, row) in rows.items():
        assert (step, token) == wanted_rows[key][:2]
        assert row_error(row[None], wanted_rows[key][2][None]) < 1e-5


@pytest.fixture(scope="module")
def reference(checkpoint, tasks_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("simple")
    assert simple.main(arguments(folder, checkpoint, tasks_file)) == 0
    lines, metadata, rows = read_run(folder)
    counts = {len(line["generated_token_ids"]) for line in lines}
    assert {line["finish_reason"] for line in lines} == {"stop", "length", "skipped"}
    assert {2, 5, NEW_TOKENS} < counts, "early and late stops are both needed"
    return lines, metadata, rows


@pytest.mark.parametrize("mesh", ["8,1", "4,2", "2,4", "1,8"])
def test_every_mesh_gives_the_simple_commands_rows(
    mesh, checkpoint, tasks_file, reference, tmp_path
):
    flags = [*SMALL_BATCHES, "--mesh_shape", mesh]
    assert distributed.main(arguments(tmp_path, checkpoint, tasks_file, *flags)) == 0
    run = read_run(tmp_path)
    assert_same(run, reference)
    described = run[1]["run"]
    assert described["mesh"] == dict(zip(("data", "model"), map(int, mesh.split(",")), strict=True))
    (check,) = described["self_check"]
    assert check["samples"] == 4
    assert 0 < check["largest_error"] < 1e-4


@pytest.mark.parametrize("new_tokens", ["0", "1"])
def test_prefill_alone(new_tokens, checkpoint, tasks_file, tmp_path):
    flags = ["--max_new_tokens", new_tokens]
    for name, command in (("a", simple), ("b", distributed)):
        (tmp_path / name).mkdir()
        assert command.main(arguments(tmp_path / name, checkpoint, tasks_file, *flags)) == 0
    assert_same(read_run(tmp_path / "b"), read_run(tmp_path / "a"))


def test_sampled_texts_are_those_of_the_simple_command(checkpoint, tasks_file, tmp_path):
    flags = ["--temperature", "0.8", "--top_p", "0.9", "--random_seed", "5"]
    for name, command in (("a", simple), ("b", distributed)):
        (tmp_path / name).mkdir()
        assert command.main(arguments(tmp_path / name, checkpoint, tasks_file, *flags)) == 0
    assert_same(read_run(tmp_path / "b"), read_run(tmp_path / "a"))


def test_one_sample_and_only_skipped_samples(checkpoint, tmp_path):
    for name, lengths in (("one", [12]), ("none", [0, 2000])):
        folder = tmp_path / name
        folder.mkdir()
        tasks = [
            {"task_id": f"t{i}", "token_ids": random_tokens(n, 208)} for i, n in enumerate(lengths)
        ]
        (folder / "tasks.json").write_text(json.dumps(tasks))
        assert distributed.main(arguments(folder, checkpoint, folder / "tasks.json")) == 0
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
    flags, words, checkpoint, tasks_file, tmp_path, capsys
):
    assert distributed.main(arguments(tmp_path, checkpoint, tasks_file, *flags)) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_refused(checkpoint, tasks_file, tmp_path, capsys):
    (tmp_path / "act" / "_run" / "commits").mkdir(parents=True)
    (tmp_path / "act" / "_run" / "commits" / "000001.json").write_text("{}")
    assert distributed.main(arguments(tmp_path, checkpoint, tasks_file)) == 2
    assert "already holds a run" in capsys.readouterr().err


def run_processes(count, devices, command, timeout=240):
    """Starts `count` processes of the command; their exit statuses and outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    module = "inference.distributed_inference_with_activations"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, *command]
            + (["--coordinator_address", f"127.0.0.1:{port}", "--num_processes", str(count),
                "--process_id", str(i)] if count > 1 else []),
            env=flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(count)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=timeout)[0] for process in started]
    return [process.returncode for process in started], outputs


@pytest.mark.parametrize(("processes", "mesh"), [(2, "4,1"), (4, "2,2"), (2, "1,4")])
def test_real_processes(processes, mesh, checkpoint, tasks_file, reference, tmp_path):
    """Two and four processes of their own units; and two that share every batch (1,4)."""
    devices = 4 // processes
    flags = [*SMALL_BATCHES, "--mesh_shape", mesh]
    command = arguments(tmp_path, checkpoint, tasks_file, *flags)
    statuses, outputs = run_processes(processes, devices, command)
    assert statuses == [0] * processes, "\n".join(outputs)
    assert_same(read_run(tmp_path), reference)


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


def test_a_process_that_never_comes_is_named_and_ends_the_wait(checkpoint, tasks_file, tmp_path):
    command = [sys.executable, "-m", "inference.distributed_inference_with_activations",
               *arguments(tmp_path, checkpoint, tasks_file),
               "--coordinator_address", "127.0.0.1:1", "--num_processes", "2",
               "--process_id", "1", "--initialization_timeout", "5"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "waiting up to 5 s for 2 processes at 127.0.0.1:1" in done.stderr
    assert not (tmp_path / "act").exists()


def test_rows_do_not_depend_on_the_batch(checkpoint, tasks_file, reference, tmp_path):
    """One large batch a bucket instead of many small ones."""
    assert distributed.main(arguments(tmp_path, checkpoint, tasks_file)) == 0
    run = read_run(tmp_path)
    assert_same(run, reference)
    assert len({batch["batch_id"] for batch in run[1]["batches"]}) < 12
    assert all(np.isfinite(row[2]).all() for row in run[2].values())
