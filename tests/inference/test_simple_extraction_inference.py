"""The simple command against torch `generate`, from a tasks file to the files on disk."""

import json
import pickle
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from inference.engine.simple_run import prefill
from inference.simple_extraction_inference import main
from qwen_hooks import Checkpoint, create_model_with_hooks
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error, torch_rows

LAYERS = (0, 2, 3)
PROMPTS = [random_tokens((1, 17, 40, 70, 136)[i % 5], seed=i) for i in range(20)]
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def torch_model(checkpoint):
    return load_torch(checkpoint)


def read_lines(folder):
    """The lines of a run's outputs.jsonl."""
    text = (folder / "out" / "outputs.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def torch_generate(model, prompt, stop):
    """Plain greedy decoding; the generated tokens alone."""
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=stop or None, pad_token_id=0
    )
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
    return output[0, len(prompt) :].tolist()


def run(folder, checkpoint, tasks, *flags):
    """Runs the command on a list of tasks; its output lines and its rows by sample and layer."""
    tasks_file = folder / "tasks.json"
    tasks_file.write_text(json.dumps(tasks))
    status = main(
        ["--model_path", str(checkpoint), "--tasks_file", str(tasks_file),
         "--output_dir", str(folder / "out"), "--activations_dir", str(folder / "act"),
         "--layers_to_extract", *map(str, LAYERS), *flags]
    )  # fmt: skip
    assert status == 0
    lines = read_lines(folder)
    rows = {layer: defaultdict(list) for layer in LAYERS}
    for file in sorted((folder / "act").glob("*.pkl")):
        data = pickle.loads(file.read_bytes())
        for record in data["activations"]:
            rows[data["layer"]][record["task_id"]].append(record)
    return lines, rows


@pytest.fixture(scope="module")
def stop_tokens(torch_model):
    """Two tokens that end some of the generations early and others not."""
    free = [torch_generate(torch_model, prompt, []) for prompt in PROMPTS]
    return [free[0][9], free[5][20]]


@pytest.fixture(scope="module")
def greedy_run(checkpoint, stop_tokens, tmp_path_factory):
    generation = checkpoint / "generation_config.json"
    settings = {"eos_token_id": stop_tokens, "repetition_penalty": 1.9, "do_sample": True}
    generation.write_text(json.dumps(settings))
    tasks = [{"task_id": f"t{i}", "token_ids": p, "label": i} for i, p in enumerate(PROMPTS)]
    folder = tmp_path_factory.mktemp("greedy")
    flags = ["--max_new_tokens", str(NEW_TOKENS), "--save_every_n_samples", "100"]
    return run(folder, checkpoint, tasks, *flags)


def test_tokens_equal_torch_generate_stop_tokens_included(greedy_run, torch_model, stop_tokens):
    lines, _ = greedy_run
    reasons = set()
    for i, (line, prompt) in enumerate(zip(lines, PROMPTS, strict=True)):
        wanted = torch_generate(torch_model, prompt, stop_tokens)
        assert (line["task_id"], line["sample_idx"], line["label"]) == (f"t{i}", 0, i)
        assert line["prompt_token_ids"] == prompt
        assert line["generated_token_ids"] == wanted
        assert line["finish_reason"] == ("stop" if wanted[-1] in stop_tokens else "length")
        reasons.add(line["finish_reason"])
    assert reasons == {"stop", "length"}


def test_every_row_is_torchs_at_its_position(greedy_run, torch_model):
    lines, rows = greedy_run
    for line in lines:
        sequence = line["prompt_token_ids"] + line["generated_token_ids"]
        _, layers = torch_rows(torch_model, sequence)
        for layer in LAYERS:
            records = rows[layer][line["task_id"]]
            steps = len(line["generated_token_ids"])
            assert [r["step"] for r in records] == list(range(steps))
            start = len(line["prompt_token_ids"]) - 1
            assert [r["position"] for r in records] == list(range(start, start + steps))
            assert [r["token_id"] for r in records] == sequence[start : start + steps]
            ours = np.stack([r["activation"] for r in records])
            assert ours.dtype == np.float32
            assert row_error(ours, layers[layer, start : start + steps]) < 1e-5


@pytest.mark.parametrize("new_tokens", [0, 1])
def test_one_row_a_prompt(new_tokens, checkpoint, torch_model, tmp_path):
    tasks = [{"task_id": str(i), "token_ids": p} for i, p in enumerate(PROMPTS[:4])]
    lines, rows = run(tmp_path, checkpoint, tasks, "--max_new_tokens", str(new_tokens))
    for line in lines:
        prompt = line["prompt_token_ids"]
        assert len(line["generated_token_ids"]) == new_tokens
        assert line["finish_reason"] == "length"
        _, layers = torch_rows(torch_model, prompt)
        for layer in LAYERS:
            (record,) = rows[layer][line["task_id"]]
            assert record["position"] == len(prompt) - 1
            assert row_error(record["activation"][None], layers[layer, -1:]) < 1e-5


