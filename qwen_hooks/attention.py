"""Attention masks, and scaled dot-product attention in plain XLA.

One rule decides visibility, in prefill and in decoding, with padding on any side: every key has the
position of its token, or -1 for padding. A query at position p sees the keys with positions 0 .. p,
and in a layer with a sliding window only the last `window` of these.

    slot            0   1   2   3   4   5        a left-padded prompt of four tokens
    position       -1  -1   0   1   2   3
    query at 2      .   .   x   x   x   .        full attention
    query at 3      .   .   .   .   x   x        sliding window of 2

Queries of padding see nothing; their rows are averages that nobody reads. If several documents are
packed into one sequence, every slot also has the number of its segment, positions begin at 0 in
each segment, and a query sees only its own segment.

`attend` is for few queries and many keys (a decode step), `attend_causal` for the attention of a
prompt to itself. Softmax is float32 in both.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen_hooks.layers import matmul_precision

BLOCK = 128
"""Queries and keys in a block of `attend_causal`; the scores of one block fit a CPU's L2 cache."""

LOWEST = jnp.finfo(jnp.float32).min
"""Score of a hidden key. Finite: a query that sees nothing gets an average, not NaN."""


Window = int | Int[Array, ""] | None
"""Number of keys that a query sees, including its own; None: all. Traced in scanned blocks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """How products of queries and keys become scores.

    Attributes:
        scale: factor; 0: one over the root of the head's width.
        softcap: c in `c * tanh(score / c)` (arXiv 2408.00118); None: no cap.
    """

    scale: float = 0.0
    softcap: float | None = None

    def of(self, products: Float[Array, "*any"], head_dim: int) -> Float[Array, "*any"]:
        """Return float32 scores of the same shape."""
        scores = products * (self.scale or head_dim**-0.5)
        return soft_cap(scores, self.softcap)


def soft_cap(values: Float[Array, "*any"], cap: float | None) -> Float[Array, "*any"]:
    """Return `cap * tanh(values / cap)`, or the values where there is no cap."""
    return values if cap is None else cap * jnp.tanh(values / cap)


def visible_keys(
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    window: Window,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B T S"]:
    """Return True where a query sees a key (see the module's docstring)."""
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    visible = (key_positions[:, None, :] >= 0) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    if query_segments is not None and key_segments is not None:
        visible &= query_segments[:, :, None] == key_segments[:, None, :]
    return visible


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    window: Window = None,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    scoring: Scoring | None = None,
) -> Float[Array, "B T N H"]:
    """Return the attention of queries to keys; all scores `[B, N, T, S]` exist at once."""
    visible = visible_keys(query_positions, key_positions, window, query_segments, key_segments)
    weights = _weights(query, key, visible, scoring)
    precision = matmul_precision(query.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights.astype(value.dtype), value, precision=precision)
    return mixed.reshape(query.shape)


def attention_pattern(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    window: Window = None,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
    scoring: Scoring | None = None,
) -> Float[Array, "B T N S"]:
    """Return the weights by which `attend` mixes values, in the dtype of the queries."""
    visible = visible_keys(query_positions, key_positions, window, query_segments, key_segments)
    weights = _weights(query, key, visible, scoring).astype(query.dtype)
    batch, kv_heads, group, tokens, keys = weights.shape
    return weights.reshape(batch, kv_heads * group, tokens, keys).swapaxes(1, 2)


def _weights(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    visible: Bool[Array, "B T S"],
    scoring: Scoring | None,
) -> Float[Array, "B K G T S"]:
    """Return the float32 softmax over the keys that each query sees."""
    batch, tokens, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    precision = matmul_precision(query.dtype)
    grouped = query.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum(
        "btkgh,bskh->bkgts", grouped, key, precision=precision, preferred_element_type=jnp.float32
    )
    scores = (scoring or Scoring()).of(scores, head_dim)
    return jax.nn.softmax(jnp.where(visible[:, None, None], scores, LOWEST), axis=-1)


