"""config.json in both spellings, and what is refused."""

import json

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from qwen_hooks import ModelError, QwenConfig, RopeConfig

RAW = {
    "model_type": "qwen2",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 4096,
}


def test_old_and_new_spelling_of_rope_are_the_same():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    old = QwenConfig.from_dict(RAW | {"rope_scaling": yarn})
    new = {k: v for k, v in RAW.items() if k != "rope_theta"}
    new["rope_parameters"] = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    assert QwenConfig.from_dict(new) == old
    assert old.rope == RopeConfig(
        theta=1e6, rope_type="yarn", factor=4.0, original_max_position_embeddings=64
    )


def test_what_transformers_writes_is_read(tmp_path):
    theirs = Qwen2Config(**{k: v for k, v in RAW.items() if k != "rope_theta"},
                         rope_parameters={"rope_type": "default", "rope_theta": 5e5},
                         eos_token_id=[3, 4], tie_word_embeddings=True)  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours = QwenConfig.from_pretrained(tmp_path)
    assert (ours.rope.theta, ours.eos_token_ids, ours.tie_word_embeddings) == (5e5, (3, 4), True)
    assert ours.head_dim == 8


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(theta=1e6),
        RopeConfig(theta=1e6, rope_type="linear", factor=2.0),
        RopeConfig(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=20.0
        ),
    ],
)
def test_what_is_written_is_read_back_by_both(rope, tmp_path):
    config = QwenConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        rope=rope,
        sliding_window=9,
        layer_types=("full_attention", "sliding_attention", "full_attention"),
        eos_token_ids=(5,),
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert QwenConfig.from_pretrained(tmp_path) == config
    theirs = Qwen2Config.from_pretrained(tmp_path)
    assert theirs.rope_parameters["rope_theta"] == rope.theta
    assert theirs.rope_parameters["rope_type"] == rope.rope_type
    assert list(theirs.layer_types) == list(config.layer_types)
    assert theirs.sliding_window == 9
    with torch.device("meta"):
        model = Qwen2ForCausalLM(theirs)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (48, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral"}, "mistral"),
        ({"model_type": "qwen2_moe"}, "qwen2_moe"),
        ({"model_type": None}, "null"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
        ({"rope_scaling": {"type": "yarn"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1"),
        ({"hidden_size": None}, "missing hidden_size"),
        ({"hidden_size": 33}, "no multiple"),
        ({"hidden_size": "32"}, "whole number"),
        ({"num_key_value_heads": 3}, "must divide"),
        ({"head_dim": 7}, "even"),
        ({"is_causal": False}, "is_causal must be true"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"rope_theta": 1e5}}, "differ"),
        ({"per_layer_config": {"0": {"intermediate_size": 8}}}, "per_layer_config"),
        ({"default_theta": 1e4}, "default_theta"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"eos_token_id": [1.5]}, "eos_token_id must be a token id"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a number"),
        ({"pad_token_id": "x"}, "pad_token_id must be a whole number or null"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"use_sliding_window": True, "sliding_window": -1}, "sliding_window"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(change, words):
    with pytest.raises(ModelError, match=words):
        QwenConfig.from_dict(RAW | change)


def test_window_starts_at_the_layer_that_config_names():
    sliding = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    config = QwenConfig.from_dict(RAW | sliding)
    assert [config.layer_window(i) for i in range(3)] == [None, 16, 16]
    absent = {name: value for name, value in sliding.items() if name != "sliding_window"}
    assert QwenConfig.from_dict(RAW | absent).sliding_window == Qwen2Config(**absent).sliding_window
    off = QwenConfig.from_dict(RAW | sliding | {"use_sliding_window": False})
    assert [off.layer_window(i) for i in range(3)] == [None, None, None]


def test_context_includes_stretching():
    assert QwenConfig.from_dict(RAW).context_length == 4096
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert QwenConfig.from_dict(RAW | {"rope_scaling": yarn}).context_length == 16_384


def test_unreadable_config(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        QwenConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        QwenConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="JSON object"):
        QwenConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ModelError, match="not JSON"):
        QwenConfig.from_pretrained(tmp_path)
    for damage in ({"rope_scaling": 5}, {"layer_types": 5}, {"rope_theta": "x"}):
        (tmp_path / "config.json").write_text(json.dumps(RAW | damage))
        with pytest.raises(ModelError, match=r"config\.json: "):
            QwenConfig.from_pretrained(tmp_path)
