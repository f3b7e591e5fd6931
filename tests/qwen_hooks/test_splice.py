"""Splicing a sparse autoencoder into a model, against torch with a forward hook."""

import jax
import numpy as np
import pytest
import torch

from qwen_hooks import Checkpoint, create_model_with_hooks, load_params
from qwen_hooks.errors import ModelError
from qwen_hooks.interventions import Splice, intervene
from tests.compilations import count_compilations
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error

WIDTH, LATENTS, LENGTH = 48, 80, 11


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def folder(request, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), model_type=request.param)


@pytest.fixture(scope="module")
def torch_model(folder):
    return load_torch(folder)


def weights(seed=0, latents=LATENTS):
    draw = np.random.default_rng(seed)
    shapes = {
        "W_enc": (WIDTH, latents),
        "W_dec": (latents, WIDTH),
        "b_enc": (latents,),
        "b_dec": (WIDTH,),
    }
    return {n: (0.2 * draw.normal(size=shape)).astype(np.float32) for n, shape in shapes.items()}


def threshold(seed=1):
    return np.random.default_rng(seed).uniform(0, 0.8, LATENTS).astype(np.float32)


KINDS = {
    "standard": {},
    "jumprelu": {"threshold": threshold()},
    "topk": {"k": 5},
    "b_dec not subtracted": {"apply_b_dec_to_input": False},
}


def reconstructed(x: torch.Tensor, fields) -> torch.Tensor:
    w = {
        name: torch.from_numpy(np.asarray(value))
        for name, value in fields.items()
        if isinstance(value, np.ndarray)
    }
    read = x - w["b_dec"] if fields.get("apply_b_dec_to_input", True) else x
    pre = read @ w["W_enc"] + w["b_enc"]
    latents = torch.relu(pre)
    if "threshold" in fields:
        latents = latents * (pre > w["threshold"])
    if "k" in fields:
        values, places = latents.topk(fields["k"], dim=-1)
        latents = torch.zeros_like(latents).scatter(-1, places, values)
    return latents @ w["W_dec"] + w["b_dec"]


def torch_logits(model, tokens, fields, bypassed):
    """Logits with the output of block 1 reconstructed, but where `bypassed` says of a row."""

    def hook(module, inputs, output):
        return torch.where(bypassed(output)[..., None], output, reconstructed(output, fields))

    handle = model.model.layers[1].register_forward_hook(hook)
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    handle.remove()
    return logits


class Ours:
    def __init__(self, folder):
        checkpoint = Checkpoint.open(folder)
        self.config = checkpoint.config
        self.model = create_model_with_hooks(checkpoint.config, hook_points=["layer_1"])
        self.params = load_params(checkpoint)

    def logits(self, tokens, operation=None, mask=None):
        count = len(tokens) if mask is None else int(np.sum(mask))
        edits = None
        if operation is not None:
            edits = intervene({"layer_1": operation}, self.config, np.array([count]))
        mask = None if mask is None else np.array([mask])
        return np.asarray(self.model.apply(self.params, np.array([tokens]), mask, False, edits))[0]


