"""The blocks as a loop over stacked parameters: one block is compiled, not each.

Unrolled blocks take XLA tens of seconds for a TPU, and that for every bucket; a loop takes a few.
It gives the same rows. The parameters of all blocks lie stacked under `layers`, `[L, ...]` each,
and so do the buffers of the KV cache. On CPU the loop copies every block's parameters before it
uses them, so it is for accelerators.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen_hooks.decoder_layer import Surroundings, take_rows
from qwen_hooks.kv_cache import StackedKeysValues

Block = Callable[..., Any]
"""`QwenDecoderLayer` as a function of its parameters, and then of what it is called with; it gives
what that gives."""


def run_scanned(
    block: Block,
    stacked: Mapping[str, Any],
    residual: Float[Array, "B T D"],
    around: Surroundings,
    *,
    num_layers: int,
    captured: Sequence[int],
    buffers: StackedKeysValues | None,
    rows: Int[Array, "B R"] | None,
) -> tuple[Float[Array, "B R D"], dict[int, Float[Array, "B R D"]], StackedKeysValues]:
    """Runs the first `num_layers` blocks.

    Args:
        block: the function of one.
        stacked: parameters of all, each `[L, ...]`.
        residual: `[B, T, D]`, what goes into the first.
        around: alike for all.
        num_layers: to run, at least one.
        captured: blocks whose output is wanted, ascending.
        buffers: the cache's, `[L, B, C, K, H]` each; None without a cache.
        rows: as in `QwenModelWithActivations.forward`.

    Returns:
        The residual stream, what was captured, and the keys and values of all blocks, stacked.
    """
    captured = [layer for layer in captured if layer < num_layers]
    width = residual.shape[1] if rows is None else rows.shape[1]
    keys_values = buffers
    if keys_values is None:
        seen = jax.eval_shape(lambda: block(at_layer(stacked, 0), residual, around)[1])
        keys_values = jax.tree.map(lambda x: jnp.zeros((num_layers, *x.shape), x.dtype), seen)
    # Blocks that are not captured write to a slot that nobody reads.
    unread = len(captured)
    slot_of = jnp.array(
        [captured.index(i) if i in captured else unread for i in range(num_layers)], jnp.int32
    )
    shape = (unread + 1, residual.shape[0], width, residual.shape[2])

    def one_block(state: tuple, layer: Int[Array, ""], rows_now: Array | None = None) -> tuple:
        residual, collected, keys_values = state
        cache = None if buffers is None else at_layer(keys_values, layer)
        residual, seen = block(at_layer(stacked, layer), residual, around, cache, rows_now)
        keys_values = jax.tree.map(
            lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, layer, axis=0),
            keys_values,
            seen,
        )
        wanted = residual if rows is None or rows_now is not None else take_rows(residual, rows)
        collected = jax.lax.dynamic_update_index_in_dim(collected, wanted, slot_of[layer], axis=0)
        return residual, collected, keys_values

    # With `rows` the last block computes fewer slots, so it stands behind the loop.
    looped = num_layers if rows is None else num_layers - 1
    state = (residual, jnp.zeros(shape, residual.dtype), keys_values)
    state, _ = jax.lax.scan(
        lambda state, layer: (one_block(state, layer), None),
        state,
        jnp.arange(looped, dtype=jnp.int32),
    )
    if rows is not None:
        state = one_block(state, jnp.int32(looped), rows)
    residual, collected, seen = state
    return residual, {layer: collected[i] for i, layer in enumerate(captured)}, seen


def at_layer(stacked: Any, layer: int | Int[Array, ""]) -> Any:
    """One block's part of a stacked tree."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), stacked
    )
