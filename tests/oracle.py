"""Hugging Face's torch model as the judge: checkpoints it writes, rows it computes, the measure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


def make_checkpoint(
    folder: Path,
    *,
    stored: torch.dtype = torch.float32,
    shard: str = "5GB",
    seed: int = 0,
    **shape: Any,
) -> Path:
    """A model that transformers wrote, with biases and norm weights far from 0 and 1.

    Args:
        folder: to write to.
        stored: dtype of the weights in the files.
        shard: size above which the weights are split over files.
        seed: of the weights.
        **shape: of the family's configuration, over a small default; `model_type`: qwen2.
    """
    small = {
        "vocab_size": 211,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    shape = {"model_type": "qwen2"} | small | shape
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.5 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * 1.5 * parameter.shape[1] ** -0.5)
    model.generation_config.eos_token_id = None
    model.to(stored).save_pretrained(folder, max_shard_size=shard)  # pyright: ignore
    return folder


def load_torch(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The torch model of a checkpoint.

    torch's own attention kernel knows no soft cap, and transformers 5.0 takes it all the same.
    """
    softcaps = json.loads((folder / "config.json").read_text()).get("attn_logit_softcapping")
    how = {"attn_implementation": "eager"} if softcaps else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **how).eval()


def torch_rows(model: PreTrainedModel, token_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """One sequence, unpadded: logits `[S, V]` and the blocks' outputs `[L, S, D]`, float32."""
    outputs: list[np.ndarray] = []

    def keep(module: object, inputs: object, output: torch.Tensor) -> None:
        outputs.append(output[0].float().numpy())

    hooks = [layer.register_forward_hook(keep) for layer in model.model.layers]
    with torch.inference_mode():
        logits = model(torch.tensor([token_ids]), use_cache=False).logits[0].float().numpy()
    for hook in hooks:
        hook.remove()
    return logits, np.stack(outputs)


def row_errors(ours: Any, theirs: Any) -> np.ndarray:
    """max|a - b| / max|b| of each row (the last axis), float64."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max(axis=-1) / np.abs(b).max(axis=-1)


def row_error(ours: Any, theirs: Any) -> float:
    """The largest `row_errors`."""
    return float(row_errors(ours, theirs).max())


def random_tokens(count: int, vocab_size: int = 211, seed: int = 0) -> list[int]:
    """Tokens of a seed."""
    return np.random.default_rng(seed).integers(vocab_size, size=count).tolist()
