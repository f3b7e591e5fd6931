"""Who sees whom, and scaled dot-product attention in plain XLA.

One rule decides visibility, in prefill and in decoding, with padding on any side: every key
carries the position of its token, or -1 if there is none, and a query at position p sees the
keys with positions 0 .. p, of these only the last `window` where the layer slides.

    slot            0   1   2   3   4   5        a left-padded prompt of four tokens
    position       -1  -1   0   1   2   3
    query at 2      .   .   x   x   x   .        full attention
    query at 3      .   .   .   .   x   x        sliding window of 2

Queries that stand on padding see nothing; their rows are uniform averages that nobody reads.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen_hooks.layers import matmul_precision

QUERY_BLOCK = 512
"""Queries whose scores exist at one time: bounds memory to N x 512 x S floats a sequence."""


def visible_keys(
    query_positions: Int[Array, "B T"], key_positions: Int[Array, "B S"], window: int | None
) -> Bool[Array, "B T S"]:
    """True where a query sees a key (see the module's docstring)."""
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    visible = (key_positions[:, None, :] >= 0) & (distance >= 0)
    return visible if window is None else visible & (distance < window)


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    query_positions: Int[Array, "#B T"],
    key_positions: Int[Array, "#B S"],
    window: int | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention with grouped query heads; scores and softmax in float32.

    Long prompts are taken in blocks of `QUERY_BLOCK` queries, so that no `[T, S]` matrix of
    the whole prompt exists.
    """
    tokens = query.shape[1]
    if tokens <= 2 * QUERY_BLOCK:
        return _attend_block(query, key, value, query_positions, key_positions, window)

    blocks = -(-tokens // QUERY_BLOCK)
    padding = blocks * QUERY_BLOCK - tokens
    query = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    query_positions = jnp.pad(query_positions, ((0, 0), (0, padding)), constant_values=-1)

    def one_block(block: Array) -> Array:
        start = block * QUERY_BLOCK
        return _attend_block(
            jax.lax.dynamic_slice_in_dim(query, start, QUERY_BLOCK, axis=1),
            key,
            value,
            jax.lax.dynamic_slice_in_dim(query_positions, start, QUERY_BLOCK, axis=1),
            key_positions,
            window,
        )

    mixed = jax.lax.map(one_block, jnp.arange(blocks))  # [blocks, B, QUERY_BLOCK, N, H]
    mixed = jnp.moveaxis(mixed, 0, 1).reshape(query.shape)
    return mixed[:, :tokens]


def _attend_block(query, key, value, query_positions, key_positions, window):
    batch, tokens, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    precision = matmul_precision(query.dtype)
    grouped = query.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum(
        "btkgh,bskh->bkgts", grouped, key, precision=precision, preferred_element_type=jnp.float32
    )
    visible = visible_keys(query_positions, key_positions, window)[:, None, None]
    # A finite lowest value: a query that sees nothing gets an average, not NaN.
    scores = jnp.where(visible, scores * head_dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, value, precision=precision)
    return mixed.reshape(batch, tokens, heads, head_dim)
