"""Whole runs of the commands: how they are started, read back and compared."""

import json
import os
import pickle
import socket
import subprocess
import sys

from tests.oracle import row_error

LAYERS = ("0", "2", "3")
LENGTHS = [1, 3, 16, 17, 20, 36, 40, 70, 66, 80, 75, 70, 140, 0, 1022, 5, 5, 5, 9, 15, 2, 39, 8]
NEW_TOKENS = 7
STOP = list(range(0, 208, 13))
MODULE = "inference.distributed_inference_with_activations"
SMALL_BATCHES = ["--batch_size", "3", "--tokens_per_batch", "128", "--save_every_n_samples", "20"]


def arguments(folder, checkpoint, tasks_file, *flags):
    return ["--model_path", str(checkpoint), "--tasks_file", str(tasks_file),
            "--output_dir", str(folder / "out"), "--activations_dir", str(folder / "act"),
            "--layers_to_extract", *LAYERS, "--max_new_tokens", str(NEW_TOKENS),
            *flags]  # fmt: skip


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


def part_of(run, task_ids):
    """What `read_run` would give of a run of some of its tasks."""
    lines, metadata, rows = run
    rows = {key: row for key, row in rows.items() if key[1] in task_ids}
    total = len(rows) // len(metadata["layers_extracted"])
    counted = {"total_samples": total, "total_sequences": len({key[1:3] for key in rows})}
    lines = [line for line in lines if line["task_id"] in task_ids]
    return lines, metadata | counted, rows


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


def run_processes(count, devices, command, timeout=240, module=MODULE, killed=()):
    """Starts `count` processes of the command; their exit statuses and outputs.

    When a process of `killed` has ended, the others are killed too, as a cluster does.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, *command]
            + (["--coordinator_address", f"127.0.0.1:{port}", "--num_processes", str(count),
                "--process_id", str(i)] if count > 1 else []),
            env=flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(count)
    ]  # fmt: skip
    if killed:
        for i in killed:
            started[i].wait(timeout)
        for process in started:
            process.kill()
    outputs = [process.communicate(timeout=timeout)[0] for process in started]
    return [process.returncode for process in started], outputs
