"""Planned files and bytes against those of whole runs of the distributed command: to the byte."""

import json

import pytest

from inference import distributed_inference_with_activations as distributed
from launch import plan

SMALL = ["--batch_size", "2", "--save_every_n_samples", "4"]


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory, demo_tasks):
    """The demo's ARC tasks as they are, one of them under a name that is longer in UTF-8."""
    tasks = {f"{name} ü" if number == 2 else name: task
             for number, (name, task) in enumerate(demo_tasks.items())}  # fmt: skip
    path = tmp_path_factory.mktemp("tasks") / "tasks.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    """Token ids of many lengths, an empty prompt and one that is too long among them."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lengths = [1, 3, 16, 33, 40, 0, 40_000, 5, 5, 9, 15, 2, 39]
    tasks = [{"task_id": f"t{n}", "token_ids": [7 + n] * length, "label": "ä"}
             for n, length in enumerate(lengths)]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, tasks)), encoding="utf-8")
    return path


def plan_and_run(folder, checkpoint, tasks, *flags):
    """The plan's document, the folder of the run and its metadata."""
    arguments = ["--model_path", str(checkpoint), "--tasks_file", str(tasks),
                 "--output_dir", str(folder / "out"), "--activations_dir", str(folder / "act"),
                 "--self_check_rows", "0", *flags]  # fmt: skip
    assert plan.main([*arguments, "--json", str(folder / "plan.json")]) == 0
    assert not (folder / "act").exists()
    assert not (folder / "out").exists()
    assert distributed.main(arguments) == 0
    planned = json.loads((folder / "plan.json").read_text())
    return planned, folder / "act", json.loads((folder / "act" / "metadata.json").read_text())


def assert_planned(planned, activations, metadata):
    """Files and bytes of every hook point, rows and units are what was planned."""
    assert planned["exact"] is True
    found = {hook: 0 for hook in planned["bytes"]}
    files = [path for path in activations.iterdir() if "_batch_" in path.name]
    for path in files:
        found[path.name.partition("_batch_")[0]] += path.stat().st_size
    assert planned["bytes"] == found
    assert planned["activation_bytes"] == sum(found.values()) > 0
    assert planned["activation_files"] == len(files)
    assert planned["rows"] == metadata["total_samples"]
    assert planned["sequences"] == metadata["total_sequences"]
    for folder in ("commits", "outputs"):
        assert planned["units"] == len(list((activations / "_run" / folder).iterdir()))


@pytest.mark.parametrize("file_format", ["pickle", "safetensors"])
def test_the_demo_in_every_format(file_format, demo_checkpoint, tasks_file, tmp_path):
    flags = ["--format", file_format, "--predictions_per_task", "2", *SMALL]
    run = plan_and_run(tmp_path, demo_checkpoint, tasks_file, *flags)
    assert_planned(*run)
    assert run[0]["units"] > 2


@pytest.mark.parametrize(
    "flags",
    [
        ["--format", "safetensors", "--store_dtype", "bfloat16"],
        ["--format", "safetensors", "--dtype", "bfloat16", "--save_every_n_samples", "30"],
        ["--positions", "every:3", "--hook_points", "layers.*.mlp.neurons", "layers.2.attention.q"],
        ["--positions", "tokens:11", "--format", "safetensors"],
        ["--pack_length", "48", "--positions", "all", "--max_new_tokens", "0"],
    ],
    ids=["bfloat16", "computed-bfloat16", "widths", "few-rows", "packed"],
)
def test_prompts_of_many_lengths(flags, demo_checkpoint, prompts_file, tmp_path):
    run = plan_and_run(tmp_path, demo_checkpoint, prompts_file, *SMALL[:2], *flags)
    assert_planned(*run)
    assert run[0]["skipped"] == 2


def test_output_lines_are_exact_where_nothing_is_generated(demo_checkpoint, prompts_file, tmp_path):
    planned, _, _ = plan_and_run(
        tmp_path, demo_checkpoint, prompts_file, "--max_new_tokens", "0", "--positions", "tokens:9"
    )
    assert planned["outputs_exact"] is True
    assert planned["output_bytes"] == (tmp_path / "out" / "outputs.jsonl").stat().st_size


def test_what_is_generated_is_bounded(demo_checkpoint, tasks_file, tmp_path):
    planned, activations, metadata = plan_and_run(
        tmp_path, demo_checkpoint, tasks_file, "--max_new_tokens", "5", "--save_every_n_samples",
        "11",
    )  # fmt: skip
    assert (planned["exact"], planned["outputs_exact"]) == (False, False)
    assert planned["rows"] == 5 * 6 >= metadata["total_samples"] > 6
    size = sum(path.stat().st_size for path in activations.glob("*_batch_*"))
    assert planned["activation_bytes"] >= size > 0.2 * planned["activation_bytes"]
    assert planned["output_bytes"] < (tmp_path / "out" / "outputs.jsonl").stat().st_size
