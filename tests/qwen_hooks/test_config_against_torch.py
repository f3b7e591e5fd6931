"""Any config.json: what is computed equals Hugging Face's torch model, or the field is refused.

FAULTS=all pytest tests/qwen_hooks/test_config_against_torch.py     every value and many pairs
"""

import copy
import json
import os
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

from qwen_hooks import Checkpoint, ModelError, create_model_with_hooks, load_params
from tests.oracle import random_tokens, row_error, torch_rows
from tests.qwen_hooks.test_config_fields import relevant_fields

EVERYTHING = os.environ.get("FAULTS") == "all"
PAIRS = 150

SMALL = {
    "model_type": "qwen2",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 1000.0,
    "rms_norm_eps": 1e-6,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
LINEAR = {"rope_type": "linear", "factor": 3.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 50.0}}
FULL, SLIDES = "full_attention", "sliding_attention"

VALUES: dict[str, list[Any]] = {
    "vocab_size": [64, "61", 61.0],
    "hidden_size": [48, 33],
    "intermediate_size": [24],
    "num_hidden_layers": [1, 3],
    "num_attention_heads": [2, 8, 3],
    "num_key_value_heads": [1, 4, None, 3, 0],
    "head_dim": [16, 6, None, 7, 0],
    "hidden_act": ["gelu", "relu", "silu", "swish", None],
    "max_position_embeddings": [8, 4096, None],
    "rms_norm_eps": [1e-2, 0.5, 0.0, 1, "1e-6", -1.0, None],
    "tie_word_embeddings": [True, "false", None],
    "is_causal": [False, True, None, 0],
    "is_encoder_decoder": [True],
    "attention_dropout": [0.5, 0],
    "use_sliding_window": [True, "false", None],
    "sliding_window": [5, None, 0],
    "max_window_layers": [0, 1, None],
    "layer_types": [[FULL, FULL], [SLIDES, FULL], ["chunked_attention", FULL], ["attention"] * 2],
    "rope_theta": [10.0, 1e6, 10_000, 1.0, None, "x", 0],
    "partial_rotary_factor": [0.5, 1.0, None],
    "original_max_position_embeddings": [16, 8],
    "rope_scaling": [
        None,
        {},
        LINEAR,
        YARN,
        {"type": "linear", "factor": 2},
        {"factor": 4.0},
        {"rope_type": "linear"},
        {"rope_type": "yarn", "factor": 2.0},
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16},
        {"rope_type": "yarn"},
        YARN | {"rope_theta": 500.0},
        YARN | {"attention_factor": 0.7},
        YARN | {"beta_fast": 8, "beta_slow": 2},
        YARN | {"beta_fast": None, "beta_slow": None},
        YARN | {"mscale": 0.8, "mscale_all_dim": 0.5},
        YARN | {"mscale": 0.8},
        YARN | {"truncate": False},
        YARN | {"truncate": None},
        YARN | {"original_max_position_embeddings": None},
        YARN | {"mrope_section": [1, 1, 2]},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "proportional", "partial_rotary_factor": 0.5},
        {"rope_type": "mrope"},
        {"rope_type": None},
        NESTED,
    ],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 77.0},
        {"rope_type": "default"},
        {"rope_theta": 77.0},
        LINEAR | {"rope_theta": 77.0},
        YARN | {"rope_theta": 77.0},
        {"rope_theta": None},
        NESTED,
        NESTED | {SLIDES: {"rope_type": "default", "rope_theta": 50.0}},
        {SLIDES: {"rope_theta": 50.0}},
        {FULL: None},
    ],
    "per_layer_config": [{"1": {"num_key_value_heads": 4}}, {"0": {"skip": ["mlp"]}}, {}],
    "quantization_config": [{"quant_method": "fp8"}, {}],
    "attention_chunk_size": [4],
    "attribute_map": [{"hidden_size": "intermediate_size"}],
    "text_config": [{"hidden_size": 16}],
    "eos_token_id": [3, [3, 4], "3", 3.0, True],
    "pad_token_id": [5, "x"],
    "bos_token_id": [0],
    "dtype": ["bfloat16", "float16", "x"],
    "torch_dtype": ["bfloat16"],
    "use_cache": [False, "x"],
    "initializer_range": [0.5],
    "output_hidden_states": [True],
    "output_attentions": [True],
    "return_dict": [False],
    "chunk_size_feed_forward": [4],
    "gradient_checkpointing": [True],
    "tie_last_hidden_states": [True],
    "architectures": [["Qwen2ForSequenceClassification"]],
    "id2label": [{"0": "a", "1": "b", "2": "c"}],
    "label2id": [{"a": 0, "b": 1}],
    "problem_type": ["regression"],
    "_attn_implementation": ["sdpa"],
}
"""Values, most of them no default, for every field that transformers declares for the class."""

