"""A dictionary of activations that accepts every name of a hook point."""

from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import numpy as np

from qwen_hooks.hook_points import captured_name, few

Value = TypeVar("Value")


@jax.tree_util.register_pytree_with_keys_class
class NamedActivations(dict[str, Value]):
    """A dictionary by canonical name, in which other names find the same value.

    `activations["layers.1"]` and `activations["blocks.1.hook_resid_post"]` are
    `activations["layer_1"]`. It is a pytree, as a dictionary is.
    """

    def __missing__(self, name: str) -> Value:
        """Return the value of another name; raise NotCapturedError if there is none."""
        return self[captured_name(name, self)]

    def __repr__(self) -> str:
        return f"NamedActivations({few([f'{name}: {shaped(self[name])}' for name in self])})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Value]], tuple[str, ...]]:
        """See `jax.tree_util.register_pytree_with_keys_class`."""
        return [(jax.tree_util.DictKey(name), self[name]) for name in self], tuple(self)

    @classmethod
    def tree_unflatten(
        cls, names: tuple[str, ...], values: Iterable[Value]
    ) -> "NamedActivations[Value]":
        """See `jax.tree_util.register_pytree_with_keys_class`."""
        return cls(zip(names, values, strict=True))


def shaped(value: Any) -> str:
    """Return an array's dtype and shape as text, `float32 [5, 48]`; `repr` of anything else."""
    if isinstance(value, np.ndarray | jax.Array):
        return f"{value.dtype} {list(value.shape)}"
    return repr(value)
