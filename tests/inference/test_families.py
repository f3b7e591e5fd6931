"""Every family through both commands and `capture`: torch's texts, torch's row of every token."""

import json

import numpy as np
import pytest
import torch

from inference import distributed_inference_with_activations as distributed
from inference import simple_extraction_inference as simple
from inference.captures import capture
from inference.engine.language_model import load_model
from qwen_hooks import Checkpoint, load_params, save_pretrained
from tests.families import FAMILIES
from tests.inference.whole_runs import read_run
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error, torch_rows

NEW_TOKENS, LAYERS = 6, (1, 3)
PROMPTS = [random_tokens(n, seed=n) for n in (1, 5, 17, 40, 40, 66)]
NAMES = [name for name, shape in FAMILIES.items() if shape]
COMMANDS = {
    "simple": (simple, []),
    "mesh 8,1": (distributed, ["--mesh_shape", "8,1"]),
    "mesh 4,2": (distributed, ["--mesh_shape", "4,2"]),
    "scanned": (distributed, ["--mesh_shape", "8,1", "--scan_layers", "True"]),
    "packed": (distributed, ["--mesh_shape", "8,1", "--pack_length", "80"]),
}


@pytest.fixture(scope="module", params=NAMES)
def family(request, tmp_path_factory):
    """Checkpoint, tasks file, and torch's texts and rows of every prompt."""
    folder = tmp_path_factory.mktemp("family")
    checkpoint = make_checkpoint(folder / "checkpoint", **FAMILIES[request.param])
    tasks = [{"task_id": str(i), "token_ids": ids} for i, ids in enumerate(PROMPTS)]
    (folder / "tasks.json").write_text(json.dumps(tasks))
    model = load_torch(checkpoint)
    texts, rows = [], []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
            max_new_tokens=NEW_TOKENS, eos_token_id=None,
        )[0].tolist()  # fmt: skip
        texts.append(output[len(prompt) :])
        rows.append(torch_rows(model, output)[1])
    return folder, texts, rows


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_give_torchs_texts_and_rows(name, family, tmp_path):
    folder, texts, theirs = family
    command, flags = COMMANDS[name]
    new_tokens = 0 if name == "packed" else NEW_TOKENS
    status = command.main(
        ["--model_path", str(folder / "checkpoint"), "--tasks_file", str(folder / "tasks.json"),
         "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"),
         "--layers_to_extract", *map(str, LAYERS), "--positions", "all",
         "--max_new_tokens", str(new_tokens), *flags]
    )  # fmt: skip
    assert status == 0
    lines, _, rows = read_run(tmp_path)
    assert [line["generated_token_ids"] for line in lines] == [t[:new_tokens] for t in texts]
    tokens = sum(len(prompt) + max(1, new_tokens) - 1 for prompt in PROMPTS)
    assert len(rows) == tokens * len(LAYERS)
    errors = [
        row_error(row, theirs[int(task)][layer, position])
        for (layer, task, _, position), (_, _, row) in rows.items()
    ]
    assert max(errors) < 1e-4


def test_capture_gives_torchs_rows(family):
    folder, _, theirs = family
    model = load_model(str(folder / "checkpoint"))
    captured = capture(model, PROMPTS, ["layer_3"], positions=["all"])
    wanted = [theirs[i][3, : len(ids)] for i, ids in enumerate(PROMPTS)]
    assert row_error(captured["layer_3"], np.concatenate(wanted)) < 1e-4


def test_saved_weights_are_read_by_torch(family, tmp_path):
    checkpoint = Checkpoint.open(family[0] / "checkpoint")
    save_pretrained(tmp_path, checkpoint.config, load_params(checkpoint))
    assert Checkpoint.open(tmp_path).config == checkpoint.config
    before, after = load_torch(checkpoint.folder), load_torch(tmp_path)
    assert type(before) is type(after)
    tensors = dict(before.named_parameters())
    for name, tensor in after.named_parameters():
        assert torch.equal(tensor, tensors.pop(name))
    assert not tensors
    ids = random_tokens(30)
    for mine, theirs in zip(torch_rows(after, ids), torch_rows(before, ids), strict=True):
        assert np.array_equal(mine, theirs)
