"""Frequencies against transformers' own functions."""

import numpy as np
import pytest
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from qwen_hooks import QwenConfig
from qwen_hooks.rope import inverse_frequencies

LONG = {"factor": 4.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize("head_dim", [8, 12, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "yarn"} | LONG,
        {"rope_type": "yarn", "truncate": False} | LONG,
        {"rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 0.5} | LONG,
        {"rope_type": "yarn", "attention_factor": 0.9} | LONG,
    ],
)
def test_frequencies_and_scale_equal_transformers(head_dim, theta, scaling):
    theirs = Qwen2Config(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_parameters=scaling | {"rope_theta": theta},
    )
    embedding = Qwen2RotaryEmbedding(theirs)
    frequencies, scale = inverse_frequencies(QwenConfig.from_dict(theirs.to_dict()).rope, head_dim)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, embedding.inv_freq.numpy(), rtol=2e-7)
    assert scale == pytest.approx(embedding.attention_scaling, rel=1e-7)
