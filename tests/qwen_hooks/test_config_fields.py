"""Which fields of config.json decide anything: derived from transformers, not from our tables."""

import ast
import copy
import importlib
import inspect
import json
import logging
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    Qwen2Config,
    modeling_rope_utils,
)
from transformers.models.qwen2 import modeling_qwen2

from qwen_hooks import FAMILIES, ModelError, QwenConfig
from qwen_hooks.config_fields import (
    CLASS_INTERNALS,
    ONLY_DEFAULT,
    ROPE_FIELDS,
    TRANSLATED,
    WITHOUT_EFFECT,
)
from tests.qwen_hooks.test_config import RAW

PUBLISHED = json.loads((Path(__file__).parent / "published_configs.json").read_bytes())
"""Configurations written after those that their authors publish on the hub."""

READERS = (
    "transformers.modeling_utils",
    "transformers.masking_utils",
    "transformers.modeling_rope_utils",
    "transformers.cache_utils",
    "transformers.generation.utils",
    "transformers.integrations.sdpa_attention",
    "transformers.utils.generic",
    "transformers.utils.output_capturing",
)
"""What computes any family in torch, beside its own model and its configuration's classes."""


def known(family: str) -> set[str]:
    """Fields that our tables have for a family."""
    own = FAMILIES[family]
    tables = (TRANSLATED, ONLY_DEFAULT, CLASS_INTERNALS, WITHOUT_EFFECT)
    return {*own.translated, *own.only_default}.union(*tables)


def is_config(node: ast.expr, of_class: bool) -> bool:
    """Whether an expression is a model's configuration: `config`, `self.config`, ..."""
    if isinstance(node, ast.Name):
        return node.id.endswith("config") or (of_class and node.id == "self")
    if isinstance(node, ast.Attribute):
        return node.attr == "config"
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "get_text_config"
    )


OTHER_CONFIGS = {
    "cache_config",
    "compile_config",
    "generation_config",
    "kernel_config",
    "load_config",
    "per_layer_config",
}
"""Variables that hold something else than a model's configuration."""


def names_read(source: str, of_class: bool) -> set[str]:
    """Attributes of a configuration that Python code reads, by name or with getattr and hasattr."""
    names = set()
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner, name = node.value, node.attr
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr")
            and isinstance(node.args[1], ast.Constant)
        ):
            owner, name = node.args[0], node.args[1].value
        else:
            continue
        other = isinstance(owner, ast.Name) and owner.id in OTHER_CONFIGS
        if is_config(owner, of_class) and not other:
            names.add(name)
    return names


def is_field(name: str, config: type) -> bool:
    method = callable(getattr(config, name, None)) or name == "setter"
    return not name.startswith("__") and not method


def relevant_fields(family: str = "qwen2") -> set[str]:
    """Fields that transformers declares for a family, or that its code for it reads."""
    config = CONFIG_MAPPING[family]
    names = set(config().to_dict()) - {"transformers_version"}  # of no effect on the newest
    for module in (f"transformers.models.{family}.modeling_{family}", *READERS):
        try:
            names |= names_read(inspect.getsource(importlib.import_module(module)), False)
        except ModuleNotFoundError:  # of other versions
            assert module == "transformers.utils.output_capturing"
    for kind in config.__mro__:
        if kind.__module__.startswith("transformers"):
            names |= names_read(inspect.getsource(kind), True)
    return {name for name in names if is_field(name, config)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_that_transformers_reads_is_known(family):
    relevant = relevant_fields(family)
    assert {"layer_types", "rms_norm_eps", "rope_theta"} <= relevant
    assert sorted(relevant - known(family)) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_no_field_stands_in_two_tables(family):
    own = FAMILIES[family]
    tables = [TRANSLATED, ONLY_DEFAULT, CLASS_INTERNALS, WITHOUT_EFFECT]
    assert sum(map(len, [*tables, own.translated, own.only_default])) == len(known(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_source_tells_what_a_run_reads(family):
    """A configuration that writes down who asks for what, against the names from the source."""
    asked = set()

    class Watched(CONFIG_MAPPING[family]):
        def __getattribute__(self, name):
            asked.add(name)
            return super().__getattribute__(name)

    small = RAW | {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 4}
    small |= {"max_window_layers": 1, "rope_scaling": {"type": "yarn", "factor": 2.0}}
    small = {name: value for name, value in small.items() if name in known(family)}
    config = Watched(**{k: v for k, v in small.items() if k != "model_type"})
    config._attn_implementation = "eager"
    model = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]](config).eval()
    with torch.inference_mode():
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False)
    # The configuration of generation has a file of its own; these are dropped from this one.
    asked -= GenerationConfig().to_dict().keys()
    asked = {name for name in asked if is_field(name, CONFIG_MAPPING[family])}
    assert {"rms_norm_eps", "rope_parameters"} <= asked
    assert sorted(asked - known(family)) == []


