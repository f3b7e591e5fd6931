"""Every hook point against Hugging Face's torch model, in prefill and decoding, on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_hooks import Checkpoint, KVCache, create_model_with_hooks, load_params
from qwen_hooks.hook_points import sites
from qwen_hooks.model import forward
from qwen_hooks.sharding import layout_for
from tests.oracle import make_checkpoint, random_tokens
from tests.torch_values import load_eager, torch_values

TOLERANCE = 1e-4
TOKENS = 21
SHAPES = {
    "14/2 heads": {"hidden_size": 56, "num_attention_heads": 14, "num_hidden_layers": 2},
    "tied, sliding": {
        "tie_word_embeddings": True,
        "num_hidden_layers": 2,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 0,
    },
}


@pytest.fixture(scope="module", params=SHAPES)
def checkpoint(request, tmp_path_factory):
    return Checkpoint.open(make_checkpoint(tmp_path_factory.mktemp("c"), **SHAPES[request.param]))


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return torch_values(load_eager(checkpoint.folder), checkpoint.config, random_tokens(TOKENS))


def error(ours, theirs) -> float:
    """The largest difference, relative to the largest number of the hook point."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_all_equal(activations, theirs, config, rows=slice(None)):
    assert set(activations) == {site.name for site in sites(config)}
    errors = {name: error(value[0], theirs[name][rows]) for name, value in activations.items()}
    wrong = {name: value for name, value in errors.items() if not value < TOLERANCE}
    assert not wrong


def every_point(checkpoint, **options):
    config = options.pop("config", checkpoint.config)
    return create_model_with_hooks(config, hook_points=["*", "*.*", "*.*.*", "*.*.*.*"], **options)


@pytest.mark.parametrize("scan", [False, True])
def test_prefill(checkpoint, theirs, scan):
    model = every_point(checkpoint, scan_layers=scan)
    params = load_params(checkpoint, scan_layers=scan)
    input_ids = jnp.array([random_tokens(TOKENS)], jnp.int32)
    _, activations = model.apply(params, input_ids, return_activations=True)
    assert list(activations) == [site.name for site in sites(checkpoint.config)]
    assert_all_equal(activations, theirs, checkpoint.config)


@pytest.mark.parametrize("scan", [False, True])
def test_some_rows_of_a_prompt(checkpoint, theirs, scan):
    model = every_point(checkpoint, scan_layers=scan)
    params = load_params(checkpoint, scan_layers=scan)
    rows = [20, 3, 11]
    output = forward(
        model,
        params,
        jnp.array([random_tokens(TOKENS)], jnp.int32),
        jnp.arange(TOKENS, dtype=jnp.int32)[None],
        rows=jnp.array([rows], jnp.int32),
    )
    assert_all_equal(output.activations, theirs, checkpoint.config, rows)


@pytest.mark.parametrize("scan", [False, True])
def test_cached_decoding(checkpoint, theirs, scan):
    model = every_point(checkpoint, scan_layers=scan)
    params = load_params(checkpoint, scan_layers=scan)
    tokens = jnp.array([random_tokens(TOKENS)], jnp.int32)
    positions = jnp.arange(TOKENS, dtype=jnp.int32)[None]
    begun = TOKENS - 2
    prompt = forward(model, params, tokens[:, :begun], positions[:, :begun])
    cache = KVCache.from_prefill(prompt.keys_values, positions[:, :begun], TOKENS)
    step = jax.jit(functools.partial(forward, model))
    for at in range(begun, TOKENS):
        now = slice(at, at + 1)
        output = step(params, tokens[:, now], positions[:, now], cache=cache)
        cache = output.cache
        assert_all_equal(output.activations, theirs, checkpoint.config, now)


@pytest.mark.parametrize("mesh", [(4, 2), (2, 4)])
def test_on_a_mesh(checkpoint, theirs, mesh):
    layout = layout_for(checkpoint.config, mesh, jax.devices(), 10**9, 4)
    model = every_point(checkpoint, config=layout.config(checkpoint.config))
    params = load_params(checkpoint, layout=layout)
    input_ids = jnp.array([random_tokens(TOKENS)], jnp.int32)
    run = jax.jit(functools.partial(model.apply, return_activations=True))
    _, activations = run(params, input_ids)
    assert_all_equal(activations, theirs, checkpoint.config)
