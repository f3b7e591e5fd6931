"""Gemma 2 (arXiv 2408.00118): norms after attention and MLP too, soft caps, alternating windows.

Its RMSNorms multiply with one plus their weight, and its embeddings are scaled by the root of the
width of the residual stream.
"""

from typing import Any

from qwen_hooks.errors import ModelError
from qwen_hooks.families.family import LAYER_TYPES, MOST_LAYERS, Family, Fields, check_layer_types


def _read(fields: Fields) -> dict[str, Any]:
    layers = fields["num_hidden_layers"]
    types = fields.get("layer_types")
    if types is None:  # a window in every second block, from the first on
        types = [LAYER_TYPES[(i + 1) % 2] for i in range(min(layers, MOST_LAYERS))]
    for name in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"):
        if fields[name] is not None and not 0 < fields[name] < float("inf"):
            raise ModelError(f"{name} must be a finite number above 0, not {fields[name]}")
    return {
        "qkv_bias": fields.get("attention_bias", False),
        "output_bias": fields.get("attention_bias", False),
        "activation": "gelu_pytorch_tanh",
        "post_norms": True,
        "norms_add_one": True,
        "embedding_scale": fields["hidden_size"] ** 0.5,
        "attention_scale": fields["query_pre_attn_scalar"] ** -0.5,
        "attention_softcap": fields["attn_logit_softcapping"],
        "logits_softcap": fields["final_logit_softcapping"],
        "sliding_window": fields["sliding_window"],
        "layer_types": check_layer_types(types, layers),
    }


def _write(config: Any) -> dict[str, Any]:
    return {
        "hidden_activation": config.activation,
        "attention_bias": config.output_bias,
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logits_softcap,
        "sliding_window": config.sliding_window,
        "layer_types": list(config.layer_types),
    }


GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    title="Gemma 2",
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8_192,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4_096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    translated={
        "attention_bias": "bool",
        "query_pre_attn_scalar": "int",
        "sliding_window": "int?",
        "layer_types": "texts?",
        "attn_logit_softcapping": "float?",
        "final_logit_softcapping": "float?",
    },
    only_default={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (None, False),
    },
    read=_read,
    write=_write,
)
