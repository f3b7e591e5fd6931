"""A hook point in the three spellings that an SAE's metadata has."""

import re

from qwen_hooks.hook_point_table import HOOK_POINTS, entries


def spellings(hook_point: str, ending: str = "") -> dict[str, str]:
    """Return a hook point in three spellings: ours, TransformerLens' and Hugging Face's.

    Args:
        hook_point: its canonical name.
        ending: of the keys: `_out` for the target of a transcoder.

    Returns:
        `hook_point`, `hook_name` (as ours where TransformerLens has none) and, where Hugging Face
        has one, `hf_hook_name`.
    """
    points, layer = entries(hook_point)
    found = {f"hook_point{ending}": hook_point, f"hook_name{ending}": hook_point}
    if points and points[0].transformer_lens:
        found[f"hook_name{ending}"] = points[0].transformer_lens.format(i=layer)
    if points and points[0].hugging_face:
        found[f"hf_hook_name{ending}"] = points[0].hugging_face.format(i=layer)
    return found


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a hook point from any of its names, or None if it is unknown."""
    number = re.search(r"\d{1,6}", name)
    layer = int(number[0]) if number else None
    for point in HOOK_POINTS:
        if (point.stage == "block") == (layer is not None) and name in point.names(layer):
            return point.name.format(i=layer)
    return None
