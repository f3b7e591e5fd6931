"""The hook points of a model, and the selection of some by name or pattern.

`hook_point_table.HOOK_POINTS` is the table of all hook points; docs and tests are made from it.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from qwen_hooks.config import QwenConfig
from qwen_hooks.errors import ModelError, NotCapturedError
from qwen_hooks.hook_point import HookPoint
from qwen_hooks.hook_point_table import HOOK_POINTS, entries, names_of

AFTER_BLOCKS = frozenset(point.key for point in HOOK_POINTS if point.stage == "after")

WHERE = {
    "qk_norm": "Qwen3",
    "post_norms": "Gemma 2",
    "not post_norms": "not Gemma 2",
    "logits_softcap": "Gemma 2",
}
"""Family whose models have a hook point with this `when`, for the documentation."""

MAX_BLOCKS = 10_000
MOST_NAMED = 6
"""Most hook points that an error or a `repr` lists."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """A hook point of a model.

    Attributes:
        name: canonical name.
        point: entry of the table.
        layer: number of the block; None outside the blocks.
    """

    name: str
    point: HookPoint
    layer: int | None


def sites(config: QwenConfig) -> list[Site]:
    """Return the hook points of a model, in the order in which they are computed."""
    points = [point for point in HOOK_POINTS if point.is_in(config)]
    layers = {"before": [None], "block": range(config.num_hidden_layers), "after": [None]}
    return [
        Site(name=point.name.format(i=layer), point=point, layer=layer)
        for stage, numbers in layers.items()
        for layer in numbers
        for point in points
        if point.stage == stage
    ]


def point_shape(
    point: HookPoint, config: QwenConfig, keys: int | None = None
) -> tuple[int | None, ...]:
    """Return the shape of one token's value.

    Args:
        point: entry of the table.
        config: configuration of the model.
        keys: most keys that a query sees, padding included; needed for the pattern only.
    """
    letters = {
        "D": config.hidden_size,
        "N": config.num_attention_heads,
        "K": config.num_key_value_heads // config.kv_repeats,
        "H": config.head_dim,
        "F": config.intermediate_size,
        "V": config.vocab_size,
        "S": keys,
    }
    return tuple(letters[letter] for letter in point.shape.split())


def select(names: str | Iterable[object], config: QwenConfig) -> tuple[str, ...]:
    """Return the canonical names that some names select, each once, in the order of computation.

    Args:
        names: names or aliases; `*` stands for any number or word, `{0..11}` for a range of
            blocks, `{0,3,mlp}` for one of several.
        config: configuration of the model.

    Raises:
        ModelError: a name or pattern matches no hook point; the message lists the nearest names.
    """
    known = sites(config)
    spellings = {name: site.name for site in known for name in site.point.names(site.layer)}
    chosen: set[str] = set()
    for asked in [names] if isinstance(names, str) else list(names):
        if not isinstance(asked, str):
            raise ModelError(f"a hook point is a name, not {asked!r}; for blocks: 'layer_6'")
        for name in _without_braces(asked):
            found = _matches(name, spellings)
            if not found:
                raise ModelError(_unknown(name, spellings, config))
            chosen |= found
    if not chosen:
        raise ModelError("no hook point to capture")
    return tuple(site.name for site in known if site.name in chosen)


def _matches(name: str, spellings: Mapping[str, str]) -> set[str]:
    """Return the canonical names that a name without braces, perhaps with `*`, stands for."""
    expression = re.compile(re.escape(name).replace(r"\*", "[^.]+"))
    return {spellings[form] for form in spellings if expression.fullmatch(form)}


def captured_name(asked: object, captured: Collection[str]) -> str:
    """Return the captured hook point that a name, alias or pattern stands for.

    Args:
        asked: name, as for `select`.
        captured: canonical names of the captured hook points.

    Raises:
        NotCapturedError: the name stands for no captured hook point, or for several; the message
            lists the nearest names.
    """
    if isinstance(asked, str) and asked in captured:
        return asked
    spellings = {form: name for name in captured for form in names_of(name)}
    forms = _without_braces(asked) if isinstance(asked, str) else []
    found = set().union(*(_matches(form, spellings) for form in forms))
    if len(found) == 1:
        return found.pop()
    if found:
        several = ", ".join(name for name in captured if name in found)
        raise NotCapturedError(f"{asked!r} stands for {several}; name one of them")
    near = _nearest(str(asked), spellings)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise NotCapturedError(f"there is no {asked!r}; {hint}captured: {few(captured)}")


def _without_braces(name: str) -> list[str]:
    """Return the names that a name with `{a..b}` or `{a,b}` stands for."""
    match = re.search(r"\{([^{}]*)\}", name)
    if match is None:
        return [name]
    first, dots, last = match[1].partition("..")
    if dots:
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < MAX_BLOCKS):
            raise ModelError(f"{match[0]} in {name!r} is no range of blocks such as {{0..11}}")
        choices = [str(number) for number in range(int(first), int(last) + 1)]
    else:
        choices = [choice.strip() for choice in match[1].split(",")]
    before, behind = name[: match.start()], name[match.end() :]
    return [each for choice in choices for each in _without_braces(before + choice + behind)]


def _unknown(name: str, spellings: Mapping[str, str], config: QwenConfig) -> str:
    blocks = f"this model has layers 0 to {config.num_hidden_layers - 1}"
    near = _nearest(name, spellings)
    kinds = ", ".join(site.name for site in sites(config) if not site.layer)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {kinds}"
    return f"there is no hook point {name!r}; {hint} ({blocks})"


def few(names: Collection[str]) -> str:
    """Return the first names, joined by commas, and the number of further ones."""
    more = len(names) - MOST_NAMED
    listed = ", ".join(list(names)[:MOST_NAMED]) or "nothing"
    return f"{listed} and {more} more" if more > 0 else listed


def _nearest(name: str, spellings: Mapping[str, str]) -> list[str]:
    """Return up to three names that look like `name`, each of another hook point."""
    found: dict[str, str] = {}
    for near in difflib.get_close_matches(name, spellings, n=10, cutoff=0.5):
        found.setdefault(spellings[near], near)
    return list(found.values())[:3]


def markdown_table() -> str:
    """Return the table of all hook points, as in docs/hook_points.md."""
    lines = [
        "| name | shape | what is there | TransformerLens | Hugging Face |",
        "|---|---|---|---|---|",
    ]
    for point in HOOK_POINTS:
        names = [f"`{n}`" if n else "" for n in (point.transformer_lens, point.hugging_face)]
        shape = "[" + ", ".join(point.shape.split()) + "]"
        only = f" ({WHERE[point.when]})" if point.when else ""
        cells = [f"`{point.name}`", shape, point.definition + only, *names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("{i}", "i") + "\n"


def hook_widths(names: Iterable[str], config: QwenConfig) -> dict[str, int]:
    """Return the width of each hook point's rows, all heads together, by canonical name.

    The attention pattern is left out, since its width depends on the prompt.
    """
    shapes = {site.name: point_shape(site.point, config) for site in sites(config)}
    return {
        name: math.prod(size for size in shapes[name] if size is not None)
        for name in names
        if None not in shapes[name]
    }


def layer_name(layer: int) -> str:
    """Return the name of the output of block `layer`."""
    return f"layer_{layer}"


def by_layer(names: Iterable[str]) -> dict[int | None, dict[str, str]]:
    """Return canonical names by block (None: outside the blocks) and by key in the table."""
    found: dict[int | None, dict[str, str]] = {}
    for name in names:
        points, layer = entries(name)
        (key,) = {point.key for point in points}
        found.setdefault(layer, {})[key] = name
    return found


def is_per_key(name: str) -> bool:
    """Return whether a hook point has one number for each key, `[B, R, N, S]`."""
    return any(point.per_key for point in entries(name)[0])


def blocks_needed(names: Iterable[str], num_layers: int) -> int:
    """Return how many blocks must run, from the first on, for some hook points; at least one."""
    layers = by_layer(names)
    if AFTER_BLOCKS & layers.get(None, {}).keys():
        return num_layers
    return 1 + max((layer for layer in layers if layer is not None), default=0)


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Return blocks at a quarter, a half and three quarters, and the last: 6 12 18 23 of 24."""
    return tuple(sorted({num_layers // 4, num_layers // 2, 3 * num_layers // 4, num_layers - 1}))


def check_layers(layers: Sequence[object] | None, num_layers: int) -> tuple[int, ...]:
    """Return the layers in ascending order; None means all of them.

    Raises:
        ModelError: a layer is no whole number, out of range or repeated, or the list is empty.
    """
    if layers is None:
        return tuple(range(num_layers))
    valid = f"this model has layers 0 to {num_layers - 1}"
    if not layers:
        raise ModelError(f"no layer to extract; {valid}")
    chosen: list[int] = []
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise ModelError(f"layer {layer!r} is not a whole number; {valid}")
        if not 0 <= layer < num_layers:
            raise ModelError(f"layer {layer} is out of range; {valid}")
        if layer in chosen:
            raise ModelError(f"layer {layer} is asked for more than once")
        chosen.append(layer)
    return tuple(sorted(chosen))
