"""Llama 2 and 3, and models of the same code (SmolLM2, TinyLlama): no biases unless asked for."""

from qwen_hooks.families.family import Family

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    title="Llama 2 and 3, SmolLM2",
    defaults={"num_key_value_heads": None, "max_position_embeddings": 2_048, "eos_token_id": 2},
    translated={"attention_bias": "bool", "mlp_bias": "bool"},
    only_default={
        "hidden_act": ("silu",),
        "layer_types": (None,),  # the cache would read them, and the model would not
        "sliding_window": (None,),
    },
    read=lambda fields: {
        "qkv_bias": fields.get("attention_bias", False),
        "output_bias": fields.get("attention_bias", False),
        "mlp_bias": fields.get("mlp_bias", False),
    },
    write=lambda config: {
        "hidden_act": "silu",
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
    },
)
