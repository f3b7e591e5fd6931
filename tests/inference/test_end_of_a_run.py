"""What a run says and leaves at its end: numbers, marks, next commands, exit statuses."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import extraction
import inference
import launch
from extraction.__main__ import main as extraction_main
from extraction.maintenance.verify import verify
from extraction.run.statistics import RowStatistics
from extraction.storage import open_storage
from inference import distributed_inference_with_activations as distributed
from inference import simple_extraction_inference as simple
from inference.engine.compilation import CompileTime
from inference.engine.self_check import SelfCheck
from inference.errors import SelfCheckError
from inference.run_summary import norms_text
from tests.oracle import random_tokens

LENGTHS = (5, 3, 9)
NEW_TOKENS = 3


def flags(folder, checkpoint, *more, ids="abc"):
    """Of a run of three prompts of known lengths, and one that is skipped."""
    tasks = folder / f"tasks-{ids}.json"
    tasks.parent.mkdir(exist_ok=True)
    prompts = [random_tokens(n, 208, seed=n) for n in LENGTHS]
    entries = [{"task_id": i, "token_ids": p} for i, p in zip(ids, prompts, strict=True)]
    tasks.write_text(json.dumps([*entries, {"task_id": ids + "none", "token_ids": []}]))
    return ["--model_path", str(checkpoint), "--tasks_file", str(tasks),
            "--output_dir", str(folder / "out"), "--activations_dir", str(folder / "act"),
            "--layers_to_extract", "0", "2", "--max_new_tokens", str(NEW_TOKENS),
            *more]  # fmt: skip


def labelled(out):
    """The lines of a summary by their label."""
    lines = [line for line in out.splitlines() if line[:14].strip()]
    return {line[:14].strip(): line[14:] for line in lines}


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", text)]


@pytest.mark.parametrize("command", [simple, distributed])
def test_the_summary_counts_what_is_there(command, run_checkpoint, tmp_path, capsys):
    assert command.main(flags(tmp_path, run_checkpoint)) == 0
    out = capsys.readouterr().out
    text = (tmp_path / "out" / "outputs.jsonl").read_text("utf-8")
    outputs = [json.loads(line) for line in text.splitlines()]
    generated = sum(len(line["generated_token_ids"]) for line in outputs)
    metadata = json.loads((tmp_path / "act" / "metadata.json").read_text())
    rows = metadata["total_samples"]
    assert rows == generated  # a row for each step
    found = labelled(out)
    assert out.splitlines()[0].startswith("warning")
    assert numbers(found["warning"])[:2] == [1, 4]
    assert numbers(found["ran now"]) == [3, sum(LENGTHS), generated, rows]
    seconds, loading, compiling, running = numbers(found["time"])
    assert seconds == pytest.approx(loading + compiling + running, abs=0.2)
    assert numbers(found["in the run"])[:4] == [4, 3, rows, 2]
    samples_each = numbers(found["throughput"])[0]
    # Seconds are shown with one decimal.
    assert samples_each >= 0.9 * 3 / (running + 0.06)
    assert running <= 0.05 or samples_each <= 1.1 * 3 / (running - 0.05)
    last = out.splitlines()[-2:]
    assert [line.split()[-2:] for line in last] == [
        ["verify", str(tmp_path / "act")],
        ["inspect", str(tmp_path / "act")],
    ]
    for line in last:  # they are commands that work
        words = line.removeprefix("next").split()
        assert words[:3] == ["python", "-m", "extraction"]
        assert extraction_main(words[3:]) == 0

    capsys.readouterr()
    assert command.main(flags(tmp_path, run_checkpoint, "--resume", "True")) == 0
    assert "nothing to do: complete" in capsys.readouterr().out.splitlines()


def test_compiling_is_measured_and_nested_functions_count_once():
    @jax.jit
    def inner(x):
        return jnp.sin(x) * 3

    @jax.jit
    def outer(x):
        return inner(x) + inner(x * 2)

    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: events.append((event, duration_secs))
    )
    with CompileTime() as compiling:
        outer(np.ones(7, np.float32)).block_until_ready()
        once = compiling.seconds
        outer(np.ones(7, np.float32)).block_until_ready()
        assert compiling.seconds == once
    durations = [seconds for event, seconds in events if event.startswith("/jax/core/compile/")]
    assert 0 < once <= sum(durations)
    assert once >= max(durations)
    outer(np.ones(9, np.float32)).block_until_ready()
    assert compiling.seconds == once


@pytest.fixture
def disagrees(monkeypatch):
    """The first sample that the self-check looks at is wrong."""

    def check(*arguments, **named):
        raise SelfCheckError("rows of task 'c' differ by 0.5")

    monkeypatch.setattr(SelfCheck, "check", check)


def test_a_failed_self_check_ends_with_5_and_marks_what_it_keeps(
    disagrees, run_checkpoint, tmp_path, capsys, monkeypatch
):
    assert distributed.main(flags(tmp_path, run_checkpoint)) == 5
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("error: ") and "'c'" in line] == told
    run = open_storage(tmp_path / "act")
    metadata = json.loads(run.get("metadata.json"))
    assert metadata["run"]["self_check"][0]["failed"] == "rows of task 'c' differ by 0.5"
    assert metadata["total_samples"] > 0  # they are kept
    assert verify(run).verdict == "damaged"
    monkeypatch.undo()
    assert distributed.main(flags(tmp_path, run_checkpoint, "--resume", "True")) == 5
    assert verify(run).verdict == "damaged"  # a later attempt does not wash it off


def test_runs_of_both_commands_can_be_merged(run_checkpoint, tmp_path):
    assert simple.main(flags(tmp_path / "1", run_checkpoint)) == 0
    assert distributed.main(flags(tmp_path / "2", run_checkpoint, ids="def")) == 0
    out = tmp_path / "out"
    assert extraction_main(["merge", str(out), *(str(tmp_path / n / "act") for n in "12")]) == 0
    assert verify(open_storage(out), 3).verdict == "good"


def test_a_run_records_the_version_of_the_program(run_checkpoint, tmp_path):
    assert extraction.__version__ == inference.__version__ == launch.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", extraction.__version__)
    assert simple.main(flags(tmp_path, run_checkpoint)) == 0
    for name in ("_run/run.json", "metadata.json"):
        document = json.loads((tmp_path / "act" / name).read_text())
        assert document["run"]["program_version"] == extraction.__version__
    config = extraction.ActivationExtractionConfig(
        output_dir=tmp_path / "own", layers_to_extract=[1], hidden_dim=4, model_name="m"
    )
    with extraction.ActivationExtractor(config) as extractor:
        extractor.extract_layer_activation(1, np.ones(4, np.float32), "t", 0, step=0, position=0,
                                           token_id=1)  # fmt: skip
    document = json.loads((tmp_path / "own" / "metadata.json").read_text())
    assert document["run"]["program_version"] == extraction.__version__


def test_the_summary_tells_of_norms(run_checkpoint, tmp_path, capsys):
    assert distributed.main(flags(tmp_path, run_checkpoint)) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("norms"))
    for hook, line in zip(("layer_0", "layer_2"), lines[start : start + 2], strict=True):
        rows = extraction.ActivationDataset(tmp_path / "act", hook)[:].astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        assert f"{hook}: median" in line
        found = numbers(line.partition(":")[2].partition(";")[0])
        assert found[0] == pytest.approx(np.sort(norms)[(len(norms) - 1) // 2], rel=0.046)
        assert found[1] == pytest.approx(norms.mean(), rel=1e-3)
        assert line.endswith("no row above 10 times the median")


def test_norms_far_above_the_median_are_told():
    rows = np.ones((200, 4))
    rows[:10] = 100
    block = extraction.RowBlock.of({"layer_0": rows}, ["t"] * 200, position=np.arange(200) % 40)
    text = norms_text(RowStatistics.of(rows, keys=block))
    assert numbers(text) == pytest.approx([2.089, 11.9, 10, 200, 10, 1, 0, 2])
    without_keys = norms_text(RowStatistics.of(rows))
    assert numbers(without_keys) == pytest.approx([2.089, 10, 200, 10])
