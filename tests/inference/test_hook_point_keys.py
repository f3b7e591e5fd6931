"""Whatever name a hook point was asked with finds it again; others are told what is near."""

import pickle

import jax
import numpy as np
import pytest

from extraction import ActivationDataset, StoreError
from inference.captures import capture
from inference.engine.activation_store import ActivationStore
from inference.engine.language_model import load_model
from inference.extractions import extract
from qwen_hooks import ModelError, create_model_with_hooks
from qwen_hooks.hook_point_table import HOOK_POINTS
from tests.oracle import make_checkpoint, random_tokens

IDS = [random_tokens(5, seed=3)]
POINTS = {point.name: point for point in HOOK_POINTS}
CANONICAL = "layer_1", "layers.0.mlp", "layers.1.input_layernorm.normalized", "norm"
NAMES = [
    *("layers.1", "layers.1.resid_post", "blocks.1.hook_resid_post", "model.layers.1", "layer_1"),
    *("blocks.0.hook_mlp_out", "model.layers.0.mlp", "blocks.1.ln1.hook_normalized"),
    *("model.norm", "ln_final.hook_out", "layers.{1,1}", "layer*1"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(make_checkpoint(tmp_path_factory.mktemp("m"), num_hidden_layers=2)))


@pytest.fixture(scope="module")
def canonical(model):
    """The rows of IDS by canonical name."""
    return dict(capture(model, IDS, CANONICAL, ["all"]).activations)


def name_of(asked):
    """The canonical name of an alias of NAMES."""
    if asked in ("layers.{1,1}", "layer*1"):
        return "layer_1"
    return next(
        pattern.format(i=i)
        for pattern, point in POINTS.items()
        for i in (0, 1)
        if asked in point.names(i)
    )


@pytest.mark.parametrize("asked", NAMES)
def test_captured_rows_are_found_by_the_name_they_were_asked_with(model, canonical, asked):
    captured = capture(model, IDS, [asked], ["all"])
    np.testing.assert_array_equal(captured[asked], canonical[name_of(asked)])
    np.testing.assert_array_equal(captured.activations[asked], captured[asked])
    np.testing.assert_array_equal(captured.dense(asked)[0][0], captured[asked])
    assert list(captured.activations) == [name_of(asked)]


def test_a_store_and_the_module_know_all_names(model, canonical):
    store = ActivationStore(model, CANONICAL)
    store(np.array(IDS))
    module = model.with_hooks(CANONICAL)
    run = jax.jit(lambda params, ids: module.apply(params, ids, return_activations=True)[1])
    activations = run(model.params, np.array(IDS))
    for asked in NAMES:
        for found in (store, activations, pickle.loads(pickle.dumps(activations))):
            np.testing.assert_allclose(found[asked][0], canonical[name_of(asked)], atol=1e-4)
    assert isinstance(activations, dict)
    assert [leaf.shape for leaf in jax.tree.leaves(activations)] == [(1, 5, 48)] * 4
    assert list(jax.tree.map(np.shape, activations)) == list(activations)


def test_a_run_is_opened_by_all_names(model, canonical, tmp_path):
    asked = ["blocks.0.hook_mlp_out", "model.layers.1", "norm"]
    run = extract(model, IDS, tmp_path, asked, ["all"])
    for name in (*asked, "layers.1", 1):
        rows = run.open(name)[:]
        expected = canonical["layer_1" if name == 1 else name_of(name)]
        np.testing.assert_allclose(rows, expected, atol=1e-4)
    several = ActivationDataset(run.address, layer=["model.layers.1", "blocks.0.hook_mlp_out"])
    assert several.hook_points == ("layer_1", "layers.0.mlp")
    (batch,) = several.batches(100)
    for found in (several[:], batch):
        assert list(found) == ["model.layers.1", "blocks.0.hook_mlp_out"]
        for name, rows in found.items():
            np.testing.assert_allclose(rows, canonical[name_of(name)], atol=1e-4)
    assert set(several.outlier_rows()) == {"model.layers.1", "blocks.0.hook_mlp_out"}


def test_a_name_of_nothing_is_told_what_is_near(model, tmp_path):
    captured = capture(model, IDS, ["layers.0.mlp", "layer_1"])
    _, activations = create_model_with_hooks(model.config, hook_points=["layers.0.mlp"]).apply(
        model.params, np.array(IDS), return_activations=True
    )
    store = ActivationStore(model, ["layers.0.mlp"])
    store(np.array(IDS))
    for found in (captured, captured.activations, activations, store):
        for error in (KeyError, ModelError):
            with pytest.raises(error, match=r"layers\.0\.mlp"):
                found["layers.0.mpl"]
    with pytest.raises(KeyError, match=r"layers\.0\.mlp, layer_1"):
        captured["{layers.0.mlp,layer_1}"]
    run = extract(model, IDS, tmp_path, ["layers.0.mlp", "layer_1"])
    with pytest.raises(StoreError, match=r"did you mean .*blocks\.0\.hook_mlp_out"):
        run.open("blocks.0.hook_mlp_uot")
    with pytest.raises(StoreError, match="given twice"):
        ActivationDataset(run.address, layer=["layers.1", 1])
