"""The choice of the next token: the likeliest, or one drawn from the likeliest.

A repetition penalty, if there is one, changes the logits first.

The key of a draw is made of the run's seed, the sample's number and the step, so that a sample's
text does not depend on its batch.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

SMALLEST_TEMPERATURE = float(jnp.finfo(jnp.float32).tiny)
"""Smallest temperature above 0 that a device does not flush to 0."""


@jax.jit
def step_keys(
    seed: int | Int[Array, ""], numbers: Int[Array, " B"], step: int | Int[Array, ""]
) -> Key[Array, " B"]:
    """Return the random keys of one step, one for each sample.

    Args:
        seed: seed of the run.
        numbers: `Sample.number` of each sample.
        step: 0 for the first generated token.
    """

    def sample_key(number: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), step)

    return jax.vmap(sample_key)(numbers)


@functools.partial(jax.jit, static_argnames=("vocab_size",))
def occurring_tokens(
    input_ids: Int[Array, "B S"], lengths: Int[Array, " B"], vocab_size: int
) -> Bool[Array, "B V"]:
    """Return for each token of the vocabulary whether it occurs in each prompt, bool `[B, V]`.

    Args:
        input_ids: int32 `[B, S]`, padded on the right.
        lengths: int32 `[B]`, lengths of the prompts.
        vocab_size: V, size of the vocabulary.
    """
    size, slots = input_ids.shape
    is_padding = jnp.arange(slots, dtype=jnp.int32)[None] >= lengths[:, None]
    at = jnp.where(is_padding, vocab_size, input_ids)  # out of range, which is dropped
    rows = jnp.arange(size, dtype=jnp.int32)[:, None]
    return jnp.zeros((size, vocab_size), jnp.bool_).at[rows, at].set(True, mode="drop")


@jax.jit
def with_tokens(occurring: Bool[Array, "B V"], tokens: Int[Array, " B"]) -> Bool[Array, "B V"]:
    """Return `occurring` with one more token of each sequence."""
    return occurring | (jnp.arange(occurring.shape[1], dtype=jnp.int32)[None] == tokens[:, None])


@functools.partial(jax.jit, static_argnames=("penalty",))
def penalise_repetition(
    logits: Float[Array, "B V"], occurring: Bool[Array, "B V"], penalty: float
) -> Float[Array, "B V"]:
    """Return logits with tokens that have occurred made less likely (more, if penalty < 1).

    Defined as in transformers' `RepetitionPenaltyLogitsProcessor` (arXiv 1909.05858): applied once
    to a token, however often it occurs.

    Args:
        logits: float32 `[B, V]`.
        occurring: bool `[B, V]`, whether a token is in the prompt or the generated text.
        penalty: positive logits are divided by it, negative ones multiplied by it.
    """
    # Division by a constant would be compiled to a product, which rounds differently.
    penalties = jnp.where(occurring, jnp.float32(penalty), jnp.float32(1))
    return jnp.where(logits < 0, logits * penalties, logits / penalties)


@functools.partial(jax.jit, static_argnames=("temperature", "top_p"))
def choose_tokens(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], temperature: float, top_p: float
) -> Int[Array, " B"]:
    """Return the next token of each sequence, int32 `[B]`.

    Args:
        logits: float32 `[B, V]`.
        keys: from `step_keys`; unused at temperature 0.
        temperature: 0, or a number too small for float32, for the likeliest token (of equally
            likely ones the lowest id).
        top_p: nucleus: the smallest set of likeliest tokens whose probability reaches it
            (arXiv 1904.09751).
    """
    if temperature < SMALLEST_TEMPERATURE:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Relative to the likeliest, so that no temperature gives infinite numbers.
    scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
    draw = jax.vmap(jax.random.categorical)
    if top_p == 1:
        return draw(keys, scaled).astype(jnp.int32)
    order = jnp.argsort(-scaled, axis=-1, stable=True)
    descending = jnp.take_along_axis(scaled, order, axis=-1)
    probability = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # The likeliest token is always in: nothing comes before it.
    rank = draw(keys, jnp.where(before < top_p, descending, -jnp.inf))
    return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0].astype(jnp.int32)
