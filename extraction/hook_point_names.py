"""The names of hook points, as `qwen_hooks.hook_point_table` has them; reading needs no more.

That table needs neither JAX nor the model, and is all of `qwen_hooks` that this package knows.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

from qwen_hooks.hook_point_table import HOOK_POINTS, HookPoint

MOST_NAMED = 6
"""Hook points that an error or a `repr` lists."""


def spellings(hook_points: Iterable[str]) -> dict[str, str]:
    """Map every name of some hook points to the name that they were given by."""
    found: dict[str, str] = {}
    for hook_point in hook_points:
        point, layer = _point(hook_point)
        for name in [hook_point] if point is None else point.names(layer):
            found[name] = hook_point
    return found


def transformer_lens_name(hook_point: str) -> str:
    """Return the TransformerLens name of a canonical name, or the name itself if it has none."""
    point, layer = _point(hook_point)
    name = point and point.transformer_lens
    return hook_point if name is None else name.format(i=layer)


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


def _point(hook_point: str) -> tuple[HookPoint | None, int | None]:
    """Return the entry of a canonical name and its block; no entry if it is not in the table."""
    block = re.match(r"(?:layer_|layers\.)(\d+)", hook_point)
    layer = int(block[1]) if block else None
    for point in HOOK_POINTS:
        in_block = point.stage == "block"
        if in_block == (block is not None) and point.name.format(i=layer) == hook_point:
            return point, layer
    return None, None
