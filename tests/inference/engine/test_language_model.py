"""Forward passes of one's own, against torch."""

import numpy as np
import pytest

from inference.engine.activation_store import ActivationStore
from inference.engine.language_model import load_model
from inference.errors import InputError
from qwen_hooks import ModelError
from qwen_hooks.interventions import Add
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error, torch_rows
from tests.torch_values import load_eager, torch_values

LENGTHS = [9, 17, 4]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=[(8, 1), (1, 2)])
def model(request, checkpoint):
    import jax

    if request.param == (1, 2) and len(jax.devices()) % 2:
        pytest.skip("needs two devices")
    return load_model(str(checkpoint), mesh_shape=(8 // request.param[1], request.param[1]))


def padded(side):
    ids, mask = np.zeros((2, len(LENGTHS), max(LENGTHS)), np.int64)
    for i, n in enumerate(LENGTHS):
        at = slice(0, n) if side == "right" else slice(max(LENGTHS) - n, None)
        ids[i, at], mask[i, at] = random_tokens(n, seed=i), 1
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_activations_are_torchs(model, checkpoint, side):
    ids, mask = padded(side)
    store = ActivationStore(model, ["layer_1", "layers.3"])
    logits = store(ids, mask)
    assert logits.shape == (*ids.shape, model.config.vocab_size)
    judge = load_torch(checkpoint)
    for i, row in enumerate(mask > 0):
        wanted_logits, layers = torch_rows(judge, ids[i, row].tolist())
        assert row_error(logits[i, row], wanted_logits) < 1e-4
        assert row_error(store["layer_1"][i, row], layers[1]) < 1e-4
        assert row_error(store["blocks.3.hook_resid_post"][i, row], layers[3]) < 1e-4
    np.testing.assert_allclose(model(ids, mask), logits, rtol=1e-4, atol=1e-4)
    for other in (-3 * mask, 0.5 * mask, mask == 1):  # any number but 0 is a token, as in torch
        np.testing.assert_allclose(model(ids, other), logits, rtol=1e-4, atol=1e-4)


def test_every_hook_point_of_a_block(model, checkpoint):
    tokens = random_tokens(11, seed=5)
    names = [name for name in model.list_hook_points() if ".2." in name]
    store = ActivationStore(model, names)
    store(np.array([tokens]))
    theirs = torch_values(load_eager(checkpoint), model.checkpoint.config, tokens)
    assert len(store) == len(names) > 10
    for name in store:
        ours = store[name][0]
        assert ours.shape[0] == len(tokens)
        wanted = theirs[name].reshape(ours.shape)
        assert row_error(ours, wanted) < 1e-4


def test_a_pass_leaves_earlier_arrays_and_the_model_alone(model):
    ids = np.array([random_tokens(6)])
    before = model(ids)
    with ActivationStore(model, ["norm"]) as store:
        store(ids)
        first = store["norm"]
        kept = first.copy()
        store(ids + 1, interventions={"layer_0": Add(vector=np.ones(48, np.float32))})
        assert not np.array_equal(store["norm"], kept)
        np.testing.assert_array_equal(first, kept)
    assert len(store) == 0
    np.testing.assert_array_equal(model(ids), before)


def test_what_is_wrong_is_told(model):
    with pytest.raises(ModelError, match=r"layers\.0\.mlp"):
        ActivationStore(model, ["layers.0.mpl"])
    store = ActivationStore(model, ["norm"])
    with pytest.raises(KeyError):
        store["norm"]
    with pytest.raises(InputError, match="whole numbers"):
        store(np.zeros((1, 4)))
    with pytest.raises(InputError, match=r"\[B, S\]"):
        store(np.zeros(4, int))
    with pytest.raises(InputError, match="vocabulary of 211"):
        store(np.array([[1, 211]]))
    with pytest.raises(InputError, match="must have tokens"):
        store(np.zeros((0, 4), int))
    with pytest.raises(KeyError):
        store["layers.*.mlp"]
    with pytest.raises(InputError, match="no tokenizer"):
        model.tokenise(["a"])
