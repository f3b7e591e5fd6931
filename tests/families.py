"""Small models of each family, as arguments of `oracle.make_checkpoint`, and with every switch."""

from typing import Any

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"model_type": "qwen3", "head_dim": 12},
    "qwen3, biases, sliding": {
        "model_type": "qwen3",
        "head_dim": 8,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 0,
    },
    "llama": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama, biases, tied": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "num_key_value_heads": 6,
    },
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 12,
        "sliding_window": 9,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "pad_token_id": None,
    },
    "gemma2, biases, no caps": {
        "model_type": "gemma2",
        "head_dim": 8,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "sliding_window": 500,
        "pad_token_id": None,
    },
}