def attend_causal(
    query: Float[Array, "B S N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    positions: Int[Array, "B S"],
    window: Window = None,
    segments: Int[Array, "B S"] | None = None,
    scoring: Scoring | None = None,
) -> Float[Array, "B S N H"]:
    """Return a prompt's attention to itself, by blocks with a running softmax (arXiv 2205.14135).

    Blocks above the diagonal, and those before a sliding window, are not computed; no score matrix
    is larger than `[B, N, BLOCK, BLOCK]`. Apart from padding, positions must not decrease along the
    slots of a segment, as in any prompt, and a segment's slots must be contiguous.
    """
    batch, slots, heads, head_dim = query.shape
    if slots <= BLOCK:
        return attend(query, key, value, positions, positions, window, segments, segments, scoring)
    kv_heads, group = key.shape[2], heads // key.shape[2]
    blocks = -(-slots // BLOCK)
    padding = blocks * BLOCK - slots
    precision = matmul_precision(query.dtype)

    def split(x: Array, fill: int = 0) -> Array:
        """Reshape `[B, S, ...]` to `[blocks, B, BLOCK, ...]`."""
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
        return jnp.moveaxis(x.reshape(batch, blocks, BLOCK, *x.shape[2:]), 1, 0)

    positions_of = split(positions, fill=-1)
    segments_of = None if segments is None else split(segments, fill=-1)
    # The queries of a group are contiguous, so that each KV head is one matrix product.
    queries = split(query).reshape(blocks, batch, BLOCK, kv_heads, group, head_dim)
    queries = queries.transpose(0, 1, 3, 4, 2, 5).reshape(blocks, batch, kv_heads, -1, head_dim)
    keys = split(key).transpose(0, 1, 3, 4, 2)  # [blocks, B, K, H, BLOCK]
    values = split(value).transpose(0, 1, 3, 2, 4)  # [blocks, B, K, BLOCK, H]

    def one_query_block(block: tuple[Array, Array]) -> Array:
        number, block_query = block
        block_segments = None if segments_of is None else segments_of[number]

        def add_keys(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            highest, total, mixed = state
            scores = jnp.einsum(
                "bkth,bkhs->bkts",
                block_query,
                keys[j],
                precision=precision,
                preferred_element_type=jnp.float32,
            ).reshape(batch, kv_heads, group, BLOCK, BLOCK)
            visible = visible_keys(
                positions_of[number],
                positions_of[j],
                window,
                block_segments,
                None if segments_of is None else segments_of[j],
            )
            scores = (scoring or Scoring()).of(scores, head_dim)
            scores = jnp.where(visible[:, None, None], scores, LOWEST)
            new_highest = jnp.maximum(highest, scores.max(axis=-1))
            weights = jnp.exp(scores - new_highest[..., None])
            keep = jnp.exp(highest - new_highest)
            added = jnp.einsum(
                "bkts,bksh->bkth",
                weights.astype(value.dtype).reshape(batch, kv_heads, -1, BLOCK),
                values[j],
                precision=precision,
                preferred_element_type=jnp.float32,
            ).reshape(mixed.shape)
            total = total * keep + weights.sum(axis=-1)
            return new_highest, total, mixed * keep[..., None] + added

        shape = (batch, kv_heads, group, BLOCK)
        nothing = (
            jnp.full(shape, LOWEST),
            jnp.zeros(shape, jnp.float32),
            jnp.zeros((*shape, head_dim), jnp.float32),
        )
        first = 0 if window is None else jnp.maximum(0, number * BLOCK - window + 1) // BLOCK
        _, total, mixed = jax.lax.fori_loop(first, number + 1, add_keys, nothing)
        return (mixed / total[..., None]).astype(value.dtype)

    mixed = jax.lax.map(one_query_block, (jnp.arange(blocks), queries))
    mixed = mixed.transpose(1, 0, 4, 2, 3, 5).reshape(batch, blocks * BLOCK, heads, head_dim)
    return mixed[:, :slots]
