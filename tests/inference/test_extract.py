"""Runs from Python: written, verified, many under one folder."""

import datetime
import json
import shutil

import datasets
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from extraction.errors import StoreError
from inference import extractions as extract_module
from inference.distributed_inference_with_activations import main
from inference.engine.language_model import load_model
from inference.errors import InputError
from inference.extractions import extract
from qwen_hooks import ModelError
from tests.extraction.bucket_environment import bucket, collected
from tests.fake_gcs.fixture import fake_gcs
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error, torch_rows

__all__ = ["bucket", "collected", "fake_gcs"]

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
    identity = json.loads((first.folder / "activations/_run/run.json").read_text())
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


def test_into_a_bucket(model, tmp_path, bucket):
    run = extract(model, IDS, tmp_path, "layer_0", "all", gcs_bucket="gs://bucket/run")
    assert run.address == "gs://bucket/run"
    assert len(run.open("layer_0")) == run.n_rows == sum(map(len, IDS))


def test_columns_that_nobody_reads_do_not_matter(model, tmp_path):
    records = [{"text": IDS[0], "when": datetime.datetime(2026, 1, 1), "score": float("nan")}]
    assert extract(model, records, tmp_path, "layer_0").n_samples == 1


@pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list], ids=["list", "datasets"])
def test_chats_with_tools_are_what_transformers_makes_of_them(demo_checkpoint, tmp_path, kind):
    """Also where Arrow gives every tool and every message the fields of all."""
    checkpoint = shutil.copytree(demo_checkpoint, tmp_path / "checkpoint")
    template = "{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}{% endfor %}"
    (checkpoint / "chat_template.jinja").write_text(template)
    chat = [
        {"role": "user", "content": "Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
        {"role": "tool", "content": "rain", "name": "f"},
    ]
    tools = [{"name": "f", "parameters": {"a": "text"}}, {"name": "g", "description": "G"}]
    data = kind([{"messages": chat, "tools": tools}])
    run = extract(
        load_model(str(checkpoint)), data, tmp_path / "runs", "layer_0", text_field="messages"
    )
    (line,) = run.outputs()
    wanted = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        chat, tools=tools, tokenize=False
    )
    assert line["prompt"] == wanted


def test_the_inputs_of_a_run_stay(model, tmp_path):
    run = extract(model, IDS, tmp_path, "layer_0")
    inputs = (run.folder / "inputs.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds other inputs"):
        extract(model, IDS[:2], tmp_path, "layer_0", run_id=run.run_id)
    assert (run.folder / "inputs.jsonl").read_bytes() == inputs
    with pytest.raises(ModelError):
        extract(model, IDS, tmp_path, "layers.0.mpl")
    assert [path.name for path in tmp_path.iterdir()] == [run.run_id]


def test_a_cluster_around_it_is_not_joined(model, tmp_path, monkeypatch):
    """JAX runs already when a model is loaded, so it could not join one."""
    monkeypatch.setattr("inference.engine.hosts._cluster", lambda: "this TPU slice")
    assert extract(model, IDS, tmp_path, "layer_0").n_samples == len(IDS)


@pytest.mark.parametrize(
    "data", [{"text": IDS}, datasets.DatasetDict({"train": datasets.Dataset.from_list([])})]
)
def test_what_is_no_list_of_inputs_is_told(model, tmp_path, data):
    with pytest.raises(InputError, match="data must be a list of"):
        extract(model, data, tmp_path, "layer_0")


def test_what_the_loaded_model_decides_is_told(model, tmp_path):
    with pytest.raises(InputError, match="scan_layers cannot be given"):
        extract(model, IDS, tmp_path, "layer_0", scan_layers=True)


def test_what_is_wrong_is_told(model, tmp_path):
    with pytest.raises(InputError, match="cannot be written as JSON"):
        extract(model, [object()], tmp_path, ["layer_0"])
    with pytest.raises(InputError, match="base_folder must not be empty"):
        extract(model, IDS, "", ["layer_0"])
    with pytest.raises(InputError, match="run_id must be letters"):
        extract(model, IDS, tmp_path, ["layer_0"], run_id="../elsewhere")
    with pytest.raises(InputError, match="holds no document"):
        extract(model, [], tmp_path, ["layer_0"])