@pytest.mark.parametrize("rope_type", ROPE_FIELDS)
def test_every_field_of_rope_that_transformers_reads_is_known(rope_type):
    compute = modeling_rope_utils.ROPE_INIT_FUNCTIONS.get(
        rope_type, modeling_qwen2.Qwen2RotaryEmbedding.compute_default_rope_parameters
    )
    names = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(compute)))):
        if isinstance(node, ast.Subscript):
            owner, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            owner, key = node.func.value, node.args[0]
        else:
            continue
        if isinstance(key, ast.Constant) and "rope_parameters" in ast.unparse(owner):
            names.add(key.value)
    assert "rope_theta" in names
    assert sorted(names - {*ROPE_FIELDS[rope_type], "partial_rotary_factor"}) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_class(family):
    theirs = CONFIG_MAPPING[family]().to_dict()
    for name, value in FAMILIES[family].defaults.items():
        default = theirs[name] if theirs[name] != theirs["num_attention_heads"] else value
        assert default == value, name


WRONG = [None, True, 0, 1.5, "x", [], ["x"], [1], [1.5], {}, {"a": 1}]


def test_types_that_transformers_refuses_are_refused_by_name():
    """So that no wrong type of config.json is told as a fault of what reads it next."""
    refused, wrong = 0, []
    for name in sorted(Qwen2Config().to_dict().keys() - {"model_type"}):
        for value in copy.deepcopy(WRONG):  # transformers changes what it is given
            try:
                Qwen2Config(**{k: v for k, v in (RAW | {name: value}).items() if k != "model_type"})
            except Exception:  # of many kinds
                refused += 1
            else:
                continue
            try:
                QwenConfig.from_dict(RAW | {name: value})
            except ModelError as error:
                if name in str(error):
                    continue
                wrong.append((name, value, str(error)))
            else:
                wrong.append((name, value, "taken"))
    assert refused
    assert not wrong


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_configurations_are_read_as_transformers_reads_them(model, tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[model]))
    with caplog.at_level(logging.INFO):
        ours = QwenConfig.from_pretrained(tmp_path)
    theirs = Qwen2Config.from_pretrained(tmp_path)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                 "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
                 "rms_norm_eps", "tie_word_embeddings", "sliding_window"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert list(ours.layer_types) == theirs.layer_types
    assert ours.head_dim == theirs.hidden_size // theirs.num_attention_heads
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope.rope_type == theirs.rope_parameters["rope_type"]
    assert ours.rope.factor == theirs.rope_parameters.get("factor", 1)
    assert ours.eos_token_ids == (theirs.eos_token_id,)


@pytest.mark.parametrize(
    ("model", "unread"),
    [
        ("Qwen2.5-0.5B", {"use_mrope", "transformers_version"}),
        ("fine-tune by Unsloth", {"unsloth_fixed", "unsloth_version", "transformers_version"}),
        ("Qwen2.5-7B-Instruct-1M", {"dual_chunk_attention_config", "transformers_version"}),
    ],
)
def test_fields_that_nothing_reads_are_named_in_one_line(model, unread, tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[model]))
    with caplog.at_level(logging.INFO):
        QwenConfig.from_pretrained(tmp_path)
    (record,) = caplog.records
    named = set(record.getMessage().rpartition(": ")[2].split(", "))
    assert named == unread


def test_a_file_without_unread_fields_is_silent(tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    with caplog.at_level(logging.INFO):
        QwenConfig.from_pretrained(tmp_path)
    assert not caplog.records
