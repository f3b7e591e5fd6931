"""Language models in Flax, with the activations of chosen hook points.

Read in this order: `model`, `decoder_layer`, `attention`, `layers`, `rope`, `kv_cache`; then
`config`, `families`, `parameters`, `hook_point_table`, `checkpoint`. Importing the package imports
nothing else; a name is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_hooks.checkpoint import Checkpoint, find_checkpoint, load_params, save_pretrained
    from qwen_hooks.config import QwenConfig, RopeConfig
    from qwen_hooks.create_model import create_model_with_hooks
    from qwen_hooks.decoder_layer import QwenAttention, QwenDecoderLayer
    from qwen_hooks.errors import ModelError
    from qwen_hooks.families import FAMILIES
    from qwen_hooks.kv_cache import KVCache
    from qwen_hooks.layers import QwenMLP, RMSNorm
    from qwen_hooks.model import QwenModelWithActivations
    from qwen_hooks.orthogonal_weights import orthogonalize

_MODULES = {
    "FAMILIES": "families",
    "Checkpoint": "checkpoint",
    "KVCache": "kv_cache",
    "ModelError": "errors",
    "QwenAttention": "decoder_layer",
    "QwenConfig": "config",
    "QwenDecoderLayer": "decoder_layer",
    "QwenMLP": "layers",
    "QwenModelWithActivations": "model",
    "RMSNorm": "layers",
    "RopeConfig": "config",
    "create_model_with_hooks": "create_model",
    "find_checkpoint": "checkpoint",
    "load_params": "checkpoint",
    "orthogonalize": "orthogonal_weights",
    "save_pretrained": "checkpoint",
}

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "KVCache",
    "ModelError",
    "QwenAttention",
    "QwenConfig",
    "QwenDecoderLayer",
    "QwenMLP",
    "QwenModelWithActivations",
    "RMSNorm",
    "RopeConfig",
    "create_model_with_hooks",
    "find_checkpoint",
    "load_params",
    "orthogonalize",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that `hook_point_table` can be read without JAX."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
