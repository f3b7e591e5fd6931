"""The blocks as a loop over stacked parameters: only one block is compiled.

XLA compiles unrolled blocks for a TPU in tens of seconds, for every bucket; a loop takes a few. The
rows are the same. The parameters of all blocks are stacked under `layers`, `[L, ...]` each, and so
are the buffers of the KV cache. On CPU the loop copies the parameters of every block before it uses
them, so it is meant for accelerators.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwen_hooks.decoder_layer import AttentionContext
from qwen_hooks.edits import edits_of_any
from qwen_hooks.interventions import Interventions
from qwen_hooks.kv_cache import StackedKeysValues
from qwen_hooks.taps import Taps

Block = Callable[..., Any]
"""`QwenDecoderLayer` as a function of its parameters and of the arguments of its call."""


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
        block: function of a block.
        stacked: parameters of all blocks, each `[L, ...]`.
        residual: `[B, T, D]`, residual stream that enters the first block.
        context: attention context, the same for all blocks.
        num_layers: number of blocks to run, at least one.
        captured: numbers of the blocks where each hook point is captured, by key.
        buffers: keys and values of the cache, `[L, B, C, K, H]` each; None without a cache.
        rows: as in `QwenModelWithActivations.forward`.
        interventions: changes of activations; each block selects its own.
        windows: number of keys that a query sees in each block; None: all blocks have the same.

    Returns:
        The residual stream, the captured activations by key and block, and the keys and values of
        all blocks, stacked.
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
    # Blocks where a hook point is not captured write to an extra last entry, which is not read.
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

    # With `rows` the last block computes fewer slots, so it runs after the loop.
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
