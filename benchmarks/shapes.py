"""Shapes of published models, and random checkpoints in them, for benchmarks and tests.

Checkpoints are written tensor by tensor with torch's seeded generator, in Hugging Face's format, so
that transformers and this package load the same files. The shapes alone need no torch.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_hooks import QwenConfig, RopeConfig
from qwen_hooks.parameters import expected_tensors

if TYPE_CHECKING:
    import torch

QWEN_05B = QwenConfig(
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4_864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    rope=RopeConfig(theta=1_000_000.0),
    eos_token_ids=(151_643,),
)
"""Qwen2.5-0.5B."""

QWEN_15B = QwenConfig(
    vocab_size=151_936,
    hidden_size=1_536,
    intermediate_size=8_960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    rope=RopeConfig(theta=1_000_000.0),
    eos_token_ids=(151_643,),
)
"""Qwen2.5-1.5B."""

QWEN_3B = QwenConfig(
    vocab_size=151_936,
    hidden_size=2_048,
    intermediate_size=11_008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    rope=RopeConfig(theta=1_000_000.0),
    eos_token_ids=(151_643,),
)
"""Qwen2.5-3B."""

QWEN_7B = QwenConfig(
    vocab_size=152_064,
    hidden_size=3_584,
    intermediate_size=18_944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    tie_word_embeddings=False,
    rope=RopeConfig(theta=1_000_000.0),
    eos_token_ids=(151_643,),
)
"""Qwen2.5-7B."""

TINY = QwenConfig(
    vocab_size=512,
    hidden_size=112,
    intermediate_size=304,
    num_hidden_layers=8,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
"""For trying a benchmark."""

SHAPES = {"0.5B": QWEN_05B, "1.5B": QWEN_15B, "3B": QWEN_3B, "7B": QWEN_7B, "tiny": TINY}
"""By the name that the benchmarks' flags take."""


def write_random_checkpoint(folder: Path, config: QwenConfig, dtype: "torch.dtype") -> None:
    """A checkpoint of normal weights (standard deviation 0.02) and norms of 1, seed 0."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in expected_tensors(config).items():
        if len(tensor.shape) == 1 and name.endswith("norm.weight"):
            tensors[name] = torch.ones(tensor.shape, dtype=dtype)
        else:
            tensors[name] = (0.02 * torch.randn(tensor.shape, generator=generator)).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
