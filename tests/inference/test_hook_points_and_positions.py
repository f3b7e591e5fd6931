"""Any hook point at any position, through both commands, against torch."""

import json
import pickle

import numpy as np
import pytest

from extraction.__main__ import main as extraction
from extraction.reading.dataset import ActivationDataset
from inference.distributed_inference_with_activations import main as distributed
from inference.outputs import NO_POSITION
from inference.simple_extraction_inference import main as simple
from qwen_hooks import Checkpoint
from qwen_hooks.hook_points import hook_widths
from tests.oracle import make_checkpoint, random_tokens, row_error
from tests.torch_values import load_eager, torch_values

SHAPE = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}
HOOKS = [
    *("embed_tokens", "blocks.{0,2}.hook_mlp_out", "layers.1.attention.q", "layer_3"),
    *("layers.1.attention.k_rotated", "layers.2.attention.z", "layers.3.mlp.neurons"),
    *("model.norm", "logits"),
]
NAMES = {
    *("embed_tokens", "layers.0.mlp", "layers.2.mlp", "layers.1.attention.q", "layer_3", "norm"),
    *("layers.1.attention.k_rotated", "layers.2.attention.z", "layers.3.mlp.neurons", "logits"),
}
LENGTHS = [5, 1, 17, 140]
NEW_TOKENS = 4
WANTED_TOKEN = 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), **SHAPE)


@pytest.fixture(scope="module")
def expected(checkpoint):
    """Of a sequence every hook point's rows, by torch; each sequence once."""
    model, config = load_eager(checkpoint), Checkpoint.open(checkpoint).config
    known = {}

    def values(tokens):
        if tuple(tokens) not in known:
            known[tuple(tokens)] = torch_values(model, config, list(tokens))
        return known[tuple(tokens)]

    return values


def run(main, folder, checkpoint, *flags):
    tasks = [
        {"task_id": f"t{i}", "token_ids": random_tokens(n, seed=i)} for i, n in enumerate(LENGTHS)
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    status = main(
        ["--model_path", str(checkpoint), "--tasks_file", str(folder / "tasks.json"),
         "--output_dir", str(folder / "out"), "--activations_dir", str(folder / "act"),
         "--hook_points", *HOOKS, "--max_new_tokens", str(NEW_TOKENS), *flags]
    )  # fmt: skip
    assert status == 0
    text = (folder / "out/outputs.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.split("\n") if line]
    rows = {}
    for file in (folder / "act").glob("*.pkl"):
        data = pickle.loads(file.read_bytes())
        hook = f"layer_{data['layer']}" if isinstance(data["layer"], int) else data["layer"]
        assert file.name.startswith(f"{hook}_batch_")
        for record in data["activations"]:
            key = hook, record["task_id"], record["position"]
            assert key not in rows
            rows[key] = record
    assert {hook for hook, *_ in rows} == NAMES
    return {line["task_id"]: line for line in lines}, rows


def check_rows(lines, rows, expected, chosen):
    """Every row that `chosen` wants of a sequence is there, and is torch's; no other is."""
    wanted = set()
    for task, line in lines.items():
        prompt, generated = line["prompt_token_ids"], line["generated_token_ids"]
        ran = [*prompt, *generated[:-1]]
        values = expected(ran)
        for position in chosen(ran, len(prompt)):
            for hook in NAMES:
                wanted.add((hook, task, position))
                record = rows[hook, task, position]
                assert record["token_id"] == ran[position]
                assert record["step"] == max(0, position - len(prompt) + 1)
                row = record["activation"][None]
                assert row_error(row, values[hook][position].reshape(1, -1)) < 1e-4
    assert set(rows) == wanted


def every(ran, prompt):
    return range(len(ran))


def some(ran, prompt):
    """What `SOME` chooses."""
    every_fourth = {n for n in range(len(ran)) if n % 4 == 0 or ran[n] == WANTED_TOKEN}
    return (every_fourth | {prompt + 1}) - {0}


SOME = ["every:4", f"tokens:{WANTED_TOKEN}", "generated:1:2", "not first"]


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (simple, []),
        (distributed, ["--mesh_shape", "8,1", "--tokens_per_batch", "256"]),
        (distributed, ["--mesh_shape", "2,4", "--batch_size", "2", "--scan_layers", "True"]),
    ],
    ids=["simple", "8,1", "2,4 scanned"],
)
@pytest.mark.parametrize(("positions", "chosen"), [(["all"], every), (SOME, some)])
def test_rows_are_torchs(tmp_path, checkpoint, expected, main, flags, positions, chosen):
    lines, rows = run(main, tmp_path, checkpoint, "--positions", *positions, *flags)
    assert list(lines) == [f"t{i}" for i in range(len(LENGTHS))]
    check_rows(lines, rows, expected, chosen)


