"""Interventions as the blocks apply them: to the values of some tokens at a time.

`interventions` has the operations; a block's `Taps` calls an `Edits` with each of its values.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from qwen_hooks.hook_points import by_layer
from qwen_hooks.interventions import Interventions, Operation, Replace
from qwen_hooks.taps import take_rows


class Edits:
    """The operations of one block, or of the hook points outside the blocks, for some tokens.

    Args:
        operations: operations by the hook point's key, each with the condition under which it
            applies: a traced bool, or None for always.
        positions: int32 `[B, T]`, positions of the tokens; -1 for padding.
        prompt_lengths: int32 `[B]`, number of tokens of each prompt.
    """

    def __init__(
        self,
        operations: Mapping[str, Sequence[tuple[Bool[Array, ""] | None, Operation]]],
        positions: Int[Array, "B T"],
        prompt_lengths: Int[Array, " B"],
    ):
        self._operations = operations
        self._positions = positions
        self._lengths = prompt_lengths

    def at_rows(self, rows: Int[Array, "B R"]) -> "Edits":
        """Return the edits for values of these slots only."""
        return Edits(self._operations, take_rows(self._positions, rows), self._lengths)

    def __call__(self, key: str, value: Array, every: int = 1) -> Array:
        """Return the changed value `[B, T, ...]`; copies of repeated heads are changed equally."""
        if not self._operations.get(key):
            return value
        own = value if every == 1 else value[:, :, ::every]
        flat = own.reshape(*own.shape[:2], -1)
        for condition, operation in self._operations[key]:
            applies = self._applies(operation)
            changed, applies = self._changed(operation, flat.astype(jnp.float32), applies)
            if condition is not None:
                applies &= condition
            flat = jnp.where(applies[..., None], changed.astype(flat.dtype), flat)
        own = flat.reshape(own.shape)
        return own if every == 1 else jnp.repeat(own, every, axis=2)

    def _applies(self, operation: Operation) -> Bool[Array, "B T"]:
        generated = self._positions >= self._lengths[:, None]
        applies = self._positions >= 0
        if operation.apply_to == "prompt":
            applies &= ~generated
        elif operation.apply_to == "generated":
            applies &= generated
        return applies

    def _changed(
        self, operation: Operation, value: Float[Array, "B T W"], applies: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T W"], Bool[Array, "B T"]]:
        """Return the operation's result for all tokens, and a mask of the tokens to change."""
        if operation.positions is None:
            return operation.change(value), applies
        there = self._positions[..., None] == jnp.asarray(operation.positions)[:, None, :]
        applies &= there.any(axis=-1)
        if isinstance(operation, Replace) and jnp.ndim(operation.values) == 3:
            number = jnp.argmax(there, axis=-1)
            return take_rows(jnp.asarray(operation.values, jnp.float32), number), applies
        return operation.change(value), applies


def edits_of(
    interventions: Interventions | None,
    layer: int | None,
    positions: Int[Array, "B T"],
) -> Edits | None:
    """Return the edits of a block (None: outside the blocks), or None if there are none at all."""
    if interventions is None:
        return None
    keys = by_layer(interventions.operations).get(layer, {})
    operations = {
        key: [(None, op) for op in interventions.operations[name]] for key, name in keys.items()
    }
    return Edits(operations, positions, interventions.prompt_lengths)


def edits_of_any(
    interventions: Interventions | None,
    layer: Int[Array, ""],
    positions: Int[Array, "B T"],
) -> Edits | None:
    """Return the edits of a block with a traced number: those of all blocks, each conditional."""
    if interventions is None:
        return None
    operations: dict[str, list[tuple[Bool[Array, ""] | None, Operation]]] = {}
    for number, keys in by_layer(interventions.operations).items():
        if number is not None:
            for key, name in keys.items():
                operations.setdefault(key, []).extend(
                    (layer == number, op) for op in interventions.operations[name]
                )
    return Edits(operations, positions, interventions.prompt_lengths)
