"""Cross-entropy and divergence with spliced autoencoders, against a torch computation."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from extraction.errors import StoreError
from inference import load_model
from inference.errors import InputError
from qwen_hooks.errors import ModelError
from sae.evaluation.model import Spliced, evaluate_model
from tests.oracle import load_torch, make_checkpoint, random_tokens
from tests.sae.autoencoders import random_autoencoder

LENGTHS = (30, 7, 1, 19, 2, 26, 41)
SPECIAL = (3, 50, 77)
SEQUENCES = [[SPECIAL[0], *random_tokens(length - 1, seed=length)] for length in LENGTHS]


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def folder(request, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), model_type=request.param)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def torch_model(folder):
    return load_torch(folder)


def autoencoder(kind: str, seed: int = 0):
    """One whose reconstructions are not far from rows: the model's loss is between the others."""
    sae = random_autoencoder(kind, seed, d_in=48, d_sae=96)
    W_dec = sae.W_enc.T / np.linalg.norm(sae.W_enc, axis=0)[:, None] ** 2
    return dataclasses.replace(sae, W_dec=np.ascontiguousarray(W_dec), b_dec=0.1 * sae.b_dec)


def torch_figures(model, sae, layer, limit):
    sums = dict.fromkeys(("ce_clean", "ce_spliced", "ce_ablated", "kl_spliced", "kl_ablated"), 0.0)
    tokens = special = sinks = 0
    for sequence in SEQUENCES:
        ids = torch.tensor([sequence])
        is_special = torch.tensor([token in SPECIAL for token in sequence])
        seen = {}

        def hook(module, inputs, output, change, is_special=is_special, seen=seen):
            seen["sinks"] = (output[0].norm(dim=-1) > limit) & ~is_special
            kept = seen["sinks"] | is_special
            return torch.where(kept[None, :, None], output, change(output))

        def reconstructed(x):
            return torch.from_numpy(sae(x.numpy()))

        logs = {}
        changes = {"clean": lambda x: x, "spliced": reconstructed, "ablated": torch.zeros_like}
        for kind, change in changes.items():
            handle = model.model.layers[layer].register_forward_hook(
                functools.partial(hook, change=change)
            )
            with torch.inference_mode():
                logits = model(ids, use_cache=False).logits[0].double()
            handle.remove()
            logs[kind] = torch.log_softmax(logits, -1)
        if len(sequence) > 1:  # others are not run
            special, sinks = special + int(is_special.sum()), sinks + int(seen["sinks"].sum())
        counted = ~(is_special | seen["sinks"])[:-1]
        tokens += int(counted.sum())
        for kind, values in logs.items():
            ce = -values[:-1].gather(-1, ids[0, 1:, None])[:, 0]
            sums[f"ce_{kind}"] += float(ce[counted].sum())
            if kind != "clean":
                clean = logs["clean"]
                kl = (clean.exp() * (clean - values)).sum(-1)[:-1]
                sums[f"kl_{kind}"] += float(kl[counted].sum())
    means = {name: total / tokens for name, total in sums.items()}
    gap = means["ce_ablated"] - means["ce_clean"]
    means["ce_recovered"] = (means["ce_ablated"] - means["ce_spliced"]) / gap
    return means | {"tokens": tokens, "special": special, "sinks": sinks, "max_norm": limit}


@pytest.mark.parametrize("kind", ["standard", "topk rescaled", "jumprelu"])
def test_figures_equal_torch(kind, model, torch_model):
    sae, limit = autoencoder(kind), 46.0
    spliced = {"a": Spliced(sae, "layer_2", limit)}
    found = evaluate_model(model, spliced, SEQUENCES, special_ids=SPECIAL, tokens_per_batch=64)["a"]
    wanted = torch_figures(torch_model, sae, 2, limit)
    assert found.sinks > 5
    assert found.tokens > 20
    assert abs(found.ce_ablated - found.ce_clean) > 0.01
    for name, value in wanted.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4, abs=1e-4), name


def test_several_autoencoders_at_other_hook_points_are_as_alone(model):
    saes = {
        "a": Spliced(autoencoder("topk"), "layer_2", 46.0),
        "b": Spliced(autoencoder("jumprelu", 1), "layers.3.mlp"),
        "c": Spliced(autoencoder("standard", 2), "norm"),
    }
    together = evaluate_model(model, saes, SEQUENCES, special_ids=SPECIAL)
    for name, one in saes.items():
        alone = evaluate_model(model, {name: one}, SEQUENCES, special_ids=SPECIAL)
        assert alone[name] == together[name]
        assert together[name].kl_spliced > 1e-3
    assert together["b"].sinks == 0
    assert len({one.ce_clean for one in together.values()}) == 2  # sinks are left out of a's


@pytest.mark.parametrize("mesh", [(4, 2), (1, 8)])
def test_devices_change_nothing(mesh, folder, model):
    spliced = {"a": Spliced(autoencoder("topk"), "layer_1", 46.0)}
    one, several = (
        evaluate_model(m, spliced, SEQUENCES, special_ids=SPECIAL)["a"]
        for m in (model, load_model(folder, mesh_shape=mesh))
    )
    assert dataclasses.asdict(several) == pytest.approx(dataclasses.asdict(one), rel=1e-4)


def test_with_the_error_term_nothing_changes(model):
    spliced = {"a": Spliced(autoencoder("topk"), "layer_1")}
    found = evaluate_model(model, spliced, SEQUENCES, keep_error=True)["a"]
    assert found.ce_spliced == pytest.approx(found.ce_clean, abs=1e-6)
    assert found.ce_recovered == pytest.approx(1, abs=1e-5)
    assert found.kl_spliced < 1e-6


@pytest.mark.parametrize(
    ("sae", "hook_point", "error", "words"),
    [
        (random_autoencoder("topk"), "layer_1", InputError, "width 6, and layer_1 of .* width 48"),
        (autoencoder("topk"), "layer_9", ModelError, "no hook point"),
        (autoencoder("topk"), "layer_*", InputError, "names 4 hook points"),
        (random_autoencoder("transcoder", d_in=48), "layer_1", StoreError, "is a transcoder"),
    ],
)
def test_what_cannot_be_is_refused(sae, hook_point, error, words, model):
    with pytest.raises(error, match=words):
        evaluate_model(model, {"a": Spliced(sae, hook_point)}, SEQUENCES)


def test_texts_without_a_prediction_are_refused(model):
    with pytest.raises(InputError, match="no token whose prediction"):
        evaluate_model(model, {"a": Spliced(autoencoder("topk"), "layer_1")}, [[4], [5]])
