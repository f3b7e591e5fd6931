"""Qwen3, dense: an RMSNorm over each head's queries and keys, no biases unless asked for."""

from qwen_hooks.families.family import SLIDING_FIELDS, Family, read_sliding, write_sliding

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    title="Qwen3 (dense)",
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768, "head_dim": 128},
    translated={**SLIDING_FIELDS, "attention_bias": "bool"},
    only_default={"hidden_act": ("silu",)},
    read=lambda fields: {
        "qk_norm": True,
        "qkv_bias": fields.get("attention_bias", False),
        "output_bias": fields.get("attention_bias", False),
        **read_sliding(fields),
    },
    write=lambda config: {
        "hidden_act": "silu",
        "attention_bias": config.output_bias,
        **write_sliding(config),
    },
)
