"""Blocks run as a loop give the rows of unrolled ones, and torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference.engine.programs import (
    BatchInput,
    GenerationSettings,
    batch_sharding,
    generate_batch,
    last_slots,
)
from qwen_hooks import Checkpoint, ModelError, create_model_with_hooks, load_params
from qwen_hooks.checkpoint import save_pretrained
from qwen_hooks.sharding import layout_for
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error, torch_rows

TOLERANCE = 1e-5
SHAPES = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "sliding everywhere": {
        "use_sliding_window": True,
        "sliding_window": 50,
        "max_window_layers": 0,
    },
}


@pytest.mark.parametrize("layers", [None, [1, 2], [3]])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_equals_torch(shape, layers, tmp_path):
    folder = make_checkpoint(tmp_path, **SHAPES[shape])
    token_ids = random_tokens(140)
    logits, theirs = torch_rows(load_torch(folder), token_ids)

    checkpoint = Checkpoint.open(folder)
    model = create_model_with_hooks(checkpoint.config, layers, scan_layers=True)
    params = load_params(checkpoint, scan_layers=True)
    input_ids = jnp.array([token_ids], jnp.int32)
    ours, activations = model.apply(params, input_ids, return_activations=True)

    assert row_error(ours[0], logits) < TOLERANCE
    assert list(activations) == [f"layer_{i}" for i in layers or range(4)]
    for name, rows in activations.items():
        assert row_error(rows[0], theirs[int(name.removeprefix("layer_"))]) < TOLERANCE


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)])
@pytest.mark.parametrize("new_tokens", [0, 6])
def test_generation_equals_unrolled_layers(new_tokens, mesh, tmp_path):
    shape = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, **shape))
    layout = layout_for(checkpoint.config, mesh, jax.devices(), 10**9, 4)
    lengths = np.array([1, 5, 20, 33, 0, 12, 40, 7], np.int32)
    ids = np.zeros((8, 40), np.int32)
    for row, length in enumerate(lengths):
        ids[row, :length] = random_tokens(length, seed=row)
    sharding = batch_sharding(layout.mesh)
    batch = BatchInput(
        *(
            jax.device_put(x, sharding)
            for x in (ids, lengths, np.arange(8, dtype=np.int32), last_slots(lengths))
        )
    )
    settings = GenerationSettings(max_new_tokens=new_tokens)
    outputs = []
    for scan in (False, True):
        config = layout.config(checkpoint.config)
        model = create_model_with_hooks(config, [0, 2], scan_layers=scan)
        params = load_params(checkpoint, layout=layout, scan_layers=scan)
        outputs.append(generate_batch(model, params, batch, settings=settings, mesh=layout.mesh))
    unrolled, scanned = outputs
    real = lengths > 0
    np.testing.assert_array_equal(scanned.counts, unrolled.counts)
    np.testing.assert_array_equal(
        np.asarray(scanned.tokens)[real], np.asarray(unrolled.tokens)[real]
    )
    for hook, rows in unrolled.prompt_rows.items():
        ours, theirs = np.asarray(scanned.prompt_rows[hook])[real], np.asarray(rows)[real]
        assert row_error(ours, theirs) < TOLERANCE
        if new_tokens:
            ours = np.asarray(scanned.generated_rows[hook])[:, real]
            theirs = np.asarray(unrolled.generated_rows[hook])[:, real]
            assert row_error(ours, theirs) < TOLERANCE


def test_init_makes_what_load_params_gives(tmp_path):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path))
    model = create_model_with_hooks(checkpoint.config, scan_layers=True)
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    loaded = load_params(checkpoint, scan_layers=True)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, loaded)


def test_saved_parameters_are_the_loaded_ones(tmp_path):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "model"))
    save_pretrained(tmp_path / "copy", checkpoint.config, load_params(checkpoint, scan_layers=True))
    copy = load_params(Checkpoint.open(tmp_path / "copy"))
    jax.tree.map(np.testing.assert_array_equal, copy, load_params(checkpoint))


def test_blocks_that_differ_are_scanned_by_xla_alone(tmp_path):
    folder = make_checkpoint(
        tmp_path, use_sliding_window=True, sliding_window=50, max_window_layers=1
    )
    checkpoint, tokens = Checkpoint.open(folder), jnp.array([random_tokens(70)])
    wanted = create_model_with_hooks(checkpoint.config).apply(load_params(checkpoint), tokens)
    stacked = load_params(checkpoint, scan_layers=True)
    model = create_model_with_hooks(checkpoint.config, scan_layers=True)
    assert row_error(model.apply(stacked, tokens), wanted) < 1e-5
    for attention in ("splash", "cudnn"):
        model = create_model_with_hooks(checkpoint.config, scan_layers=True, attention=attention)
        with pytest.raises(ModelError, match="sliding window"):
            model.apply(stacked, tokens)