def test_what_does_not_fit_is_skipped_with_a_line(checkpoint, tmp_path):
    tasks = [
        {"task_id": "fits", "token_ids": random_tokens(1021)},
        {"task_id": "too long", "token_ids": random_tokens(1022)},
        {"task_id": "empty", "token_ids": []},
    ]
    lines, rows = run(tmp_path, checkpoint, tasks, "--max_new_tokens", "4")
    reasons = {line["task_id"]: (line["finish_reason"], line.get("reason", "")) for line in lines}
    assert reasons["fits"] == ("length", "")
    assert reasons["too long"][0] == reasons["empty"][0] == "skipped"
    assert "1022 prompt tokens with --max_new_tokens 4" in reasons["too long"][1]
    assert "context of 1025, the model has 1024" in reasons["too long"][1]
    assert "empty" in reasons["empty"][1]
    assert set(rows[0]) == {"fits"}


def test_sampling_is_repeatable_and_follows_the_seed(checkpoint, tmp_path):
    tasks = [{"task_id": str(i), "token_ids": p} for i, p in enumerate(PROMPTS[:3])]
    flags = ["--max_new_tokens", "8", "--temperature", "1.5", "--top_p", "0.9"]
    texts = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        lines, _ = run(tmp_path / name, checkpoint, tasks, *flags, "--random_seed", seed)
        texts.append([line["generated_token_ids"] for line in lines])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_arc_tasks_end_in_a_submission(demo_checkpoint, demo_tasks, tmp_path, capsys):
    status = run_arc(tmp_path, demo_checkpoint, demo_tasks, "--max_new_tokens", "6")
    assert status == 0
    lines = read_lines(tmp_path)
    assert [line["sample_idx"] for line in lines] == [0, 1] * len(demo_tasks)
    submission = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert list(submission) == list(demo_tasks)
    for answers in submission.values():
        assert [set(answer) for answer in answers] == [{"attempt_1", "attempt_2"}]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("score")
    assert f" of {len(demo_tasks)} " in last


def test_no_submission_without_generation(demo_checkpoint, demo_tasks, tmp_path):
    assert run_arc(tmp_path, demo_checkpoint, demo_tasks) == 0
    assert not (tmp_path / "out" / "submission.json").exists()


def run_arc(folder, checkpoint, tasks, *flags):
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return main(
        ["--model_path", str(checkpoint), "--tasks_file", str(folder / "tasks.json"),
         "--output_dir", str(folder / "out"), "--activations_dir", str(folder / "act"),
         "--predictions_per_task", "2", *flags]
    )  # fmt: skip


def test_metadata_is_true_to_the_files(greedy_run, checkpoint, tmp_path):
    tasks = [{"task_id": str(i), "token_ids": p} for i, p in enumerate(PROMPTS[:5])]
    run(tmp_path, checkpoint, tasks, "--max_new_tokens", "3", "--save_every_n_samples", "4")
    metadata = json.loads((tmp_path / "act" / "metadata.json").read_text())
    assert metadata["model_name"] == str(checkpoint)
    assert metadata["layers_extracted"] == list(LAYERS)
    assert metadata["hidden_dim"] == 48
    assert metadata["complete"] is True
    files = {path.name for path in (tmp_path / "act").glob("*.pkl")}
    assert {batch["file"] for batch in metadata["batches"]} == files
    rows = 0
    for batch in metadata["batches"]:
        data = pickle.loads((tmp_path / "act" / batch["file"]).read_bytes())
        assert f"layer_{data['layer']}" == batch["layer"]
        assert len(data["activations"]) == batch["n_samples"]
        rows += batch["n_samples"] if batch["layer"] == "layer_0" else 0
    assert metadata["total_samples"] == rows
    assert metadata["total_sequences"] == 5
    assert metadata["run"]["settings"]["max_new_tokens"] == 3


def test_nothing_is_computed_that_nobody_reads(demo_checkpoint):
    """No logits but the last token's, none at all unless asked for, no block above the deepest."""
    checkpoint = Checkpoint.open(demo_checkpoint)
    model = create_model_with_hooks(checkpoint.config, [1])
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    ids = jnp.zeros((1, 40), jnp.int32)

    def program(predict):
        lowered = prefill.lower(
            model, params, ids, 40, jnp.array([[39]]), predict=predict, capacity=None
        )
        return lowered.as_text(), lowered.compile().cost_analysis()["flops"]

    with_token, flops = program(predict=True)
    without, fewer_flops = program(predict=False)
    assert "tensor<1x1x512xf32>" in with_token or "tensor<1x512xf32>" in with_token
    assert "40x512xf32" not in with_token
    assert "tensor<1x512xf32>" not in without
    assert fewer_flops < 0.6 * flops  # two of four blocks
