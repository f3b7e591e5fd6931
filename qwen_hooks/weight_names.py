"""Which Hugging Face tensor is which parameter: one table, read in both directions.

Hugging Face keeps linear weights as `[out, in]`; here they are `[in, out]`.
"""

import dataclasses
import re

from qwen_hooks.config import QwenConfig

ParamPath = tuple[str, ...]

STACKED = "layers"
"""Where the parameters of scanned blocks lie, `[L, ...]` each; unrolled ones in `layers_0` ..."""

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""Tensors that old checkpoints hold; here as in transformers config.json alone decides them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedTensor:
    """A tensor that the checkpoint must hold.

    Attributes:
        path: of the parameter below `params`.
        shape: in the checkpoint.
        transposed: the parameter is the tensor's transpose.
    """

    path: ParamPath
    shape: tuple[int, ...]
    transposed: bool = False


def expected_tensors(config: QwenConfig) -> dict[str, ExpectedTensor]:
    """Every tensor of a checkpoint of this shape, by its Hugging Face name."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    linear = {  # name within the block: out, in, bias
        "self_attn.q_proj": (queries, D, True),
        "self_attn.k_proj": (keys, D, True),
        "self_attn.v_proj": (keys, D, True),
        "self_attn.o_proj": (D, queries, False),
        "mlp.gate_proj": (F, D, False),
        "mlp.up_proj": (F, D, False),
        "mlp.down_proj": (D, F, False),
    }
    tensors = {
        EMBEDDING: ExpectedTensor(path=("embed_tokens", "weight"), shape=(V, D)),
        "model.norm.weight": ExpectedTensor(path=("norm", "weight"), shape=(D,)),
    }
    for i in range(config.num_hidden_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = ExpectedTensor(
                path=(f"layers_{i}", norm, "weight"), shape=(D,)
            )
        for name, (fan_out, fan_in, bias) in linear.items():
            path = (f"layers_{i}", *name.split("."))
            tensors[f"model.layers.{i}.{name}.weight"] = ExpectedTensor(
                path=(*path, "kernel"), shape=(fan_out, fan_in), transposed=True
            )
            if bias:
                tensors[f"model.layers.{i}.{name}.bias"] = ExpectedTensor(
                    path=(*path, "bias"), shape=(fan_out,)
                )
    if not config.tie_word_embeddings:
        tensors[HEAD] = ExpectedTensor(path=("lm_head", "kernel"), shape=(V, D), transposed=True)
    return tensors


def is_ignored(name: str) -> bool:
    """Whether a tensor may stand in the checkpoint though no parameter is made of it."""
    return COMPUTED.fullmatch(name) is not None


def stacked_path(path: ParamPath) -> ParamPath:
    """The path of a parameter where blocks are scanned."""
    return (STACKED, *path[1:]) if path[0].startswith("layers_") else path
