"""Both ways of attending, against a loop that is plainly right."""

import jax.numpy as jnp
import numpy as np
import pytest

from qwen_hooks.attention import BLOCK, attend, attend_causal


def by_loops(query, key, value, query_positions, key_positions, window):
    """Softmax attention, float64, one query and head at a time; NaN where nothing is seen."""
    batch, tokens, heads, width = query.shape
    group = heads // key.shape[2]
    mixed = np.full(query.shape, np.nan)
    for b in range(batch):
        for t in range(tokens):
            at = query_positions[b, t]
            sees = [
                s
                for s, p in enumerate(key_positions[b])
                if 0 <= p <= at and (window is None or at - p < window)
            ]
            for n in range(heads) if at >= 0 else ():
                scores = key[b, sees, n // group].astype(np.float64) @ query[b, t, n]
                weights = np.exp((scores - scores.max()) / np.sqrt(width))
                mixed[b, t, n] = weights @ value[b, sees, n // group] / weights.sum()
    return mixed


def random_heads(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2


PADDINGS = {"none": (0, 0), "left": (5, 0), "right": (0, 9), "both": (100, 3)}


@pytest.mark.parametrize("window", [None, 1, 30, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("slots", [BLOCK, 2 * BLOCK, 2 * BLOCK + 21])
def test_a_prompt_with_itself(slots, padding, window):
    left, right = PADDINGS[padding]
    positions = np.full((2, slots), -1, np.int32)
    positions[:, left : slots - right] = np.arange(slots - left - right)
    query, key, value = (random_heads(i, 2, slots, n, 4) for i, n in enumerate((6, 2, 2)))
    wanted = by_loops(query, key, value, positions, positions, window)
    real = positions >= 0
    arrays = [jnp.array(x) for x in (query, key, value, positions)]
    blocked = np.asarray(attend_causal(*arrays, window))
    np.testing.assert_allclose(blocked[real], wanted[real], rtol=2e-5, atol=2e-5)
    assert np.isfinite(blocked).all()
    plain = np.asarray(attend(*arrays, arrays[3], window))
    np.testing.assert_allclose(plain[real], wanted[real], rtol=2e-5, atol=2e-5)
    assert np.isfinite(plain).all()


@pytest.mark.parametrize("window", [None, 30, BLOCK + 1])
@pytest.mark.parametrize("lengths", [(1, 60, 7, 60), (BLOCK, BLOCK + 1, 3), (300, 1, 1, 40)])
def test_documents_that_share_a_row_see_themselves_alone(lengths, window):
    ends = np.cumsum(lengths)
    slots = ends[-1] + 9  # and padding
    positions, segments = np.full((2, 1, slots), -1, np.int32)
    query, key, value = (random_heads(i, 1, slots, n, 4) for i, n in enumerate((6, 2, 2)))
    wanted = np.zeros(query.shape)
    for number, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        mine = slice(end - length, end)
        positions[:, mine], segments[:, mine] = np.arange(length), number
        alone = [x[:, mine] for x in (query, key, value, positions, positions)]
        wanted[:, mine] = by_loops(*alone, window)
    real = positions >= 0
    arrays = [jnp.array(x) for x in (query, key, value, positions)]
    of_row = jnp.array(segments)
    blocked = np.asarray(attend_causal(*arrays, window, of_row))
    np.testing.assert_allclose(blocked[real], wanted[real], rtol=2e-5, atol=2e-5)
    assert np.isfinite(blocked).all()
    plain = np.asarray(attend(*arrays, arrays[3], window, of_row, of_row))
    np.testing.assert_allclose(plain[real], wanted[real], rtol=2e-5, atol=2e-5)


def test_a_query_against_a_cache_with_gaps():
    key_positions = np.array([[0, 1, 2, -1, -1, 3, 4, -1], [0, -1, -1, -1, -1, 1, 2, -1]], np.int32)
    query_positions = np.array([[4], [2]], np.int32)
    query = random_heads(0, 2, 1, 4, 4)
    key, value = random_heads(1, 2, 8, 2, 4), random_heads(2, 2, 8, 2, 4)
    for window in (None, 2):
        wanted = by_loops(query, key, value, query_positions, key_positions, window)
        arrays = [jnp.array(x) for x in (query, key, value, query_positions, key_positions)]
        np.testing.assert_allclose(attend(*arrays, window), wanted, rtol=1e-5, atol=1e-5)


def test_hidden_values_do_not_leak_even_if_huge():
    positions = np.array([[0, 1, -1, -1]], np.int32)
    query, key, value = (random_heads(i, 1, 4, 2, 4) for i in range(3))
    value[:, 2:] = 1e30
    arrays = [jnp.array(x) for x in (query, key, value, positions)]
    assert np.abs(np.asarray(attend_causal(*arrays))[:, :2]).max() < 100
