"""The names that hook points have here, in TransformerLens and in Hugging Face's modules.

`qwen_hooks.hook_points` has the same names beside what each hook point is. Reading a run needs
nothing of the model, so they stand here once more, and a test compares the two tables.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable, Mapping

MOST_NAMED = 6
"""Hook points that an error or a `repr` lists."""


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a hook point; `{i}` stands for the block's number.

    Attributes:
        canonical: its name in files and metadata.
        transformer_lens: in TransformerLens.
        hugging_face: the module whose output it is (`.input`: whose input), or None.
        others: further names.
    """

    canonical: str
    transformer_lens: str
    hugging_face: str | None = None
    others: tuple[str, ...] = ()

    def all(self) -> Iterable[str]:
        """Every name, the canonical one first."""
        given = (self.canonical, self.transformer_lens, self.hugging_face, *self.others)
        return (name for name in given if name is not None)


HOOK_POINT_NAMES = (
    Names("embed_tokens", "hook_embed", "model.embed_tokens", others=("token_embedding",)),
    Names("layers.{i}.resid_pre", "blocks.{i}.hook_resid_pre", "model.layers.{i}.input"),
    Names("layers.{i}.input_layernorm.normalized", "blocks.{i}.ln1.hook_normalized"),
    Names(
        "layers.{i}.input_layernorm",
        "blocks.{i}.ln1.hook_out",
        "model.layers.{i}.input_layernorm",
        others=("layers.{i}.attention_norm",),
    ),
    Names("layers.{i}.attention.q", "blocks.{i}.attn.hook_q", "model.layers.{i}.self_attn.q_proj"),
    Names("layers.{i}.attention.k", "blocks.{i}.attn.hook_k", "model.layers.{i}.self_attn.k_proj"),
    Names("layers.{i}.attention.v", "blocks.{i}.attn.hook_v", "model.layers.{i}.self_attn.v_proj"),
    Names("layers.{i}.attention.q_rotated", "blocks.{i}.attn.hook_rot_q"),
    Names("layers.{i}.attention.k_rotated", "blocks.{i}.attn.hook_rot_k"),
    Names("layers.{i}.attention.pattern", "blocks.{i}.attn.hook_pattern"),
    Names(
        "layers.{i}.attention.z",
        "blocks.{i}.attn.hook_z",
        "model.layers.{i}.self_attn.o_proj.input",
    ),
    Names("layers.{i}.attention", "blocks.{i}.hook_attn_out", "model.layers.{i}.self_attn"),
    Names(
        "layers.{i}.resid_mid",
        "blocks.{i}.hook_resid_mid",
        "model.layers.{i}.post_attention_layernorm.input",
    ),
    Names("layers.{i}.post_attention_layernorm.normalized", "blocks.{i}.ln2.hook_normalized"),
    Names(
        "layers.{i}.post_attention_layernorm",
        "blocks.{i}.ln2.hook_out",
        "model.layers.{i}.post_attention_layernorm",
        others=("layers.{i}.mlp_norm",),
    ),
    Names("layers.{i}.mlp.gate", "blocks.{i}.mlp.hook_pre", "model.layers.{i}.mlp.gate_proj"),
    Names("layers.{i}.mlp.up", "blocks.{i}.mlp.hook_pre_linear", "model.layers.{i}.mlp.up_proj"),
    Names(
        "layers.{i}.mlp.neurons", "blocks.{i}.mlp.hook_post", "model.layers.{i}.mlp.down_proj.input"
    ),
    Names("layers.{i}.mlp", "blocks.{i}.hook_mlp_out", "model.layers.{i}.mlp"),
    Names(
        "layer_{i}",
        "blocks.{i}.hook_resid_post",
        "model.layers.{i}",
        others=("layers.{i}", "layers.{i}.resid_post"),
    ),
    Names("norm.normalized", "ln_final.hook_normalized"),
    Names("norm", "ln_final.hook_out", "model.norm"),
    Names("logits", "unembed.hook_out", "lm_head", others=("output_head",)),
)


def spellings(hook_points: Iterable[str]) -> dict[str, str]:
    """Map every name of some hook points to the name that they were given by."""
    found: dict[str, str] = {}
    for hook_point in hook_points:
        for name in _names(hook_point) or (hook_point,):
            found[name] = hook_point
    return found


def transformer_lens_name(hook_point: str) -> str:
    """Return the TransformerLens name of a canonical name, or the name itself if it has none."""
    names = _names(hook_point)
    return names[1] if names else hook_point


def nearest(name: str, known: Mapping[str, str]) -> list[str]:
    """Return up to three names of `spellings` that look like `name`, each of another hook point."""
    found: dict[str, str] = {}
    for near in difflib.get_close_matches(name, known, n=10, cutoff=0.5):
        found.setdefault(known[near], near)
    return list(found.values())[:3]


def few(names: Collection[str]) -> str:
    """Return the first names as a list in words, and how many more there are."""
    more = len(names) - MOST_NAMED
    listed = ", ".join(list(names)[:MOST_NAMED]) or "nothing"
    return f"{listed} and {more} more" if more > 0 else listed


def _names(hook_point: str) -> tuple[str, ...]:
    """Return the names of a canonical name, that one first; none if it is not in the table."""
    block = re.match(r"(?:layer_|layers\.)(\d+)", hook_point)
    for names in HOOK_POINT_NAMES:
        if block is None and "{i}" in names.canonical:
            continue
        number = "" if block is None else block[1]
        if names.canonical.replace("{i}", number) == hook_point:
            return tuple(name.replace("{i}", number) for name in names.all())
    return ()
