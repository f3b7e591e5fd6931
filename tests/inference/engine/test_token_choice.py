"""Greedy choice, the nucleus and the distribution against numpy; keys without batch or row."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference.engine.token_choice import choose_tokens, step_keys
from inference.errors import InputError

DRAWS = 4000


def draw(logits, temperature, top_p, seed=0):
    """Many draws from the same logits, each with the key of another sample."""
    keys = step_keys(seed, jnp.arange(DRAWS), 0)
    rows = jnp.tile(jnp.asarray(logits, jnp.float32), (DRAWS, 1))
    return np.asarray(choose_tokens(rows, keys, temperature, top_p))


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def nucleus(probabilities, top_p):
    """Smallest set of likeliest tokens whose probability reaches top_p (arXiv 1904.09751)."""
    tokens, reached = set(), 0.0
    for token in np.argsort(-probabilities):
        tokens.add(int(token))
        reached += probabilities[token]
        if reached >= top_p:
            break
    return tokens


def random_logits(seed, tokens=8):
    return np.random.default_rng(seed).normal(0, 1, tokens)


def test_greedy_takes_the_likeliest_and_of_equals_the_lowest():
    logits = jnp.array([[0, 3, 1, 3], [2, 2, 2, 2], [-5, -4, -3, -2]], jnp.float32)
    for seed in range(3):
        tokens = choose_tokens(logits, step_keys(seed, jnp.arange(3), 0), 0.0, 1.0)
        assert tokens.dtype == jnp.int32
        assert tokens.tolist() == [1, 0, 3]


@pytest.mark.parametrize("temperature", [1e-3, 1e-38])
def test_a_low_temperature_is_as_good_as_greedy(temperature):
    assert set(draw([1, 5, 3, 2], temperature, 1.0)) == {1}


@pytest.mark.parametrize("top_p", [1e-45, 1e-6, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-39, 1.1e-38, 1.2e-38, 1e-30])
def test_no_temperature_is_too_low_for_any_nucleus(temperature, top_p):
    # A quotient 0/0 would make every token 0.
    assert set(draw([1, 5, 3, 2], temperature, top_p)) == {1}


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_at_the_highest_temperature_all_tokens_are_alike(top_p):
    counts = np.bincount(draw([1, 5, 3, 2], 1e30, top_p), minlength=4)
    assert counts.min() > DRAWS / 5


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_draws_follow_the_softmax(temperature):
    logits = random_logits(seed=1)
    wanted = softmax(logits / temperature)
    counts = np.bincount(draw(logits, temperature, 1.0), minlength=len(logits))
    deviation = np.abs(counts - DRAWS * wanted) / np.sqrt(DRAWS * wanted * (1 - wanted))
    assert deviation.max() < 4


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("temperature", [0.8, 1.5])
def test_nucleus_is_kept_and_nothing_else(top_p, temperature):
    for seed in range(6):
        logits = random_logits(seed)
        probabilities = softmax(logits / temperature)
        kept = nucleus(probabilities, top_p)
        # Each of its tokens comes up often enough that none can be missing by chance.
        assert min(probabilities[list(kept)]) * DRAWS > 20
        assert set(draw(logits, temperature, top_p, seed)) == kept


def test_nucleus_keeps_its_proportions():
    logits = random_logits(seed=2)
    wanted = softmax(logits)
    kept = sorted(nucleus(wanted, 0.7))
    assert 2 <= len(kept) < len(logits)
    counts = np.bincount(draw(logits, 1.0, 0.7), minlength=len(logits))[kept]
    wanted = wanted[kept] / wanted[kept].sum()
    deviation = np.abs(counts - DRAWS * wanted) / np.sqrt(DRAWS * wanted * (1 - wanted))
    assert deviation.max() < 4


def test_nucleus_cuts_through_equals():
    # Half of the probability of four equal tokens is two of them.
    assert len(set(draw([1, 1, 1, 1], 1.0, 0.5))) == 2


def test_a_row_does_not_depend_on_its_batch():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 1, (16, 50)), jnp.float32)
    keys = step_keys(4, jnp.arange(16), 2)
    tokens = choose_tokens(logits, keys, 1.0, 0.9)
    order = jnp.asarray(np.random.default_rng(1).permutation(16))
    assert choose_tokens(logits[order], keys[order], 1.0, 0.9).tolist() == tokens[order].tolist()
    for row in (0, 7):
        alone = slice(row, row + 1)
        assert choose_tokens(logits[alone], keys[alone], 1.0, 0.9).tolist() == [int(tokens[row])]


def key_of(seed, number, step):
    return tuple(np.asarray(jax.random.key_data(step_keys(seed, jnp.array([number]), step)))[0])


def test_a_key_does_not_depend_on_its_batch():
    batch = jax.random.key_data(step_keys(4, jnp.array([9, 3, 5]), 2))
    assert [tuple(key) for key in np.asarray(batch)] == [key_of(4, n, 2) for n in (9, 3, 5)]


def test_no_two_draws_of_a_run_share_a_key():
    keys = {key_of(seed, n, step) for seed in range(4) for n in range(4) for step in range(4)}
    assert len(keys) == 64


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**31, 2**32, 2**63, 2**64])
def test_a_seed_is_refused_or_makes_keys(settings, seed):
    with contextlib.suppress(InputError):
        accepted = settings(random_seed=seed).random_seed
        assert key_of(accepted, 1, 0) != key_of(0, 2, 0)
