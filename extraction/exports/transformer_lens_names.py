"""Hook points' names in TransformerLens, which SAELens knows them by.

`qwen_hooks.hook_points` has the same names as aliases; reading needs nothing of the model, so they
stand here once more, and a test compares them.
"""

import re

OF_BLOCKS = {
    "layer_{i}": "blocks.{i}.hook_resid_post",
    "layers.{i}.resid_pre": "blocks.{i}.hook_resid_pre",
    "layers.{i}.input_layernorm": "blocks.{i}.ln1.hook_normalized",
    "layers.{i}.attention.q": "blocks.{i}.attn.hook_q",
    "layers.{i}.attention.k": "blocks.{i}.attn.hook_k",
    "layers.{i}.attention.v": "blocks.{i}.attn.hook_v",
    "layers.{i}.attention.q_rotated": "blocks.{i}.attn.hook_rot_q",
    "layers.{i}.attention.k_rotated": "blocks.{i}.attn.hook_rot_k",
    "layers.{i}.attention.pattern": "blocks.{i}.attn.hook_pattern",
    "layers.{i}.attention.z": "blocks.{i}.attn.hook_z",
    "layers.{i}.attention": "blocks.{i}.hook_attn_out",
    "layers.{i}.resid_mid": "blocks.{i}.hook_resid_mid",
    "layers.{i}.post_attention_layernorm": "blocks.{i}.ln2.hook_normalized",
    "layers.{i}.mlp.gate": "blocks.{i}.mlp.hook_pre",
    "layers.{i}.mlp.up": "blocks.{i}.mlp.hook_pre_linear",
    "layers.{i}.mlp.neurons": "blocks.{i}.mlp.hook_post",
    "layers.{i}.mlp": "blocks.{i}.hook_mlp_out",
}

OF_MODELS = {
    "embed_tokens": "hook_embed",
    "norm": "ln_final.hook_normalized",
    "logits": "unembed.hook_out",
}


def transformer_lens_name(hook_point: str) -> str:
    """A canonical name's counterpart; the name itself where there is none."""
    block = re.search(r"(?<=layer_)\d+|(?<=layers\.)\d+", hook_point)
    if block is None:
        return OF_MODELS.get(hook_point, hook_point)
    start, end = block.span()
    pattern = f"{hook_point[:start]}{{i}}{hook_point[end:]}"
    return OF_BLOCKS.get(pattern, hook_point).replace("{i}", block[0])