@pytest.fixture(scope="module")
def ours(folder):
    return Ours(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_torch_with_a_forward_hook(kind, ours, torch_model):
    tokens, fields = random_tokens(LENGTH), weights() | KINDS[kind]
    wanted = torch_logits(torch_model, tokens, fields, lambda x: torch.zeros(x.shape[:-1]) > 1)
    found = ours.logits(tokens, Splice(**fields))
    assert row_error(found, wanted) < 1e-4
    assert np.abs(found - ours.logits(tokens)).max() > 0.1


def test_rows_of_large_norm_and_other_positions_are_bypassed(ours, torch_model):
    tokens, fields = random_tokens(LENGTH), weights()
    plain = ours.model.apply(ours.params, np.array([tokens]), None, True)[1]["layer_1"][0]
    norms = np.linalg.norm(np.asarray(plain), axis=-1)
    limit = float(np.sort(norms)[-3] * 0.999)
    masked = [0, 4, 9]
    positions = np.array([[n for n in range(LENGTH) if n not in masked]])

    def bypassed(x):
        out = x.norm(dim=-1) > limit
        out[:, masked] = True
        return out

    wanted = torch_logits(torch_model, tokens, fields, bypassed)
    operation = Splice(**fields, max_norm=limit, positions=positions)
    found = ours.logits(tokens, operation)
    assert row_error(found, wanted) < 1e-4
    everywhere = ours.logits(tokens, Splice(**fields))
    assert np.abs(found - everywhere).max() > 0.1
    for mask in ([0, 0, 0] + [1] * LENGTH, [1] * LENGTH + [0, 0, 0]):  # padding on either side
        padded = np.zeros(LENGTH + 3, int)
        padded[np.array(mask) > 0] = tokens
        logits = ours.logits(padded.tolist(), operation, mask)
        assert row_error(logits[np.array(mask) > 0], wanted) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1, 1000])  # of reconstructions, whose rounding must not stay
def test_with_the_error_term_no_logit_changes(kind, scale, ours):
    tokens, fields = random_tokens(LENGTH), weights() | KINDS[kind]
    fields["W_dec"] = np.float32(scale) * fields["W_dec"]
    found = ours.logits(tokens, Splice(**fields, keep_error=True))
    assert np.abs(found - ours.logits(tokens)).max() < 1e-5


def test_a_limit_of_each_sample(ours):
    tokens, fields = random_tokens(LENGTH), weights()
    operation = Splice(**fields, max_norm=np.array([np.inf, 0.0]))
    edits = intervene({"layer_1": operation}, ours.config, np.array([LENGTH] * 2))
    found = np.asarray(ours.model.apply(ours.params, np.array([tokens] * 2), None, False, edits))
    np.testing.assert_allclose(found[0], ours.logits(tokens, Splice(**fields)), atol=1e-4)
    np.testing.assert_allclose(found[1], ours.logits(tokens), atol=1e-4)


def test_other_weights_compile_nothing_anew(ours):
    run = jax.jit(lambda params, ids, edits: ours.model.apply(params, ids, None, False, edits))
    tokens, found = np.array([random_tokens(LENGTH)]), set()
    with count_compilations(run) as compiled:
        for seed in range(3):
            operation = Splice(
                **weights(seed), threshold=threshold(seed), max_norm=np.float32(1000 + seed)
            )
            edits = intervene({"layer_1": operation}, ours.config, np.array([LENGTH]))
            found.add(np.asarray(run(ours.params, tokens, edits)).tobytes())
        assert compiled() == 1
    assert len(found) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"W_enc": np.zeros((47, 80))}, r"W_dec has shape \[80, 48\]; W_enc \[47, 80\] needs"),
        ({"W_enc": np.zeros((2, 48, 80))}, "W_enc is .W, m., not"),
        ({"b_enc": np.zeros(81)}, r"b_enc has shape \[81\]"),
        ({"b_dec": np.zeros(80)}, r"b_dec has shape \[80\]"),
        ({"threshold": np.zeros(1)}, r"threshold has shape \[1\]"),
        ({"b_dec": np.full(48, np.nan)}, "b_dec holds nan"),
        ({"max_norm": float("nan")}, "max_norm holds nan"),
        ({"k": 81}, "k must be a whole number from 1 to 80, not 81"),
        ({"k": 0}, "k must be a whole number from 1 to 80, not 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(fields, words, ours):
    operation = Splice(**weights() | fields)
    with pytest.raises(ModelError, match=f"^layer_1: .*{words}"):
        intervene({"layer_1": operation}, ours.config, np.array([LENGTH]))


def test_a_hook_point_of_another_width_is_refused(ours):
    with pytest.raises(
        ModelError, match=r"^layers\.1\.mlp\.neurons has 80 numbers, W_dec has shape"
    ):
        intervene({"layers.1.mlp.neurons": Splice(**weights())}, ours.config, np.array([3]))
