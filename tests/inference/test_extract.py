"""Runs from Python: written, verified, many under one folder."""

import json

import datasets
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from extraction.errors import StoreError
from inference import extract as extract_module
from inference.distributed_inference_with_activations import main
from inference.errors import InputError
from inference.extract import extract
from inference.language_model import load_model
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error, torch_rows

IDS = [random_tokens(n, seed=n) for n in (5, 30, 12)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(str(checkpoint))


@pytest.mark.parametrize(
    "data",
    [
        IDS,
        [np.array(ids) for ids in IDS],
        [torch.tensor(IDS[0]), jnp.array(IDS[1]), tuple(IDS[2])],
        datasets.Dataset.from_list([{"input_ids": ids} for ids in IDS]),
        ({"input_ids": [7, *ids], "attention_mask": [0] + [1] * len(ids)} for ids in IDS),
    ],
    ids=["lists", "numpy", "torch, jax, tuple", "datasets", "masks"],
)
def test_rows_are_torchs(model, checkpoint, tmp_path, data):
    run = extract(
        model, data, tmp_path, ["layer_1", "layers.*.mlp"], ["all"],
        format="safetensors", save_every_n_samples=20,
    )  # fmt: skip
    assert run.n_samples == len(IDS)
    assert run.n_rows == sum(map(len, IDS))
    assert run.n_batches == run.metadata["batches"][-1]["batch_id"] > 1
    assert run.folder == tmp_path / run.run_id
    rows, judge = run.open("layer_1"), load_torch(checkpoint)
    keys = rows.keys()
    for number, ids in enumerate(IDS):
        mine = keys.task_ids == f"inputs.jsonl/{number}"
        assert keys.token_id[mine].tolist() == ids
        assert row_error(rows[mine], torch_rows(judge, ids)[1][1]) < 1e-4
    assert [line["prompt_token_ids"] for line in run.outputs()] == IDS


def test_many_runs_in_one_folder_and_one_that_goes_on(model, tmp_path):
    first, second = (extract(model, IDS, tmp_path, ["layer_0"]) for _ in range(2))
    assert {path.name for path in tmp_path.iterdir()} == {first.run_id, second.run_id}
    again = extract(model, IDS, tmp_path, ["layer_0"], run_id=first.run_id)
    assert again.metadata["batches"] == first.metadata["batches"]
    identity = json.loads((first.activations_dir / "_run/run.json").read_text())
    assert identity["run_id"] == first.run_id


def test_a_file_and_settings_of_the_command(model, tmp_path):
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({"text": ids}) for ids in IDS))
    run = extract(
        model, str(tmp_path / "data.jsonl"), tmp_path / "store", "layer_0", ["all"],
        sample_limit=2, context_length=10, pack_length=20,
    )  # fmt: skip
    assert run.n_samples == 1 + 3
    assert run.n_rows == 35


def test_the_command_line_repeats_it(model, checkpoint, tmp_path):
    run = extract(model, IDS, tmp_path, ["layer_0"], ["all"])
    status = main(
        ["--model_path", str(checkpoint), "--dataset", str(run.folder / "inputs.jsonl"),
         "--hook_points", "layer_0", "--positions", "all", "--max_new_tokens", "0",
         "--activations_dir", str(tmp_path / "act"), "--output_dir", str(tmp_path / "out")]
    )  # fmt: skip
    assert status == 0
    again = json.loads((tmp_path / "act/metadata.json").read_text())
    assert again["batches"] == run.metadata["batches"]


def test_what_does_not_verify_is_not_returned(model, tmp_path, monkeypatch):
    def damaging(*args, **options):
        command(*args, **options)
        for file in tmp_path.glob("*/activations/*.pkl"):
            file.write_bytes(file.read_bytes()[:-40])

    command = extract_module.run
    monkeypatch.setattr(extract_module, "run", damaging)
    with pytest.raises(StoreError, match="damaged"):
        extract(model, IDS, tmp_path, ["layer_0"])


def test_what_is_wrong_is_told(model, tmp_path):
    with pytest.raises(InputError, match="cannot be written as JSON"):
        extract(model, [object()], tmp_path, ["layer_0"])
    with pytest.raises(InputError, match="a run_id is"):
        extract(model, IDS, tmp_path, ["layer_0"], run_id="../elsewhere")
    with pytest.raises(InputError, match="holds no document"):
        extract(model, [], tmp_path, ["layer_0"])
