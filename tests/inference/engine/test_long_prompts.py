"""Prompts near the model's context run, and without a matrix of all scores."""

import json
import pickle

import jax
import jax.numpy as jnp
import pytest
import torch

from inference.engine.programs import BatchInput, GenerationSettings, generate_batch
from qwen_hooks import Checkpoint, create_model_with_hooks
from qwen_hooks.sharding import layout_for
from tests.inference.whole_runs import run_processes
from tests.oracle import load_torch, random_tokens, row_error

TOKENS = 16_200
LAYERS = (1, 3)


@pytest.mark.usefixtures("optimised")
def test_a_16k_prompt_equals_torch(demo_checkpoint, tmp_path):
    token_ids = random_tokens(TOKENS, 500)
    tasks = tmp_path / "tasks.json"
    tasks.write_text(json.dumps([{"task_id": "long", "token_ids": token_ids}]))
    # In a process that has one device: of eight here, seven would run a dummy of that length.
    (status,), (output,) = run_processes(
        1, 1,
        ["--model_path", str(demo_checkpoint), "--tasks_file", str(tasks),
         "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"),
         "--layers_to_extract", *map(str, LAYERS), "--self_check_rows", "0"],
    )  # fmt: skip
    assert status == 0, output

    model = load_torch(demo_checkpoint)
    last_tokens = {}

    def keep(layer):
        return lambda module, inputs, output: last_tokens.update({layer: output[0, -1].clone()})

    for layer in LAYERS:
        model.model.layers[layer].register_forward_hook(keep(layer))
    with torch.inference_mode():
        model.model(torch.tensor([token_ids]), use_cache=False)
    for layer in LAYERS:
        file = tmp_path / "act" / f"layer_{layer}_batch_000001.pkl"
        (row,) = pickle.loads(file.read_bytes())["activations"]
        assert row["position"] == TOKENS - 1
        assert row_error(row["activation"], last_tokens[layer]) < 1e-4


@pytest.mark.usefixtures("optimised")
def test_no_matrix_of_all_scores(demo_checkpoint):
    config = Checkpoint.open(demo_checkpoint).config
    layout = layout_for(config, (1, 1), jax.devices()[:1], 10**10, 4)
    model = create_model_with_hooks(config, LAYERS)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    slots = 16_384
    shapes = ((1, slots), (1,), (1,), (1, 1))
    settings = GenerationSettings(max_new_tokens=2)

    @jax.jit
    def program(params, *batch):
        return generate_batch(
            model, params, BatchInput(*batch), settings=settings, mesh=layout.mesh
        )

    lowered = program.lower(params, *(jax.ShapeDtypeStruct(s, jnp.int32) for s in shapes))
    memory = lowered.compile().memory_analysis()
    all_scores = 4 * config.num_attention_heads * slots**2
    assert memory.temp_size_in_bytes < all_scores / 50
