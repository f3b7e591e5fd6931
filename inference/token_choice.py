"""Which token comes next: the likeliest, or one drawn from the likeliest.

The key of a draw is made of the run's seed, the sample's number and the step, so that a sample's
text depends neither on its batch nor on its row in it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


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


@functools.partial(jax.jit, static_argnames=("temperature", "top_p"))
def choose_tokens(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], temperature: float, top_p: float
) -> Int[Array, " B"]:
    """The next token of each row, int32 `[B]`.

    Args:
        logits: float32 `[B, V]`.
        keys: from `step_keys`; unused at temperature 0.
        temperature: 0 for the likeliest token (the lowest id wins a tie).
        top_p: nucleus: the smallest set of likeliest tokens whose probability reaches it
            (arXiv 1904.09751).
    """
    if temperature == 0:
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
