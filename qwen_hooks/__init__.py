"""Qwen2 and Qwen2.5 in Flax, with the activations of chosen layers.

Read in this order: `model`, `decoder_layer`, `attention`, `layers`, `rope`, `kv_cache`; then
`config`, `weight_names`, `safetensors_file`, `checkpoint`.
"""

from qwen_hooks.checkpoint import Checkpoint, find_checkpoint, load_params, save_pretrained
from qwen_hooks.config import QwenConfig, RopeConfig
from qwen_hooks.decoder_layer import QwenAttention, QwenDecoderLayer
from qwen_hooks.errors import ModelError
from qwen_hooks.kv_cache import KVCache
from qwen_hooks.layers import QwenMLP, RMSNorm
from qwen_hooks.model import QwenModelWithActivations, create_model_with_hooks

__all__ = [
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
    "save_pretrained",
]
