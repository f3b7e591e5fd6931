"""The model's own promises: padding, caches and early stops change no row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.shapes import SHAPES
from qwen_hooks import Checkpoint, KVCache, create_model_with_hooks, load_params
from qwen_hooks import model as qwen_model
from qwen_hooks.model import unembed
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error

TOLERANCE = 1e-5
LENGTHS = (3, 17, 150)


@pytest.fixture(scope="module", params=["full attention", "sliding window"])
def folder(request, tmp_path_factory):
    sliding = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}
    shape = sliding if request.param == "sliding window" else {}
    return make_checkpoint(tmp_path_factory.mktemp("model"), **shape)


@pytest.fixture(scope="module")
def loaded(folder):
    checkpoint = Checkpoint.open(folder)
    return create_model_with_hooks(checkpoint.config), load_params(checkpoint)


forward = jax.jit(qwen_model.forward, static_argnames=("model", "num_layers"))


@functools.partial(jax.jit, static_argnames="model")
def compiled(model, params, input_ids, attention_mask=None):
    """Logits and activations."""
    return model.apply(params, input_ids, attention_mask, return_activations=True)


def alone(model, params, tokens):
    """Logits and stacked activations of one sequence without padding."""
    ids = jnp.array([tokens], jnp.int32)
    logits, activations = compiled(model, params, ids)
    return np.asarray(logits[0]), np.stack([a[0] for a in activations.values()])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_row(loaded, side):
    model, params = loaded
    sequences = [random_tokens(n, seed=n) for n in LENGTHS]
    width = max(LENGTHS) + 5
    ids, mask = np.full((len(LENGTHS), width), 7, np.int32), np.zeros((len(LENGTHS), width), int)
    places = []
    for row, tokens in enumerate(sequences):
        start = width - len(tokens) if side == "left" else 0
        places.append(slice(start, start + len(tokens)))
        ids[row, places[-1]], mask[row, places[-1]] = tokens, 1
    logits, activations = compiled(model, params, jnp.array(ids), jnp.array(mask))
    for row, (tokens, place) in enumerate(zip(sequences, places, strict=True)):
        true_logits, true_layers = alone(model, params, tokens)
        assert row_error(logits[row, place], true_logits) < TOLERANCE
        for layer, values in enumerate(activations.values()):
            assert row_error(values[row, place], true_layers[layer]) < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_any_number_but_0_in_a_mask_is_a_token_as_in_torch(side, loaded, folder):
    (model, params), judge = loaded, load_torch(folder)
    tokens, start = random_tokens(9, seed=3), 5 if side == "left" else 0
    ids, ones = np.full((1, 14), 7), np.zeros((1, 14), np.int64)
    ids[0, start : start + 9], ones[0, start : start + 9] = tokens, 1
    is_token = ones[0] == 1
    for value in (2, -1, 255, 0.5, -0.25, np.nan, True):
        mask = np.where(ones == 1, value, 0)
        with torch.inference_mode():
            theirs = judge(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        ours, _ = compiled(model, params, jnp.array(ids), jnp.asarray(mask))
        assert row_error(ours[0, is_token], theirs.logits[0, is_token].numpy()) < TOLERANCE


def test_without_the_flag_logits_alone(loaded):
    model, params = loaded
    ids = jnp.array([random_tokens(5)], jnp.int32)
    logits = model.apply(params, ids)
    assert logits.shape == (1, 5, 211)
    assert logits.dtype == jnp.float32


def test_only_chosen_layers_are_returned_in_order(loaded):
    model, params = loaded
    chosen = create_model_with_hooks(model.config, [3, 1])
    _, some = chosen.apply(
        params, jnp.array([random_tokens(9)], jnp.int32), return_activations=True
    )
    ids = jnp.array([random_tokens(9)], jnp.int32)
    _, every = model.apply(params, ids, return_activations=True)
    assert list(some) == ["layer_1", "layer_3"]
    np.testing.assert_array_equal(some["layer_1"], every["layer_1"])
    np.testing.assert_array_equal(some["layer_3"], every["layer_3"])


@pytest.mark.parametrize("prompt", [1, 20, 140])
def test_cached_decoding_equals_the_full_pass(loaded, prompt):
    model, params = loaded
    tokens = random_tokens(prompt + 12)
    true_logits, true_layers = alone(model, params, tokens)
    padded = prompt + 6  # the cache begins with hidden slots
    ids = jnp.array([tokens[:prompt] + [0] * (padded - prompt)], jnp.int32)
    slots = jnp.arange(padded, dtype=jnp.int32)[None]
    positions = jnp.where(slots < prompt, slots, -1)
    output = forward(model, params, ids, positions)
    cache = KVCache.from_prefill(output.keys_values, positions, capacity=padded + 12)
    for at in range(prompt, prompt + 12):
        token, position = jnp.array([[tokens[at]]], jnp.int32), jnp.array([[at]], jnp.int32)
        step = forward(model, params, token, position, cache=cache)
        cache = step.cache
        assert row_error(unembed(model, params, step.residual[0, 0]), true_logits[at]) < TOLERANCE
        for layer, values in enumerate(step.activations.values()):
            assert row_error(values[0, 0], true_layers[layer, at]) < TOLERANCE
    assert int(cache.filled) == padded + 12


def test_several_tokens_at_once_into_the_cache(loaded):
    model, params = loaded
    tokens = random_tokens(30)
    _, true_layers = alone(model, params, tokens)
    positions = jnp.arange(30, dtype=jnp.int32)[None]
    ids = jnp.array([tokens], jnp.int32)
    output = forward(model, params, ids[:, :20], positions[:, :20])
    cache = KVCache.from_prefill(output.keys_values, positions[:, :20], capacity=30)
    rest = forward(model, params, ids[:, 20:], positions[:, 20:], cache=cache)
    for layer, values in enumerate(rest.activations.values()):
        assert row_error(values[0], true_layers[layer, 20:]) < TOLERANCE


@pytest.mark.parametrize("num_layers", [None, 2])
def test_wanted_rows_are_those_of_the_full_pass(loaded, num_layers):
    model, params = loaded
    tokens = np.array([random_tokens(160, seed=s) for s in (0, 1)], np.int32)
    positions = jnp.broadcast_to(jnp.arange(160, dtype=jnp.int32), (2, 160))
    rows = np.array([[159, 3], [0, 80]], np.int32)
    every = forward(model, params, jnp.array(tokens), positions, num_layers=num_layers)
    some = forward(
        model, params, jnp.array(tokens), positions, num_layers=num_layers, rows=jnp.array(rows)
    )
    assert list(some.activations) == [f"layer_{i}" for i in range(num_layers or 4)]
    picked = np.take_along_axis(np.asarray(every.residual), rows[:, :, None], axis=1)
    assert row_error(some.residual, picked) < TOLERANCE
    for name, values in every.activations.items():
        picked = np.take_along_axis(np.asarray(values), rows[:, :, None], axis=1)
        assert row_error(some.activations[name], picked) < TOLERANCE
    for whole, part in zip(every.keys_values, some.keys_values, strict=True):
        np.testing.assert_allclose(whole[0], part[0], rtol=1e-5, atol=1e-5)


QWEN_72B = dataclasses.replace(
    SHAPES["7B"],
    hidden_size=8192,
    intermediate_size=29568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    layer_types=(),  # full attention in every one of them
)
PUBLISHED = [  # with the number of parameters
    pytest.param(SHAPES["0.5B"], 494_032_768, id="0.5B"),
    pytest.param(SHAPES["1.5B"], 1_543_714_304, id="1.5B"),
    pytest.param(SHAPES["7B"], 7_615_616_512, id="7B"),
    pytest.param(QWEN_72B, 72_706_203_648, id="72B"),
]


@pytest.mark.parametrize(("config", "count"), PUBLISHED)
def test_published_shapes(config, count):
    """Shapes and parameter counts of the published models, without a single weight."""
    layers = config.num_hidden_layers
    model = create_model_with_hooks(config, [layers // 2], dtype=jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    logits, activations = jax.eval_shape(
        lambda p, i: model.apply(p, i, return_activations=True), params, ids
    )
    assert logits.shape == (2, 8, config.vocab_size)
    assert activations[f"layer_{layers // 2}"].shape == (2, 8, config.hidden_size)
    assert activations[f"layer_{layers // 2}"].dtype == jnp.bfloat16
