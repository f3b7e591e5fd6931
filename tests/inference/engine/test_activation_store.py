"""Stores that keep the activations of the model's own calls, against torch."""

import gc

import numpy as np
import pytest
import torch

from inference.captures import capture
from inference.engine.activation_store import ActivationStore
from inference.engine.language_model import load_model
from inference.errors import InputError
from qwen_hooks import ModelError
from qwen_hooks.errors import NotCapturedError
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error, torch_rows

IDS = np.array([random_tokens(9, seed=1), random_tokens(9, seed=2)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(str(checkpoint), mesh_shape=(8, 1))


@pytest.fixture(scope="module")
def layers(checkpoint):
    """The torch model's `[S, D]` of each block, for both sequences."""
    judge = load_torch(checkpoint)
    return [torch_rows(judge, row.tolist())[1] for row in IDS]


def test_an_enabled_store_keeps_the_calls_of_the_model(model, layers):
    store = ActivationStore(model, layers=["layers.3", "layer_1"])
    model(IDS)
    assert store.get("layer_1") is None
    store.enable()
    store.enable()
    logits = model(IDS)
    for name, number in (("layers.3", 3), ("layer_1", 1), ("blocks.1.hook_resid_post", 1)):
        for row in range(2):
            assert row_error(store.get(name)[row], layers[row][number]) < 1e-4
    first, kept = store.get("layer_1"), store.get("layer_1").copy()
    model(IDS[:1, :4])
    assert store.get("layer_1").shape == (1, 4, model.config.hidden_size)
    np.testing.assert_array_equal(first, kept)
    capture(model, IDS.tolist(), "layer_1", "last")
    store.disable()
    store.disable()
    np.testing.assert_allclose(model(IDS), logits, rtol=1e-5, atol=1e-5)
    assert store.get("layer_1").shape[:2] == (1, 4)  # neither capture nor this call was kept
    store.clear()
    assert store.get("layer_1") is None
    assert len(store) == 0


def test_several_stores_of_one_call(model, layers):
    with ActivationStore(model, ["layer_0", "layer_1"]) as one:
        two = ActivationStore(model, ["layer_1", "layer_2"])
        one.enable()
        two.enable()
        model(IDS)
        assert (set(one), set(two)) == ({"layer_0", "layer_1"}, {"layer_1", "layer_2"})
        np.testing.assert_array_equal(one["layer_1"], two["layer_1"])
        assert row_error(two["layer_2"][1], layers[1][2]) < 1e-4
    assert list(model.enabled) == [two]
    del two
    gc.collect()
    assert list(model.enabled) == []


def test_tensors_in_tensors_out(model, layers):
    store = ActivationStore(model, ["layer_1"])
    store.enable()
    model(torch.from_numpy(IDS), torch.ones(2, 9))
    tensor = store.get("layer_1").clone()
    assert tensor.dtype == torch.float32
    assert row_error(tensor[0].numpy(), layers[0][1]) < 1e-4
    tensor += 1
    np.testing.assert_allclose(store["layer_1"] + 1, tensor.numpy(), rtol=1e-6)  # a copy
    store(IDS)
    assert isinstance(store.get("layer_1"), np.ndarray)


def test_bfloat16_tensors(checkpoint):
    model = load_model(str(checkpoint), dtype="bfloat16", mesh_shape=(8, 1))
    store = ActivationStore(model, ["layer_1"])
    store(torch.from_numpy(IDS))
    values = store.get("layer_1")
    assert values.dtype == torch.bfloat16
    np.testing.assert_array_equal(values.float().numpy(), store["layer_1"].astype(np.float32))


def test_layer_names_are_those_that_were_given(model):
    store = ActivationStore(
        model, ["norm", "blocks.2.hook_resid_post", "layers.{0..1}.mlp", "norm"]
    )
    wanted = ("norm", "blocks.2.hook_resid_post", "layers.0.mlp", "layers.1.mlp")
    assert store.layer_names == wanted
    assert ActivationStore(model, "layers.1").layer_names == ("layers.1",)
    store(IDS)
    assert all(store.get(name) is not None for name in store.layer_names)


def test_what_is_wrong_is_told(model):
    for arguments in ({}, {"hook_points": ["norm"], "layers": ["norm"]}):
        with pytest.raises(InputError, match="give one of the two"):
            ActivationStore(model, **arguments)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp"):
        ActivationStore(model, layers=["layers.0.mpl"])
    store = ActivationStore(model, ["norm"])
    with pytest.raises(NotCapturedError, match="captured: norm"):
        store.get("layer_1")
