"""Orthogonalized weights against torch with the direction taken out of every output."""

import numpy as np
import pytest
import torch

from qwen_hooks import Checkpoint, create_model_with_hooks, load_params, orthogonalize
from qwen_hooks.errors import ModelError
from tests.families import FAMILIES
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error

WIDTH = 48
DIRECTIONS = np.random.default_rng(0).standard_normal((2, WIDTH))


def ablated(model, tokens, directions):
    """Logits and the blocks' outputs of torch's model with an ablation of each output."""
    basis = torch.linalg.qr(torch.tensor(directions, dtype=torch.float32).T)[0]
    outputs = []

    def change(_, inputs, output):
        value = output[0] if isinstance(output, tuple) else output
        value = value - (value @ basis) @ basis.T
        return (value, *output[1:]) if isinstance(output, tuple) else value

    hooks = [model.model.embed_tokens.register_forward_hook(change)]
    for layer in model.model.layers:
        hooks += [part.register_forward_hook(change) for part in (layer.self_attn, layer.mlp)]
        hooks.append(layer.register_forward_hook(lambda _, x, y: outputs.append(y[0].numpy())))
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    for hook in hooks:
        hook.remove()
    return logits, outputs


@pytest.mark.parametrize("family", [name for name in FAMILIES if "gemma2" not in name])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_equals_ablation_at_every_position(family, scan, count, tmp_path):
    folder = make_checkpoint(tmp_path, **FAMILIES[family])
    checkpoint = Checkpoint.open(folder)
    given = DIRECTIONS[0] if count == 1 else DIRECTIONS
    before = load_params(checkpoint, scan_layers=scan)
    params, config = orthogonalize(before, given, checkpoint.config)
    layers = [f"layer_{i}" for i in range(4)]
    model = create_model_with_hooks(config, hook_points=layers, scan_layers=scan)
    tokens = random_tokens(23, seed=1)
    logits, rows = model.apply(params, np.array([tokens]), return_activations=True)
    wanted, outputs = ablated(load_torch(folder), tokens, DIRECTIONS[:count])
    assert row_error(np.asarray(logits[0]), wanted) < 1e-5
    for layer, output in zip(layers, outputs, strict=True):
        assert row_error(np.asarray(rows[layer][0]), output) < 1e-5
    plain = create_model_with_hooks(checkpoint.config, hook_points=["layer_0"], scan_layers=scan)
    assert row_error(np.asarray(plain.apply(before, np.array([tokens]))[0]), wanted) > 1e-2


@pytest.mark.parametrize(
    ("directions", "named"),
    [
        (np.ones(WIDTH + 1), "48 numbers"),
        (np.zeros(WIDTH), "span 0"),
        (np.full(WIDTH, np.nan), "nan"),
        (np.ones((2, WIDTH)), "linearly independent"),
    ],
)
def test_directions_that_are_none_are_refused(directions, named, tmp_path):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path))
    with pytest.raises(ModelError, match=named):
        orthogonalize(load_params(checkpoint), directions, checkpoint.config)


def test_norms_behind_the_outputs_are_refused(tmp_path):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, **FAMILIES["gemma2"]))
    with pytest.raises(ModelError, match="ProjectOut"):
        orthogonalize(load_params(checkpoint), DIRECTIONS[0], checkpoint.config)
