"""Which mesh, what is sharded on it, and what each process reads."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from qwen_hooks import Checkpoint, ModelError, QwenConfig, load_params
from qwen_hooks.sharding import layout_for, params_bytes
from tests.oracle import make_checkpoint

SHAPES = {  # hidden, mlp, layers, query heads, KV heads, vocabulary, tied
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "3B": (2048, 11008, 36, 16, 2, 151_936, True),
    "7B": (3584, 18944, 28, 28, 4, 152_064, False),
    "32B": (5120, 27648, 64, 40, 8, 152_064, False),
}


def published(size):
    hidden, mlp, layers, heads, kv_heads, vocabulary, tied = SHAPES[size]
    return QwenConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


@pytest.mark.parametrize(
    ("size", "gigabytes", "mesh"),
    [
        ("0.5B", 16, (8, 1)),
        ("3B", 16, (8, 1)),
        ("7B", 16, (4, 2)),  # 15.2 GB in bfloat16 leave no room on a chip of 16 GB
        ("7B", 32, (8, 1)),
        ("32B", 16, (1, 8)),
        ("32B", 32, (2, 4)),
    ],
)
def test_the_default_is_the_smallest_model_axis_that_fits(size, gigabytes, mesh):
    layout = layout_for(published(size), None, jax.devices(), gigabytes * 10**9, 2)
    assert tuple(layout.mesh.shape.values()) == mesh
    assert layout.mesh.axis_names == ("data", "model")


def test_what_fits_nowhere_is_refused_with_the_sizes():
    with pytest.raises(ModelError, match=r"65\.\d GB of parameters fit no mesh of 8 devices"):
        layout_for(published("32B"), None, jax.devices(), 8 * 10**9, 2)


def test_an_axis_that_does_not_divide_the_heads_goes_to_the_batch(caplog):
    with caplog.at_level(logging.INFO):
        layout = layout_for(published("0.5B"), (2, 4), jax.devices(), 16 * 10**9, 2)
    assert tuple(layout.mesh.shape.values()) == (8, 1)
    assert "8-way data parallel" in caplog.text


def test_where_whole_weights_do_not_fit_what_divides_is_sharded(caplog):
    with caplog.at_level(logging.INFO):
        layout = layout_for(published("0.5B"), (2, 4), jax.devices(), 10**9, 2)
    assert tuple(layout.mesh.shape.values()) == (2, 4)
    assert (layout.heads, layout.mlp, layout.vocabulary) == (False, True, True)
    assert "sharded: mlp, vocabulary" in caplog.text


@pytest.mark.parametrize(
    ("size", "model", "heads", "repeats"),
    [("0.5B", 2, True, 1), ("1.5B", 4, True, 2), ("3B", 8, True, 4), ("7B", 4, True, 1),
     ("7B", 8, False, 1), ("1.5B", 8, False, 1)],
)  # fmt: skip
def test_kv_heads_are_repeated_only_where_exact(size, model, heads, repeats):
    layout = layout_for(published(size), (8 // model, model), jax.devices(), 10**8, 2)
    assert (layout.heads, layout.kv_repeats) == (heads, repeats)
    config = layout.config(published(size))
    assert config.num_key_value_heads == published(size).num_key_value_heads * repeats


def test_parameter_bytes_are_those_of_the_published_model():
    assert params_bytes(published("7B"), 2) == 2 * 7_615_616_512


@pytest.mark.parametrize("mesh", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_each_device_holds_its_part_and_each_part_is_read_once(mesh, tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path, vocab_size=208, num_attention_heads=8, num_key_value_heads=2)
    checkpoint = Checkpoint.open(folder)
    whole = load_params(checkpoint)["params"]
    reads = []
    original = __import__("qwen_hooks.checkpoint", fromlist=["read_tensor"]).read_tensor

    def counted(stored, dtype, **options):
        part = original(stored, dtype, **options)
        reads.append(part.nbytes)
        return part

    monkeypatch.setattr("qwen_hooks.checkpoint.read_tensor", counted)
    layout = layout_for(checkpoint.config, mesh, jax.devices(), 10**9, 4)
    params = load_params(checkpoint, layout=layout)["params"]
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(whole))
    repeated = max(0, layout.kv_repeats - 1)
    kv_bytes = 4 * 4 * 2 * (48 * 16 + 16)  # layers, float32, k and v, kernel and bias
    assert sum(reads) <= total + repeated * kv_bytes
    gate = params["layers_0"]["mlp"]["gate_proj"]["kernel"]
    np.testing.assert_array_equal(gate, whole["layers_0"]["mlp"]["gate_proj"]["kernel"])
    assert gate.addressable_shards[0].data.shape == (48, 80 // mesh[1])
    key = np.asarray(params["layers_0"]["self_attn"]["k_proj"]["kernel"]).reshape(48, -1, 6)
    source = np.asarray(whole["layers_0"]["self_attn"]["k_proj"]["kernel"]).reshape(48, 2, 6)
    np.testing.assert_array_equal(key, np.repeat(source, layout.kv_repeats, axis=1))


def test_layouts_are_values():
    layout = layout_for(published("0.5B"), (4, 2), jax.devices(), 10**9, 2)
    assert dataclasses.replace(layout) == layout
