"""Which token comes next: the likeliest, or one drawn from the likeliest.

A repetition penalty, if there is one, changes the logits before.

The key of a draw is made of the run's seed, the sample's number and the step, so that a sample's
text depends neither on its batch nor on its row in it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

SMALLEST_TEMPERATURE = float(jnp.finfo(jnp.float32).tiny)
"""Smaller numbers are 0 to a device that flushes denormals."""


@jax.jit
def step_keys(
    seed: int | Int[Array, ""], numbers: Int[Array, " B"], step: int | Int[Array, ""]
) -> Key[Array, " B"]:
    """The keys of one step, one a sample.

    Args:
        seed: of the run.
        numbers: `Sample.number` of each row.
        step: 0 for the first generated token.
    """

    def sample_key(number: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), step)

    return jax.vmap(sample_key)(numbers)


@functools.partial(jax.jit, static_argnames=("vocab_size",))
def occurring_tokens(
    input_ids: Int[Array, "B S"], lengths: Int[Array, " B"], vocab_size: int
) -> Bool[Array, "B V"]:
    """Says of each token of the vocabulary whether it occurs in a prompt, bool `[B, V]`.

    Args:
        input_ids: int32 `[B, S]`, padded on the right.
        lengths: int32 `[B]`, of the prompts.
        vocab_size: V.
    """
    size, slots = input_ids.shape
    is_padding = jnp.arange(slots, dtype=jnp.int32)[None] >= lengths[:, None]
    at = jnp.where(is_padding, vocab_size, input_ids)  # out of range, which is dropped
    rows = jnp.arange(size, dtype=jnp.int32)[:, None]
    return jnp.zeros((size, vocab_size), jnp.bool_).at[rows, at].set(True, mode="drop")


@jax.jit
def with_tokens(occurring: Bool[Array, "B V"], tokens: Int[Array, " B"]) -> Bool[Array, "B V"]:
    """Adds one token of each row to those that occur."""
    return occurring | (jnp.arange(occurring.shape[1], dtype=jnp.int32)[None] == tokens[:, None])


@functools.partial(jax.jit, static_argnames=("penalty",))
def penalise_repetition(
    logits: Float[Array, "B V"], occurring: Bool[Array, "B V"], penalty: float
) -> Float[Array, "B V"]:
    """Makes tokens that have occurred less likely, or below a penalty of 1 more likely.

    The definition of transformers' `RepetitionPenaltyLogitsProcessor` (arXiv 1909.05858): once for
    a token, however often it occurs.

    Args:
        logits: float32 `[B, V]`.
        occurring: bool `[B, V]`, of the prompt and what was generated.
        penalty: that positive logits are divided by and negative ones multiplied with.
    """
    # A quotient by one number for all would be compiled to a product, which rounds differently.
    penalties = jnp.where(occurring, jnp.float32(penalty), jnp.float32(1))
    return jnp.where(logits < 0, logits * penalties, logits / penalties)


@functools.partial(jax.jit, static_argnames=("temperature", "top_p"))
def choose_tokens(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], temperature: float, top_p: float
) -> Int[Array, " B"]:
    """The next token of each row, int32 `[B]`.

    Args:
        logits: float32 `[B, V]`.
        keys: from `step_keys`; unused at temperature 0.
        temperature: 0 for the likeliest token (the lowest id wins a tie), and so is what float32
            cannot divide by.
        top_p: nucleus: the smallest set of likeliest tokens whose probability reaches it
            (arXiv 1904.09751).
    """
    if temperature < SMALLEST_TEMPERATURE:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Relative to the likeliest, so that no temperature makes it infinite.
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
