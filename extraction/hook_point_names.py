"""The names of hook points, from `qwen_hooks.hook_point_table`.

That table needs neither JAX nor the model. This package imports nothing else of `qwen_hooks`.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping

from qwen_hooks.hook_point_table import entries, names_of

MOST_NAMED = 6
"""Most hook points that an error or a `repr` lists."""


def spellings(hook_points: Iterable[str]) -> dict[str, str]:
    """Return a map from every name of some hook points to the name in `hook_points`."""
    found: dict[str, str] = {}
    for hook_point in hook_points:
        for name in names_of(hook_point):
            found[name] = hook_point
    return found


def transformer_lens_name(hook_point: str) -> str:
    """Return the TransformerLens name of a canonical name, or the name itself if it has none."""
    points, layer = entries(hook_point)
    names = {point.transformer_lens for point in points if point.transformer_lens}
    return names.pop().format(i=layer) if len(names) == 1 else hook_point


def definition_of(hook_point: str) -> str | None:
    """Return what a canonical name means; None if it is unknown, or families differ in it."""
    points, _ = entries(hook_point)
    meanings = {point.definition for point in points}
    return meanings.pop() if len(meanings) == 1 else None


def nearest(name: str, known: Mapping[str, str]) -> list[str]:
    """Return up to three names of `spellings` that look like `name`, each of another hook point."""
    found: dict[str, str] = {}
    for near in difflib.get_close_matches(name, known, n=10, cutoff=0.5):
        found.setdefault(known[near], near)
    return list(found.values())[:3]


def few(names: Collection[str]) -> str:
    """Return the first names, joined by commas, and the number of further ones."""
    more = len(names) - MOST_NAMED
    listed = ", ".join(list(names)[:MOST_NAMED]) or "nothing"
    return f"{listed} and {more} more" if more > 0 else listed