@pytest.mark.parametrize("main", [simple, distributed])
def test_a_sample_without_a_chosen_token_says_so(tmp_path, checkpoint, expected, main):
    lines, rows = run(main, tmp_path, checkpoint, "--positions", "every:10", "not first")
    check_rows(lines, rows, expected, lambda ran, prompt: range(10, len(ran), 10))
    with_rows = {task for _, task, _ in rows}
    assert {task for task, line in lines.items() if "reason" not in line} == with_rows
    assert {line["reason"] for line in lines.values() if "reason" in line} == {NO_POSITION}
    assert 0 < len(with_rows) < len(LENGTHS)
    assert all(len(line["generated_token_ids"]) == NEW_TOKENS for line in lines.values())


def test_a_run_without_any_row_is_whole(tmp_path, checkpoint):
    (tmp_path / "tasks.json").write_text(json.dumps([{"task_id": "a", "token_ids": [1, 2, 3]}]))
    status = distributed(
        ["--model_path", str(checkpoint), "--tasks_file", str(tmp_path / "tasks.json"),
         "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"),
         "--positions", "tokens:9"]
    )  # fmt: skip
    assert status == 0
    assert NO_POSITION in (tmp_path / "out/outputs.jsonl").read_text()
    assert len(ActivationDataset(tmp_path / "act", 1)) == 0
    assert extraction(["verify", str(tmp_path / "act"), "--level", "3"]) == 0


def test_widths_of_the_reader_are_the_hook_points(tmp_path, checkpoint):
    run(simple, tmp_path, checkpoint)
    config = Checkpoint.open(checkpoint).config
    for hook, width in hook_widths(sorted(NAMES), config).items():
        assert ActivationDataset(tmp_path / "act", hook)[:].shape[1] == width


@pytest.mark.parametrize("main", [simple, distributed])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hook_points", "layers.1.attention.pattern"], "differ in width"),
        (["--hook_points", "layers.1.mpl"], "did you mean"),
        (["--positions", "lasst"], "none of last"),
        (["--positions", "substring:Paris"], "fast tokenizer"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, checkpoint, main, flags, words, capsys):
    (tmp_path / "tasks.json").write_text(json.dumps([{"task_id": "a", "token_ids": [1, 2, 3]}]))
    status = main(
        ["--model_path", str(checkpoint), "--tasks_file", str(tmp_path / "tasks.json"),
         "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"), *flags]
    )  # fmt: skip
    assert status == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "act").exists()


def test_the_show_flag_prints_the_chosen_tokens(tmp_path, demo_checkpoint, capsys):
    text = "Paris is in France. Paris, Texas, is not."
    (tmp_path / "tasks.json").write_text(json.dumps([{"task_id": "a", "prompt": text}]))
    status = simple(
        ["--model_path", str(demo_checkpoint), "--tasks_file", str(tmp_path / "tasks.json"),
         "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"),
         "--positions", "substring[first]:Paris", "--show_positions", "3"]
    )  # fmt: skip
    assert status == 0
    assert "⟦Paris⟧ is in France. Paris, Texas" in capsys.readouterr().out
    keys = ActivationDataset(tmp_path / "act", 1).keys()
    assert keys.position.tolist() == list(range(len(keys)))
    assert np.all(keys.step == 0)


def test_a_chats_output_line_says_in_which_message_a_text_was_found(
    tmp_path, demo_checkpoint, capsys
):
    """The default system prompt of the template speaks of an assistant too."""
    messages = [{"role": "user", "content": "An assistant?"}]
    task = {"task_id": "a", "messages": messages, "entity": "assistant"}
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    status = simple(
        ["--model_path", str(demo_checkpoint), "--tasks_file", str(tmp_path / "tasks.json"),
         "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"),
         "--positions", "entity[every,last]", "--show_positions", "1"]
    )  # fmt: skip
    assert status == 0
    (line,) = map(json.loads, (tmp_path / "out/outputs.jsonl").read_text().splitlines())
    found = line["found_in_messages"]
    assert [(each["message"], each["role"]) for each in found] == [
        (None, None),  # the system prompt
        (0, "user"),
        (None, None),  # the prompt for an answer
    ]
    positions = [position for each in found for position in each["positions"]]
    assert ActivationDataset(tmp_path / "act", 1).keys().position.tolist() == positions
    assert "'assistant' in message 0 (user)" in capsys.readouterr().out
