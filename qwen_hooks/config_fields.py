"""Which fields of config.json affect the computation, and their allowed JSON types.

A field is relevant if transformers' code for the family reads it: configuration, modelling, masks,
RoPE, cache and generation. A test derives that set from the installed source and checks that each
name is here or in the family's own tables. Fields in neither are ignored, since nothing reads them.

Types are those of transformers' own class, which refuses others: `?` after a type permits null.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from qwen_hooks.errors import ModelError
from qwen_hooks.families.family import Family

TRANSLATED = {
    "model_type": "text",
    "vocab_size": "int",
    "hidden_size": "int",
    "intermediate_size": "int",
    "num_hidden_layers": "int",
    "num_attention_heads": "int",
    "num_key_value_heads": "int?",
    "head_dim": "int?",
    "max_position_embeddings": "int",
    "rms_norm_eps": "float",
    "tie_word_embeddings": "bool",
    "rope_theta": "number",
    "rope_scaling": "object?",
    "rope_parameters": "object?",
    "original_max_position_embeddings": "int",
    "eos_token_id": "ids?",
}
"""Fields that `QwenConfig.from_dict` reads for every family; `Family.translated` has others."""

ONLY_DEFAULT: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "partial_rotary_factor": (None, 1, 1.0),
    "attention_chunk_size": (None,),
    "is_encoder_decoder": (False,),
    "encoder": (None,),
    "quantization_config": (None,),
    "transformers_weights": (None,),  # the name of another file of weights
    "fusion_config": (None,),
    "per_layer_config": (None,),
    "mtp_per_layer_config": (None,),
    "kv_sharing_modes": (None,),
    "num_kv_shared_layers": (None, 0),
    "configuration_files": (None,),  # the names of other files of this kind
    "text_config": (None,),  # configurations within this one, which then count instead of it
    "text_encoder": (None,),
    "decoder": (None,),
    "generator": (None,),
    "vision_aspect_ratio": (None,),
    "vision_feature_layer": (None,),
    "vision_feature_select_strategy": (None,),
}
"""Fields that change the computation, with the only values that this package supports."""

CLASS_INTERNALS = (
    "attribute_map",
    "base_config_key",
    "config_class",
    "default_rope_type",
    "has_no_defaults_at_init",
    "default_theta",
    "ignore_keys_at_rope_validation",
    "is_heterogeneous",
    "per_layer_attributes",
    "allow_global_per_layer_attribute_access",
    "serialize_explicit_per_layer_config",
    "sub_configs",
    "sub_configs_defaults",
    "_auto_class",
    "_heterogeneity_spec",
    "_post_init_done",
    "_rope_type_labels",
)
"""Attributes of transformers' class that a file could set, and none should."""

WITHOUT_EFFECT = {
    "architectures": "texts?",
    "alibi": "any",
    "attention_dropout": "number",  # training
    "audio_vocab_size": "any",
    "base_model_ep_plan": "any",
    "base_model_fsdp_plan": "any",
    "base_model_pp_plan": "any",
    "base_model_tp_plan": "any",
    "bos_token_id": "int?",
    "chunk_size_feed_forward": "int",
    "distributed_config": "any",
    "dtype": "dtype?",
    "embed_dim": "any",
    "first_k_dense_replace": "any",
    "gradient_checkpointing": "any",
    "id2label": "labels?",
    "init_std": "any",
    "initializer_factor": "any",
    "initializer_range": "float",
    "is_decoder": "any",
    "label2id": "object?",
    "mlp_layer_types": "any",
    "mtp_layer_types": "any",
    "mtp_mlp_layer_types": "any",
    "name_or_path": "any",
    "num_heads": "any",
    "num_labels": "int?",
    "num_mtp_layers": "any",  # blocks that draft tokens
    "number_of_conv_states": "any",
    "output_attentions": "any",
    "output_hidden_states": "bool?",
    "output_vocab_size": "any",
    "pad_token_id": "int?",
    "pretraining_tp": "int?",  # of an early implementation of Llama
    "problem_type": "problem?",
    "qk_head_dim": "any",
    "return_dict": "bool?",
    "sep_token_id": "any",
    "tie_last_hidden_states": "any",
    "torch_dtype": "dtype?",
    "use_alibi": "any",
    "use_cache": "bool",
    "_attn_implementation": "any",  # which kernel computes attention
    "_attn_implementation_internal": "any",
    "_attn_was_changed": "any",
    "_commit_hash": "any",
    "_experts_implementation": "any",
    "_experts_implementation_internal": "any",
    "_name_or_path": "any",
    "_output_attentions": "any",
}
"""Fields that transformers declares or reads, but that affect neither rows nor tokens."""

