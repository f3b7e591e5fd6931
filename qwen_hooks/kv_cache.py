"""The KV cache: keys and values of earlier tokens, so that a decode step computes one token.

Slots are filled in order and shared by the whole batch: step t of every row writes the same
slot, whatever the lengths of the prompts. Slots without a token have position -1 and are never
seen. Buffers start as zeros, never as uninitialised memory: a hidden NaN would still poison the
weighted sum (0 x NaN).
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

KeysValues = tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]
"""Keys (after RoPE) and values of one layer."""

StackedKeysValues = tuple[Float[Array, "L B S K H"], Float[Array, "L B S K H"]]
"""Those of all layers, where they are scanned."""


@flax.struct.dataclass
class KVCache:
    """State of decoding.

    Attributes:
        layers: keys and values `[B, C, K, H]` of each layer, C slots; of scanned layers one pair,
            stacked, `[L, B, C, K, H]`.
        positions: int32 `[B, C]`, the position of the token in each slot, -1 where there is none.
        filled: int32 scalar, the next slot to write.
    """

    layers: tuple[KeysValues, ...] | StackedKeysValues
    positions: Int[Array, "B C"]
    filled: Int[Array, ""]

    @classmethod
    def from_prefill(
        cls,
        layers: tuple[KeysValues, ...] | StackedKeysValues,
        positions: Int[Array, "B S"],
        capacity: int,
    ) -> "KVCache":
        """Return a cache of `capacity` slots that begins with the keys and values of a prompt.

        Args:
            layers: keys and values that the forward pass returned.
            positions: positions of the prompt's tokens, -1 for padding.
            capacity: slots, those of the prompt included.
        """
        slots = positions.shape[1]
        room = (0, capacity - slots)

        def pad(x: Shaped[Array, "*B S K H"]) -> Shaped[Array, "*B C K H"]:
            return jnp.pad(x, (*((0, 0),) * (x.ndim - 3), room, (0, 0), (0, 0)))

        return cls(
            layers=jax.tree.map(pad, layers),
            positions=jnp.pad(positions, ((0, 0), room), constant_values=-1),
            filled=jnp.asarray(slots, jnp.int32),
        )

    def with_positions(self, positions: Int[Array, "B T"]) -> "KVCache":
        """Return the cache with positions of T more tokens, whose keys the layers then write."""
        taken = jax.lax.dynamic_update_slice_in_dim(self.positions, positions, self.filled, axis=1)
        filled = self.filled + positions.shape[1]
        return dataclasses.replace(self, positions=taken, filled=filled)


def write_slots(
    buffers: KeysValues,
    new: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
    slot: Int[Array, ""],
) -> KeysValues:
    """Return one layer's buffers with T new keys and values written from `slot` on."""
    keys, values = (
        jax.lax.dynamic_update_slice_in_dim(old, fresh, slot, axis=1)
        for old, fresh in zip(buffers, new, strict=True)
    )
    return keys, values
