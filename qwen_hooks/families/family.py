"""The description of a model family: how its config.json is read, and what it computes.

`config` reads the fields that all families share; a family adds its own, with the defaults of
transformers' class, and says which switches of `QwenConfig` they set.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from qwen_hooks.errors import ModelError

LAYER_TYPES = ("full_attention", "sliding_attention")

Fields = Mapping[str, Any]


def _nothing(fields: Fields) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models.

    Attributes:
        model_type: `model_type` in config.json.
        architecture: transformers' class with a language-model head.
        title: the models that belong to it.
        defaults: of fields that all families have and whose default differs between them.
        translated: JSON types of its own fields that `read` reads; see `config_fields`.
        only_default: its own fields that change what is computed, with the values understood.
        rope_types: kinds of RoPE that it is computed with.
        read: arguments of `QwenConfig` that its own fields give.
        write: its own fields of config.json, of a `QwenConfig`.
    """

    model_type: str
    architecture: str
    title: str
    defaults: Fields
    translated: Mapping[str, str] = dataclasses.field(default_factory=dict)
    only_default: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    rope_types: tuple[str, ...] = ("default", "linear", "yarn", "llama3")
    read: Callable[[Fields], dict[str, Any]] = _nothing
    write: Callable[[Any], dict[str, Any]]


SLIDING_FIELDS = {
    "use_sliding_window": "bool",
    "sliding_window": "int?",
    "max_window_layers": "int",
    "layer_types": "texts?",
}
"""Fields of families whose config.json says which blocks have a sliding window."""


def read_sliding(fields: Fields) -> dict[str, Any]:
    """Return `sliding_window` and `layer_types`, as Qwen2 and Qwen3 write them.

    Raises:
        ModelError: types that do not fit the number of layers, or that are not computed.
    """
    window = fields.get("sliding_window", 4096) if fields.get("use_sliding_window") else None
    types, layers = fields.get("layer_types"), fields["num_hidden_layers"]
    if types is None and window is not None:
        first = fields.get("max_window_layers", 28)
        types = [LAYER_TYPES[i >= first] for i in range(min(layers, MOST_LAYERS))]
    return {"sliding_window": window, "layer_types": check_layer_types(types, layers)}


def check_layer_types(types: list[str] | None, layers: int) -> tuple[str, ...]:
    """Return the types of all blocks; without any in config.json, all are the same.

    Raises:
        ModelError: not one type a block, or a type that is not computed.
    """
    if types is None:
        return ()
    if len(types) != layers:
        raise ModelError(f"layer_types has {len(types)} entries for {layers} layers")
    unknown = sorted(set(types) - set(LAYER_TYPES))
    if unknown:
        raise ModelError(f"layer_types {unknown} are not supported; {', '.join(LAYER_TYPES)} are")
    return tuple(types)


def write_sliding(config: Any) -> dict[str, Any]:
    """Return the fields of `SLIDING_FIELDS` that every transformers version reads."""
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": list(config.layer_types),
    }


MOST_LAYERS = 10_000
"""More than any model has: a damaged number shall not fill the memory."""
