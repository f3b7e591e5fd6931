"""The blocks as a loop over stacked parameters: only one block is compiled.

Unrolled blocks take XLA tens of seconds for a TPU, and that for every bucket; a loop takes a few.
It gives the same rows. The parameters of all blocks lie stacked under `layers`, `[L, ...]` each,
and so do the buffers of the KV cache. On CPU the loop copies every block's parameters before it
uses them, so it is for accelerators.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen_hooks.decoder_layer import AttentionContext
from qwen_hooks.interventions import Interventions, edits_of_any
from qwen_hooks.kv_cache import StackedKeysValues
from qwen_hooks.taps import Taps

Block = Callable[..., Any]
"""`QwenDecoderLayer` as a function of its parameters, and then of what it is called with; it gives
what that gives."""


def run_scanned(
    block: Block,
    stacked: Mapping[str, Any],
    residual: Float[Array, "B T D"],
    context: AttentionContext,
    *,
    num_layers: int,
    captured: Mapping[str, Sequence[int]],
    buffers: StackedKeysValues | None,
    rows: Int[Array, "B R"] | None,
    interventions: Interventions | None = None,
    windows: Sequence[int] | None = None,
) -> tuple[Float[Array, "B R D"], dict[str, dict[int, Array]], StackedKeysValues]:
    """Run the first `num_layers` blocks.

    Args:
        block: the function of one.
        stacked: parameters of all, each `[L, ...]`.
        residual: `[B, T, D]`, what goes into the first.
        context: alike for all.
        num_layers: to run, at least one.
        captured: of each hook point's key the blocks where it is wanted.
        buffers: the cache's, `[L, B, C, K, H]` each; None without a cache.
        rows: as in `QwenModelWithActivations.forward`.
        interventions: that change what is computed; every block looks which are its own.
        windows: keys that a query sees, of every block, where blocks differ; None: all are alike.

    Returns:
        The residual stream, what was captured by key and block, and the keys and values of all
        blocks, stacked.
    """
    wanted = {key: [n for n in layers if n < num_layers] for key, layers in captured.items()}
    wanted = {key: layers for key, layers in wanted.items() if layers}

    def run_block(layer: Int[Array, ""], residual: Array, cache: Any, rows_now: Array | None):
        edits = edits_of_any(interventions, layer, context.query_positions)
        taps = Taps(wanted, rows, edits)
        params = at_layer(stacked, layer)
        here = context
        if windows is not None:
            here = dataclasses.replace(context, window=jnp.asarray(windows, jnp.int32)[layer])
        residual, seen = block(params, residual, here, taps, cache, rows_now)
        return residual, seen, taps.captured

    def first_block() -> tuple:
        cache = None if buffers is None else at_layer(buffers, 0)
        return run_block(jnp.int32(0), residual, cache, None)

    _, seen, values = jax.eval_shape(first_block)
    keys_values = buffers
    if keys_values is None:
        keys_values = jax.tree.map(lambda x: jnp.zeros((num_layers, *x.shape), x.dtype), seen)
    # Blocks where a key is not wanted write to a slot behind the others, which nobody reads.
    collected = {
        key: jnp.zeros((len(layers) + 1, *values[key].shape), values[key].dtype)
        for key, layers in wanted.items()
    }
    slot_of = {
        key: jnp.array(
            [layers.index(i) if i in layers else len(layers) for i in range(num_layers)], jnp.int32
        )
        for key, layers in wanted.items()
    }

    def one_block(state: tuple, layer: Int[Array, ""], rows_now: Array | None = None) -> tuple:
        residual, collected, keys_values = state
        cache = None if buffers is None else at_layer(keys_values, layer)
        residual, seen, values = run_block(layer, residual, cache, rows_now)
        keys_values = _put(keys_values, seen, layer)
        collected = {key: _put(collected[key], values[key], slot_of[key][layer]) for key in wanted}
        return residual, collected, keys_values

    # With `rows` the last block computes fewer slots, so it stands behind the loop.
    looped = num_layers if rows is None else num_layers - 1
    state = (residual, collected, keys_values)
    state, _ = jax.lax.scan(
        lambda state, layer: (one_block(state, layer), None),
        state,
        jnp.arange(looped, dtype=jnp.int32),
    )
    if rows is not None:
        state = one_block(state, jnp.int32(looped), rows)
    residual, collected, seen = state
    values = {
        key: {layer: collected[key][i] for i, layer in enumerate(layers)}
        for key, layers in wanted.items()
    }
    return residual, values, seen


def _put(stacked: Any, one: Any, index: Int[Array, ""]) -> Any:
    """Return the stacked tree with one entry of each leaf replaced."""
    return jax.tree.map(
        lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, index, axis=0),
        stacked,
        one,
    )


def at_layer(stacked: Any, layer: int | Int[Array, ""]) -> Any:
    """Return one block's part of a stacked tree."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), stacked
    )
