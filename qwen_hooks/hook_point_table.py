"""The table of all hook points.

`HOOK_POINTS` has the name, shape and meaning of each, in the order of computation. Names follow the
module path: `layers.6.mlp` is what the MLP of block 6 adds to the residual stream. The output of
block i is called `layer_i`, and `layers.i` means the same. TransformerLens' names
(`blocks.6.hook_mlp_out`) and Hugging Face's module paths (`model.layers.6.mlp`) are aliases.

`layer_i` is before the final norm, also for the last block; Hugging Face's `hidden_states[L]` is
after that norm.

This module needs the standard library alone, since `extraction` reads runs by these names.
"""

import re

from qwen_hooks.hook_point import HookPoint

HOOK_POINTS = (
    HookPoint(
        key="embed_tokens",
        name="embed_tokens",
        shape="D",
        definition="embeddings of the tokens, the residual stream before block 0",
        transformer_lens="hook_embed",
        hugging_face="model.embed_tokens",
        aliases=("token_embedding",),  # in KempnerForge
        stage="before",
    ),
    HookPoint(
        key="resid_pre",
        name="layers.{i}.resid_pre",
        shape="D",
        definition="residual stream that enters the block",
        transformer_lens="blocks.{i}.hook_resid_pre",
        hugging_face="model.layers.{i}.input",
    ),
    HookPoint(
        key="input_layernorm.normalized",
        name="layers.{i}.input_layernorm.normalized",
        shape="D",
        definition="resid_pre divided by its root mean square, before the norm's weight",
        transformer_lens="blocks.{i}.ln1.hook_normalized",
    ),
    HookPoint(
        key="input_layernorm",
        name="layers.{i}.input_layernorm",
        shape="D",
        definition="what attention reads: the normalized resid_pre times the norm's weight",
        transformer_lens="blocks.{i}.ln1.hook_out",
        hugging_face="model.layers.{i}.input_layernorm",
        aliases=("layers.{i}.attention_norm",),  # in KempnerForge
    ),
    HookPoint(
        key="q",
        name="layers.{i}.attention.q",
        shape="N H",
        definition="queries with their bias, before norm and rotation",
        transformer_lens="blocks.{i}.attn.hook_q",
        hugging_face="model.layers.{i}.self_attn.q_proj",
    ),
    HookPoint(
        key="k",
        name="layers.{i}.attention.k",
        shape="K H",
        definition="keys with their bias, before norm and rotation; one for each group of queries",
        transformer_lens="blocks.{i}.attn.hook_k",
        hugging_face="model.layers.{i}.self_attn.k_proj",
    ),
    HookPoint(
        key="v",
        name="layers.{i}.attention.v",
        shape="K H",
        definition="values with their bias",
        transformer_lens="blocks.{i}.attn.hook_v",
        hugging_face="model.layers.{i}.self_attn.v_proj",
    ),
    HookPoint(
        key="q_norm.normalized",
        name="layers.{i}.attention.q_norm.normalized",
        shape="N H",
        definition="each head's query divided by its root mean square, before the norm's weight",
        when="qk_norm",
    ),
    HookPoint(
        key="q_norm",
        name="layers.{i}.attention.q_norm",
        shape="N H",
        definition="normalized queries times the norm's weight, before the rotation",
        hugging_face="model.layers.{i}.self_attn.q_norm",
        when="qk_norm",
    ),
    HookPoint(
        key="k_norm.normalized",
        name="layers.{i}.attention.k_norm.normalized",
        shape="K H",
        definition="each head's key divided by its root mean square, before the norm's weight",
        when="qk_norm",
    ),
    HookPoint(
        key="k_norm",
        name="layers.{i}.attention.k_norm",
        shape="K H",
        definition="normalized keys times the norm's weight, before the rotation",
        hugging_face="model.layers.{i}.self_attn.k_norm",
        when="qk_norm",
    ),
    HookPoint(
        key="q_rotated",
        name="layers.{i}.attention.q_rotated",
        shape="N H",
        definition="queries after the rotation by their position (RoPE)",
        transformer_lens="blocks.{i}.attn.hook_rot_q",
    ),
    HookPoint(
        key="k_rotated",
        name="layers.{i}.attention.k_rotated",
        shape="K H",
        definition="keys after the rotation by their position (RoPE)",
        transformer_lens="blocks.{i}.attn.hook_rot_k",
    ),
    HookPoint(
        key="pattern",
        name="layers.{i}.attention.pattern",
        shape="N S",
        definition="softmax over the keys, float32 rounded to the model's dtype; it is computed"
        " beside the fused attention, and takes memory quadratic in the length",
        transformer_lens="blocks.{i}.attn.hook_pattern",
    ),
    HookPoint(
        key="z",
        name="layers.{i}.attention.z",
        shape="N H",
        definition="values mixed by the pattern, each head's own, before the output projection",
        transformer_lens="blocks.{i}.attn.hook_z",
        hugging_face="model.layers.{i}.self_attn.o_proj.input",
    ),
    HookPoint(
        key="attention",
        name="layers.{i}.attention",
        shape="D",
        definition="what attention adds to the residual stream",
        transformer_lens="blocks.{i}.hook_attn_out",
        hugging_face="model.layers.{i}.self_attn",
        when="not post_norms",
    ),
    HookPoint(
        key="attention.output",
        name="layers.{i}.attention.output",
        shape="D",
        definition="what attention gives, before the norm after it",
        hugging_face="model.layers.{i}.self_attn",
        when="post_norms",
    ),
    HookPoint(
        key="attention.normalized",
        name="layers.{i}.attention.post_norm.normalized",
        shape="D",
        definition="attention.output divided by its root mean square, before the norm's weight",
        transformer_lens="blocks.{i}.ln1_post.hook_normalized",
        when="post_norms",
    ),
    HookPoint(
        key="attention",
        name="layers.{i}.attention.post_norm",
        shape="D",
        definition="what attention adds to the residual stream",
        transformer_lens="blocks.{i}.hook_attn_out",
        hugging_face="model.layers.{i}.post_attention_layernorm",
        aliases=("layers.{i}.attention",),
        when="post_norms",
    ),
    HookPoint(
        key="resid_mid",
        name="layers.{i}.resid_mid",
        shape="D",
        definition="residual stream between attention and MLP",
        transformer_lens="blocks.{i}.hook_resid_mid",
        hugging_face="model.layers.{i}.post_attention_layernorm.input",
        when="not post_norms",
    ),
    HookPoint(
        key="resid_mid",
        name="layers.{i}.resid_mid",
        shape="D",
        definition="residual stream between attention and MLP",
        transformer_lens="blocks.{i}.hook_resid_mid",
        hugging_face="model.layers.{i}.pre_feedforward_layernorm.input",
        when="post_norms",
    ),
    HookPoint(
        key="mlp_norm.normalized",
        name="layers.{i}.post_attention_layernorm.normalized",
        shape="D",
        definition="resid_mid divided by its root mean square, before the norm's weight",
        transformer_lens="blocks.{i}.ln2.hook_normalized",
        aliases=("layers.{i}.mlp_norm.normalized",),
        when="not post_norms",
    ),
    HookPoint(
        key="mlp_norm",
        name="layers.{i}.post_attention_layernorm",
        shape="D",
        definition="what the MLP reads: the normalized resid_mid times the norm's weight",
        transformer_lens="blocks.{i}.ln2.hook_out",
        hugging_face="model.layers.{i}.post_attention_layernorm",
        aliases=("layers.{i}.mlp_norm",),  # in KempnerForge
        when="not post_norms",
    ),
    HookPoint(
        key="mlp_norm.normalized",
        name="layers.{i}.pre_feedforward_layernorm.normalized",
        shape="D",
        definition="resid_mid divided by its root mean square, before the norm's weight",
        transformer_lens="blocks.{i}.ln2.hook_normalized",
        aliases=("layers.{i}.mlp_norm.normalized",),
        when="post_norms",
    ),
    HookPoint(
        key="mlp_norm",
        name="layers.{i}.pre_feedforward_layernorm",
        shape="D",
        definition="what the MLP reads: the normalized resid_mid times the norm's weight",
        transformer_lens="blocks.{i}.ln2.hook_out",
        hugging_face="model.layers.{i}.pre_feedforward_layernorm",
        aliases=("layers.{i}.mlp_norm",),  # in KempnerForge
        when="post_norms",
    ),
    HookPoint(
        key="gate",
        name="layers.{i}.mlp.gate",
        shape="F",
        definition="the MLP's gate before its activation function",
        transformer_lens="blocks.{i}.mlp.hook_pre",
        hugging_face="model.layers.{i}.mlp.gate_proj",
    ),
    HookPoint(
        key="up",
        name="layers.{i}.mlp.up",
        shape="F",
        definition="what the gate is multiplied with",
        transformer_lens="blocks.{i}.mlp.hook_pre_linear",
        hugging_face="model.layers.{i}.mlp.up_proj",
    ),
    HookPoint(
        key="neurons",
        name="layers.{i}.mlp.neurons",
        shape="F",
        definition="activation(gate) * up: the MLP's neurons",
        transformer_lens="blocks.{i}.mlp.hook_post",
        hugging_face="model.layers.{i}.mlp.down_proj.input",
    ),
    HookPoint(
        key="mlp",
        name="layers.{i}.mlp",
        shape="D",
        definition="what the MLP adds to the residual stream",
        transformer_lens="blocks.{i}.hook_mlp_out",
        hugging_face="model.layers.{i}.mlp",
        when="not post_norms",
    ),
    HookPoint(
        key="mlp.output",
        name="layers.{i}.mlp.output",
        shape="D",
        definition="what the MLP gives, before the norm after it",
        hugging_face="model.layers.{i}.mlp",
        when="post_norms",
    ),
    HookPoint(
        key="mlp.normalized",
        name="layers.{i}.mlp.post_norm.normalized",
        shape="D",
        definition="mlp.output divided by its root mean square, before the norm's weight",
        transformer_lens="blocks.{i}.ln2_post.hook_normalized",
        when="post_norms",
    ),
    HookPoint(
        key="mlp",
        name="layers.{i}.mlp.post_norm",
        shape="D",
        definition="what the MLP adds to the residual stream",
        transformer_lens="blocks.{i}.hook_mlp_out",
        hugging_face="model.layers.{i}.post_feedforward_layernorm",
        aliases=("layers.{i}.mlp",),
        when="post_norms",
    ),
    HookPoint(
        key="resid_post",
        name="layer_{i}",
        shape="D",
        definition="residual stream that leaves the block",
        transformer_lens="blocks.{i}.hook_resid_post",
        hugging_face="model.layers.{i}",
        aliases=("layers.{i}", "layers.{i}.resid_post"),
    ),
    HookPoint(
        key="norm.normalized",
        name="norm.normalized",
        shape="D",
        definition="residual stream after the last block divided by its root mean square, before"
        " the final norm's weight",
        transformer_lens="ln_final.hook_normalized",
        stage="after",
    ),
    HookPoint(
        key="norm",
        name="norm",
        shape="D",
        definition="what the unembedding reads: norm.normalized times the final norm's weight",
        transformer_lens="ln_final.hook_out",
        hugging_face="model.norm",
        stage="after",
    ),
    HookPoint(
        key="logits",
        name="logits",
        shape="V",
        definition="float32 scores of the next token",
        transformer_lens="unembed.hook_out",
        hugging_face="lm_head",
        aliases=("output_head",),  # in KempnerForge
        stage="after",
    ),
    HookPoint(
        key="logits.capped",
        name="logits.capped",
        shape="V",
        definition="logits after the soft cap: the scores of the next token",
        stage="after",
        when="logits_softcap",
    ),
)
"""All hook points, in the order in which the model computes them."""


def entries(name: str) -> tuple[list[HookPoint], int | None]:
    """Return the table's entries for a canonical name (a model has one), and the block's number."""
    match = re.match(r"(?:layer_|layers\.)(\d+)", name)
    layer = int(match[1]) if match else None
    found = [
        point
        for point in HOOK_POINTS
        if (layer is None) != (point.stage == "block") and point.name.format(i=layer) == name
    ]
    return found, layer


def names_of(name: str) -> list[str]:
    """Return every name of a canonical name, with the canonical one first.

    An alias that means something else in another family is left out. A name that is not in the
    table has no other.
    """
    found, layer = entries(name)
    if not found:
        return [name]
    first, *others = (point.names(layer) for point in found)
    return [alias for alias in first if all(alias in names for names in others)]
