"""What the torch model computes at every hook point, by module hooks or from its own parts."""

from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from qwen_hooks import QwenConfig
from qwen_hooks.hook_points import Site, point_shape, sites


def torch_values(
    model: PreTrainedModel, config: QwenConfig, token_ids: list[int]
) -> dict[str, np.ndarray]:
    """One sequence, unpadded: `[S, ...]` float32 by canonical name.

    The model must be loaded with eager attention, which gives its pattern.
    """
    found: dict[str, torch.Tensor] = {}
    handles = []
    for site in sites(config):
        path = site.point.hugging_face
        if path is None:
            continue
        path, is_input = path.format(i=site.layer), path.endswith(".input")
        module = model.get_submodule(path.removesuffix(".input"))

        def keep(
            module: object, inputs: Any, output: Any = None, *, name=site.name, is_input=is_input
        ) -> None:
            value = inputs if is_input else output
            found[name] = value[0] if isinstance(value, tuple) else value

        register = module.register_forward_pre_hook if is_input else module.register_forward_hook
        handles.append(register(keep))
    input_ids = torch.tensor([token_ids])
    with torch.inference_mode():
        output = model(input_ids, use_cache=False, output_attentions=True)
        patterns, found["logits.capped"] = output.attentions, output.logits
        if (
            config.embedding_scale != 1
        ):  # by the module itself in some versions, behind it in others
            found["embed_tokens"] = found["layers.0.resid_pre"]
        positions = torch.arange(len(token_ids))[None]
        cos, sin = model.model.rotary_emb(found["embed_tokens"], positions)
        for layer in range(config.num_hidden_layers):
            prefix = f"layers.{layer}.attention"
            q, k = (
                found[f"{prefix}.{key}"]
                .view(1, len(token_ids), -1, config.head_dim)
                .transpose(1, 2)
                for key in (("q_norm", "k_norm") if config.qk_norm else "qk")
            )
            rotated = apply_rotary_pos_emb(q, k, cos, sin)
            for key, value in zip("qk", rotated, strict=True):
                found[f"{prefix}.{key}_rotated"] = value.transpose(1, 2)
            found[f"{prefix}.pattern"] = patterns[layer].transpose(1, 2)
    for handle in handles:
        handle.remove()
    read_by_norms: dict[str, Any] = {"norm": f"layer_{config.num_hidden_layers - 1}"}
    paths = {}
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}"
        read_by_norms[f"{prefix}.input_layernorm"] = f"{prefix}.resid_pre"
        if config.post_norms:
            read_by_norms[f"{prefix}.pre_feedforward_layernorm"] = f"{prefix}.resid_mid"
            read_by_norms[f"{prefix}.attention.post_norm"] = f"{prefix}.attention.output"
            read_by_norms[f"{prefix}.mlp.post_norm"] = f"{prefix}.mlp.output"
            paths[f"{prefix}.attention.post_norm"] = f"{prefix}.post_attention_layernorm"
            paths[f"{prefix}.mlp.post_norm"] = f"{prefix}.post_feedforward_layernorm"
        else:
            read_by_norms[f"{prefix}.post_attention_layernorm"] = f"{prefix}.resid_mid"
        if config.qk_norm:
            for key in "qk":
                prefix = f"layers.{layer}.attention.{key}"
                heads = found[prefix].unflatten(-1, (-1, config.head_dim))
                read_by_norms[f"{prefix}_norm"] = heads
    for name, read in read_by_norms.items():
        path = paths.get(name, name.replace(".attention.", ".self_attn."))
        norm = model.get_submodule(f"model.{path}")
        neutral = torch.zeros_like if config.norms_add_one else torch.ones_like
        unweighted = {"weight": neutral(norm.weight)}
        value = found[read] if isinstance(read, str) else read
        found[f"{name}.normalized"] = functional_call(norm, unweighted, value).detach()
    shaped = {}
    for site in sites(config):
        shape = _shape(site, config, len(token_ids))
        shaped[site.name] = found[site.name].float().numpy().reshape(len(token_ids), *shape)
    return shaped


def _shape(site: Site, config: QwenConfig, keys: int) -> tuple[int, ...]:
    shape = point_shape(site.point, config, keys)
    assert None not in shape
    return tuple(size for size in shape if size is not None)


def load_eager(folder) -> PreTrainedModel:
    """The torch model of a checkpoint, with attention that gives its pattern."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