COMBINED: list[dict[str, Any]] = [
    SLIDING,
    SLIDING | {"sliding_window": None},
    {"use_sliding_window": True, "max_window_layers": 0},
    SLIDING | {"layer_types": [SLIDES, FULL]},
    SLIDING | {"is_causal": False},
    SLIDING | {"rope_parameters": NESTED | {SLIDES: {"rope_theta": 50.0}}},
    {"rope_scaling": YARN, "original_max_position_embeddings": 8},
    {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    {"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"rope_theta": 1000.0}},
    {"rope_parameters": LINEAR, "partial_rotary_factor": 0.5},
]
"""Fields that mean something only together."""

MUST_EQUAL: list[dict[str, Any]] = [
    {},
    {"head_dim": 16},
    {"rms_norm_eps": 0.5},
    {"rope_scaling": LINEAR},
    {"rope_scaling": YARN | {"attention_factor": 0.7}},
    {"rope_scaling": YARN, "original_max_position_embeddings": 8},
    {"rope_parameters": {"rope_theta": 77.0}},
    SLIDING,
    SLIDING | {"layer_types": [SLIDES, FULL]},
    {"tie_word_embeddings": True},
]
"""What is not refused, so that this test cannot pass by refusing all."""

MUST_REFUSE: list[dict[str, Any]] = [
    {"is_causal": False},
    {"is_causal": None},
    {"rope_parameters": {SLIDES: {"rope_theta": 50.0}}},
    SLIDING | {"is_causal": False},
    {"per_layer_config": {"1": {"num_key_value_heads": 4}}},
    {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    {"tie_word_embeddings": "false"},
    {"hidden_act": "gelu"},
    {"eos_token_id": "3"},
    {"partial_rotary_factor": 0.5},
]

FAMILIES: dict[str, dict[str, list[Any]]] = {
    "qwen3": {"attention_bias": [True, "x", None], "head_dim": [16, 6, 7, 0]},
    "llama": {
        "attention_bias": [True, None],
        "mlp_bias": [True, 1],
        "pretraining_tp": [2, None],
        "sliding_window": [5],
        "layer_types": [[FULL, FULL], [SLIDES, FULL]],
        "rope_scaling": [
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 16},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
            {"rope_type": "llama3", "factor": 8.0},
            {"rope_type": "dynamic", "factor": 2.0},
        ],
    },
    "gemma2": {
        "attention_bias": [True, None],
        "head_dim": [16, 6, 7],
        "query_pre_attn_scalar": [8, 1, 0, 2.5, None],
        "attn_logit_softcapping": [5.0, None, 0.0, 7],
        "final_logit_softcapping": [3.0, None, 0.0],
        "sliding_window": [5, None, 0],
        "layer_types": [[FULL, SLIDES], [FULL, FULL], [FULL]],
        "hidden_activation": ["gelu", "silu", None],
        "hidden_act": ["silu"],
        "use_bidirectional_attention": [True, False],
        "tie_word_embeddings": [False],
    },
}  # fmt: skip
"""Values of the fields that a family has of its own, or with another meaning."""

BASES = {"gemma2": {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 24}}
BASES["gemma2"]["pad_token_id"] = None
OF_FAMILIES = [
    {"model_type": family, "head_dim": 8} | BASES.get(family, {}) | {name: value}
    for family, fields in FAMILIES.items()
    for name, values in (VALUES | fields).items()
    for value in values
]

MUST_EQUAL += [{"model_type": "qwen3", "head_dim": 12}, {"model_type": "llama", "mlp_bias": True}]
MUST_EQUAL += [{"model_type": "gemma2", **BASES["gemma2"]}]
MUST_REFUSE += [
    {"model_type": "llama", "sliding_window": 5},
    {"model_type": "gemma2", **BASES["gemma2"], "use_bidirectional_attention": True},
]

SINGLES = [{name: value} for name, values in VALUES.items() for value in values]


def many_pairs() -> list[dict[str, Any]]:
    """Pairs of values of different fields, of a seed."""
    pick = random.Random(0)
    pairs = []
    while len(pairs) < PAIRS:
        one, other = pick.sample(SINGLES, 2)
        if one.keys() != other.keys():
            pairs.append(one | other)
    return pairs


def write(folder, change: dict[str, Any]) -> bool:
    """A checkpoint with this config.json; False if transformers makes no model of it."""
    folder.mkdir(exist_ok=True)
    raw = SMALL | change
    raw = {name: value for name, value in raw.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(raw))
    try:
        config = AutoConfig.from_pretrained(folder)
        config.dtype = None
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    except Exception:  # of many kinds: transformers refuses in its own ways
        return False
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        scale = 1.5 * tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.5
        tensors[name] = noise * scale + (1 if "norm" in name else 0)
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    return True


def torchs_rows(folder) -> tuple[np.ndarray, np.ndarray] | None:
    """Logits and the blocks' outputs of torch; None if it cannot compute this."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        model.config.return_dict = True
        return torch_rows(model.eval(), TOKENS)
    except Exception:  # of many kinds
        return None


TOKENS = random_tokens(24, SMALL["vocab_size"])


def our_rows(folder) -> tuple[Any, Any]:
    checkpoint = Checkpoint.open(folder)
    layers = list(range(checkpoint.config.num_hidden_layers))
    model = create_model_with_hooks(checkpoint.config, layers, jnp.float32)
    params = load_params(checkpoint, jnp.float32)
    run = jax.jit(lambda p, ids: model.apply(p, ids, return_activations=True))
    logits, captured = run(params, jnp.array([TOKENS]))
    return logits[0], np.stack([captured[f"layer_{i}"][0] for i in layers])


def outcome(folder, change: dict[str, Any]) -> str:
    """`equal`, `refused`, `computed` where torch cannot; fails where the two differ."""
    written = write(folder, copy.deepcopy(change))
    if not written:
        try:
            Checkpoint.open(folder)
        except ModelError:
            return "refused"
        raise AssertionError(f"no transformers model, and not refused: {change}")
    try:
        ours = our_rows(folder)
    except ModelError as error:
        if not any(name in str(error) for name in names_in(change)):
            pytest.fail(f"{change} is refused, but not by name: {error}")
        return "refused"
    theirs = torchs_rows(folder)
    if theirs is None:
        return "computed"
    assert np.isfinite(theirs[0]).all()
    for a, b in zip(ours, theirs, strict=True):
        assert row_error(a, b) <= 1e-5, change
    return "equal"


def names_in(value: Any) -> list[str]:
    """Names of fields, of those in objects within too."""
    if not isinstance(value, dict):
        return []
    return [*value, *(name for inner in value.values() for name in names_in(inner))]


@pytest.mark.parametrize("change", MUST_EQUAL, ids=json.dumps)
def test_equal(change, tmp_path):
    assert outcome(tmp_path, change) == "equal"


@pytest.mark.parametrize("change", MUST_REFUSE, ids=json.dumps)
def test_refused(change, tmp_path):
    assert outcome(tmp_path, change) == "refused"


def test_every_field_of_the_class_has_values():
    declared = set(Qwen2Config().to_dict()) & relevant_fields()
    inferred = {"model_type", "_name_or_path"}
    assert declared - inferred <= VALUES.keys()


@pytest.mark.skipif(not EVERYTHING, reason="minutes; FAULTS=all")
def test_every_value_and_many_pairs(tmp_path):
    found, wrong = {}, []
    changes = [*SINGLES, *COMBINED, *OF_FAMILIES, *many_pairs()]
    for number, change in enumerate(changes):
        try:
            kind = outcome(tmp_path / str(number), change)
        except (
            Exception,
            pytest.fail.Exception,
        ) as error:  # a fault each: the list of them fails the test
            wrong.append(f"{json.dumps(change)}: {error!r}"[:500])
            continue
        found[kind] = found.get(kind, 0) + 1
    print(found)
    assert not wrong, "\n".join(wrong)
    assert found["equal"] > len(changes) // 5
