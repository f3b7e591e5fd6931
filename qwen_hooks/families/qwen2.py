"""Qwen2 and Qwen2.5: biases on queries, keys and values; windows if config.json turns them on."""

from qwen_hooks.families.family import SLIDING_FIELDS, Family, read_sliding, write_sliding

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    title="Qwen2 and Qwen2.5",
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768},
    translated=SLIDING_FIELDS,
    only_default={"hidden_act": ("silu",)},
    read=lambda fields: {"qkv_bias": True, **read_sliding(fields)},
    write=lambda config: {"hidden_act": "silu", **write_sliding(config)},
)