ROPE_FIELDS = {
    "default": {"rope_type": "text", "type": "text", "rope_theta": "number"},
    "linear": {"rope_type": "text", "type": "text", "rope_theta": "number", "factor": "number"},
    "yarn": {
        "rope_type": "text",
        "type": "text",
        "rope_theta": "number",
        "factor": "number?",
        "original_max_position_embeddings": "int",
        "attention_factor": "number?",
        "beta_fast": "number?",
        "beta_slow": "number?",
        "mscale": "number?",
        "mscale_all_dim": "number?",
        "truncate": "bool?",
    },
    "llama3": {
        "rope_type": "text",
        "type": "text",
        "rope_theta": "number",
        "factor": "number",
        "original_max_position_embeddings": "int",
        "low_freq_factor": "number",
        "high_freq_factor": "number",
    },
}
"""Fields of `rope_parameters` (or `rope_scaling`) that each type of RoPE reads."""

DTYPES = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")
"""Torch's names of dtypes; the actual dtype of weights is in their files."""

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")

_JSON_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "any": ("anything", lambda value: True),
    "int": ("a whole number", lambda value: type(value) is int),
    "float": ("a number with a point or an exponent", lambda value: _is_number(value, float)),
    "number": ("a finite number", lambda value: _is_number(value, float, int)),
    "bool": ("true or false", lambda value: type(value) is bool),
    "text": ("a text", lambda value: type(value) is str),
    "texts": ("a list of texts", lambda value: _is_list(value, str)),
    "ids": ("a token id or a list of them", lambda v: type(v) is int or _is_list(v, int)),
    "object": ("an object", lambda value: type(value) is dict),
    "labels": ("an object with whole numbers as names", lambda value: _is_numbered(value)),
    "problem": (f"one of {', '.join(PROBLEMS)}", lambda value: value in PROBLEMS),
    "dtype": (f"one of {', '.join(DTYPES)}", lambda value: value in DTYPES),
}


def _is_number(value: Any, *kinds: type) -> bool:
    return type(value) in kinds and abs(value) <= sys.float_info.max  # NaN is not


def _is_list(value: Any, kind: type) -> bool:
    return type(value) is list and all(type(item) is kind for item in value)


def _is_numbered(value: Any) -> bool:
    return type(value) is dict and all(str(name).isdecimal() for name in value)


def check_fields(raw: Mapping[str, Any], family: Family) -> list[str]:
    """Refuse fields that would be computed wrongly, and return the names of ignored ones.

    Args:
        raw: content of config.json.
        family: family of the model.

    Raises:
        ModelError: a field has a wrong type, or a value that this package does not compute.
    """
    only_default = {**ONLY_DEFAULT, **family.only_default}
    for name, allowed in only_default.items():
        if name in raw and raw[name] not in allowed:
            words = " or ".join(json.dumps(value) for value in allowed)
            raise ModelError(
                f"{name} must be {words}, not {shown(raw[name])}: no other value is supported"
            )
    for name in CLASS_INTERNALS:
        if raw.get(name) is not None:
            raise ModelError(f"{name} is internal to transformers and not a setting: remove it")
    types = {**WITHOUT_EFFECT, **TRANSLATED, **family.translated}
    check_types({name: value for name, value in raw.items() if name in types}, types)
    return sorted(raw.keys() - {*types, *only_default, *CLASS_INTERNALS})


def check_types(raw: Mapping[str, Any], types: Mapping[str, str], within: str = "") -> None:
    """Check values against names of JSON types.

    Args:
        raw: fields; those that `types` does not name are not checked.
        types: type of each field.
        within: name of the object that holds the fields, with a dot.

    Raises:
        ModelError: a field has a value of another type; the message names the first.
    """
    for name, value in raw.items():
        wanted = types.get(name, "any")
        words, fits = _JSON_TYPES[wanted.removesuffix("?")]
        if value is None and wanted.endswith("?"):
            continue
        if not fits(value):
            nothing = " or null" if wanted.endswith("?") else ""
            raise ModelError(f"{within}{name} must be {words}{nothing}, not {shown(value)}")


def shown(value: Any) -> str:
    """Return a value as JSON, shortened for a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
