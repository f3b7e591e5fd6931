"""The model against Hugging Face's torch model on the same tokens, unpadded.

The judge computes in float64. torch in float32 is itself away from that, in a model without biases
further than the tolerance: 0.8e-5 to 1.3e-5 in the worst of 300 rows, as its kernel of attention,
the instruction set and the tokens go. The worst row is luck, so it may be half as far again as
torch's; median and root mean square over 300 rows are not, and must be near torch's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwen_hooks import Checkpoint, create_model_with_hooks, load_params
from tests.families import FAMILIES
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_errors, torch_rows

TOLERANCE = 1e-5
"""The contract says 1e-4; this is what float32 gives."""

WORST = 1.5
"""Distance of our worst row from float64, as a multiple of that of torch's worst row in float32."""

TYPICAL = 1.25
"""The same for median and root mean square over 300 rows; 1.1 is the largest seen."""

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
SLIDING = {"use_sliding_window": True, "max_window_layers": 1}

CASES = {
    "3 query heads for a KV head": {},
    "7 query heads for a KV head": {"hidden_size": 56, "num_attention_heads": 14},
    "1 query head for a KV head": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "8 query heads for one KV head": {"num_attention_heads": 8, "num_key_value_heads": 1},
    "tied head": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 20},
    "narrow heads": {"head_dim": 4, "tie_word_embeddings": True},
    "large epsilon": {"rms_norm_eps": 0.1},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    "yarn": {"rope_parameters": YARN},
    "yarn, all settings": {
        "rope_parameters": YARN
        | {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.3}
    },
    "yarn, attention factor": {
        "head_dim": 16,
        "rope_parameters": YARN | {"attention_factor": 1.3, "truncate": False},
    },
    "sliding window": SLIDING | {"sliding_window": 50},
    "sliding window of a block": SLIDING | {"sliding_window": 128},
    "sliding window of two": SLIDING | {"sliding_window": 2},
    "sliding where layer_types say": {
        "use_sliding_window": True,
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    **{name: shape for name, shape in FAMILIES.items() if shape},
    "split over files": {"shard": "40KB"},
    "stored as bfloat16": {"stored": torch.bfloat16},
    "stored as float16": {"stored": torch.float16},
}


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


@functools.partial(jax.jit, static_argnames="model")
def compiled(model, params, input_ids):
    """Logits and activations."""
    return model.apply(params, input_ids, return_activations=True)


@pytest.mark.parametrize("tokens", [1, 37, 300])
@pytest.mark.parametrize("case", CASES)
def test_every_row_equals_torch(case, tokens, tmp_path):
    folder = make_checkpoint(tmp_path, **CASES[case])
    token_ids = random_tokens(tokens)
    logits, layers = torch_rows(load_torch(folder, torch.float64), token_ids)
    single, layers_single = torch_rows(load_torch(folder), token_ids)

    checkpoint = Checkpoint.open(folder)
    model = create_model_with_hooks(checkpoint.config)
    input_ids = jnp.array([token_ids], jnp.int32)
    ours, activations = compiled(model, load_params(checkpoint), input_ids)

    assert list(activations) == [f"layer_{i}" for i in range(4)]
    places = [(ours, single, logits)]
    places += zip(activations.values(), layers_single, layers, strict=True)
    for mine, torchs, exact in places:
        errors, torch_errors = row_errors(mine[0], exact), row_errors(torchs, exact)
        assert errors.max() < max(TOLERANCE, WORST * torch_errors.max())
        if tokens == 300:
            for typical in (np.median, root_mean_square):
                assert typical(errors) < TYPICAL * typical(torch_errors)


def test_split_checkpoint_is_really_split(tmp_path):
    make_checkpoint(tmp_path, **CASES["split over files"])
    assert len(list(tmp_path.glob("*.safetensors"))) > 2


def test_bfloat16_is_as_near_to_float32_as_torch_is(tmp_path):
    shape = {"hidden_size": 224, "num_attention_heads": 14, "intermediate_size": 608}
    folder = make_checkpoint(tmp_path, stored=torch.bfloat16, num_hidden_layers=6, **shape)
    checkpoint = Checkpoint.open(folder)
    model = create_model_with_hooks(checkpoint.config)
    params = load_params(checkpoint, jnp.bfloat16)
    exact, rounded = load_torch(folder), load_torch(folder, torch.bfloat16)
    distances = []
    for seed in range(4):
        token_ids = random_tokens(200, seed=seed)
        true_logits, true_layers = torch_rows(exact, token_ids)
        torch_logits, torch_layers = torch_rows(rounded, token_ids)
        ours, activations = compiled(model, params, jnp.array([token_ids], jnp.int32))
        assert all(values.dtype == jnp.bfloat16 for values in activations.values())
        our_layers = [np.asarray(a[0], np.float32) for a in activations.values()]
        triples = [*zip(our_layers, torch_layers, true_layers, strict=True)]
        triples.append((np.asarray(ours[0]), torch_logits, true_logits))
        distances.append([(cosine_distance(a, c), cosine_distance(b, c)) for a, b, c in triples])
    for place, (mine, torchs) in enumerate(np.mean(distances, axis=0)):
        assert mine <= 1.25 * torchs, f"layer {place}: {mine:.2e} against torch's {torchs:.2e}"


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the rows of 1 - cosine."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float(np.mean(1 - cosine))
