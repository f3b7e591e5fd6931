"""How far every hook point is from torch's, in every way in which the model runs.

    python -m tests.hook_point_errors

prints the largest difference of each, relative to its largest number, over all blocks and the
shapes of `SHAPES`. The tests hold each of them to `TOLERANCE`.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_hooks import Checkpoint, KVCache, create_model_with_hooks, load_params
from qwen_hooks.hook_point_table import HOOK_POINTS
from qwen_hooks.hook_points import sites
from qwen_hooks.model import forward
from qwen_hooks.sharding import layout_for
from tests.families import FAMILIES
from tests.oracle import make_checkpoint, random_tokens
from tests.torch_values import load_eager, torch_values

TOLERANCE = 1e-4
TOKENS = 21
ALL = [".".join("*" * parts) for parts in range(1, 6)]
SHAPES: dict[str, dict[str, Any]] = {
    "14/2 heads": {"hidden_size": 56, "num_attention_heads": 14, "num_hidden_layers": 2},
    "tied, sliding": {
        "tie_word_embeddings": True,
        "num_hidden_layers": 2,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 0,
    },
    **{name: shape | {"num_hidden_layers": 2} for name, shape in FAMILIES.items() if shape},
}
Captured = Iterator[tuple[dict[str, Any], Any]]
"""Activations `[1, R, ...]` by name, and of which tokens they are."""


def every_point(checkpoint: Checkpoint, **options: Any) -> Any:
    """The model that captures all there is."""
    config = options.pop("config", checkpoint.config)
    return create_model_with_hooks(config, hook_points=ALL, **options)


def _tokens() -> jax.Array:
    return jnp.array([random_tokens(TOKENS)], jnp.int32)


def _loaded(checkpoint: Checkpoint, scan: bool) -> tuple[Any, Any, Callable[..., Any]]:
    model = every_point(checkpoint, scan_layers=scan)
    run = jax.jit(functools.partial(forward, model))
    return model, load_params(checkpoint, scan_layers=scan), run


def prefill(checkpoint: Checkpoint, scan: bool) -> Captured:
    """A prompt, through the module itself and not compiled as a whole."""
    model, params, _ = _loaded(checkpoint, scan)
    _, activations = model.apply(params, _tokens(), return_activations=True)
    assert list(activations) == [site.name for site in sites(checkpoint.config)]
    yield activations, slice(None)


def some_rows(checkpoint: Checkpoint, scan: bool) -> Captured:
    """Some tokens of a prompt."""
    _, params, run = _loaded(checkpoint, scan)
    rows, positions = [20, 3, 11], jnp.arange(TOKENS, dtype=jnp.int32)[None]
    output = run(params, _tokens(), positions, rows=jnp.array([rows], jnp.int32))
    yield output.activations, rows


def decode(checkpoint: Checkpoint, scan: bool) -> Captured:
    """The last two tokens one by one, with a cache."""
    _, params, run = _loaded(checkpoint, scan)
    tokens, positions = _tokens(), jnp.arange(TOKENS, dtype=jnp.int32)[None]
    begun = TOKENS - 2
    prompt = run(params, tokens[:, :begun], positions[:, :begun])
    cache = KVCache.from_prefill(prompt.keys_values, positions[:, :begun], TOKENS)
    for at in range(begun, TOKENS):
        now = slice(at, at + 1)
        output = run(params, tokens[:, now], positions[:, now], cache=cache)
        cache = output.cache
        yield output.activations, now


def on_mesh(checkpoint: Checkpoint, mesh: tuple[int, int]) -> Captured:
    """A prompt on eight devices."""
    layout = layout_for(checkpoint.config, mesh, jax.devices(), 10**9, 4)
    model = every_point(checkpoint, config=layout.config(checkpoint.config))
    params = load_params(checkpoint, layout=layout)
    run = jax.jit(functools.partial(model.apply, return_activations=True))
    yield run(params, _tokens())[1], slice(None)


WAYS: dict[str, Callable[[Checkpoint], Captured]] = {
    "prompt": functools.partial(prefill, scan=False),
    "scanned": functools.partial(prefill, scan=True),
    "some rows": functools.partial(some_rows, scan=False),
    "rows, scanned": functools.partial(some_rows, scan=True),
    "decode": functools.partial(decode, scan=False),
    "decode, scanned": functools.partial(decode, scan=True),
    "mesh 4,2": functools.partial(on_mesh, mesh=(4, 2)),
    "mesh 2,4": functools.partial(on_mesh, mesh=(2, 4)),
}


def theirs_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """What torch computes of the same tokens."""
    return torch_values(load_eager(checkpoint.folder), checkpoint.config, random_tokens(TOKENS))


def errors(checkpoint: Checkpoint, theirs: dict[str, np.ndarray], way: str) -> dict[str, float]:
    """Of every hook point by name the largest difference, relative to its largest number."""
    found: dict[str, float] = {}
    for activations, rows in WAYS[way](checkpoint):
        assert set(activations) == {site.name for site in sites(checkpoint.config)}
        for name, value in activations.items():
            ours, wanted = np.asarray(value[0], np.float64), theirs[name][rows]
            assert ours.shape == wanted.shape
            error = float(np.abs(ours - wanted).max() / np.abs(wanted).max())
            found[name] = max(error, found.get(name, 0.0))
    return found


def main() -> None:
    """Prints the table."""
    worst: dict[str, dict[str, float]] = {}
    for shape in SHAPES.values():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Checkpoint.open(make_checkpoint(Path(folder), **shape))
            theirs = theirs_of(checkpoint)
            kinds = {site.name: site.point.name for site in sites(checkpoint.config)}
            for way in WAYS:
                for name, error in errors(checkpoint, theirs, way).items():
                    row = worst.setdefault(kinds[name], {})
                    row[way] = max(error, row.get(way, 0.0))
    print(f"{'hook point':36}" + "".join(f"{way:>17}" for way in WAYS))
    for point in HOOK_POINTS:
        if point.name not in worst:  # of other families
            continue
        row = worst[point.name]
        print(f"{point.name:36}" + "".join(f"{row[way]:17.1e}" for way in WAYS))
    largest = max(max(row.values()) for row in worst.values())
    print(f"largest: {largest:.1e}, at most {TOLERANCE:.0e} is allowed")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main()
