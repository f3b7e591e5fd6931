"""How the blocks pass their values to hook points, which keep or change them.

The code passes every value by a `Taps`, under the hook point's key:

    residual = taps("resid_pre", residual)

which gives the value back and keeps it if it was asked for; where interventions change it, both
are of the changed value. A `Taps` lives for one call of one
block, inside of the traced function; what it kept is returned, so nothing is left behind. Where
nothing is asked for, the compiled program is the same as without.
"""

from collections.abc import Collection
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


@runtime_checkable
class ChangeValues(Protocol):
    """A change of values at hook points; `edits.Edits` is one."""

    def __call__(self, key: str, value: Array, every: int = 1) -> Array:
        """Return the changed value; copies of repeated heads are changed equally."""
        ...

    def at_rows(self, rows: Int[Array, "B R"]) -> "ChangeValues":
        """Return the change for values of these slots only."""
        ...


class Taps:
    """Keeps the values of the wanted hook points, by their keys.

    Args:
        wanted: keys to keep.
        rows: int32 `[B, R]`, the slots that are kept of values of all slots; None: all.
        edits: changes of values; None: none.

    Attributes:
        captured: captured values, `[B, R, ...]` each.
    """

    def __init__(
        self,
        wanted: Collection[str] = (),
        rows: Int[Array, "B R"] | None = None,
        edits: ChangeValues | None = None,
    ):
        self.wanted = frozenset(wanted)
        self._rows = rows
        self._edits = edits
        self.captured: dict[str, Array] = {}

    def __call__(
        self, key: str, value: Shaped[Array, "..."], *, every: int = 1
    ) -> Shaped[Array, "..."]:
        """Keep and change a value `[B, T, ...]` of every slot; keep every n-th repeated head."""
        if self._edits is not None:
            value = self._edits(key, value, every)
        if key in self.wanted:
            kept = value if self._rows is None else take_rows(value, self._rows)
            self.captured[key] = kept if every == 1 else kept[:, :, ::every]
        return value

    def of_rows(self) -> "Taps":
        """Return the taps for values that are computed for the wanted slots only."""
        edits = self._edits
        if edits is not None and self._rows is not None:
            edits = edits.at_rows(self._rows)
        narrowed = Taps(self.wanted, edits=edits)
        narrowed.captured = self.captured
        return narrowed


def take_rows(
    x: Shaped[Array, "B T *shape"], rows: Int[Array, "B R"]
) -> Shaped[Array, "B R *shape"]:
    """Return `x[b, rows[b]]` for each b."""
    return jnp.take_along_axis(x, rows.reshape(*rows.shape, *(1,) * (x.ndim - 2)), axis=1)
