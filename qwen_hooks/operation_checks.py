"""Checks of the numbers of interventions, before anything is computed.

A NaN, a direction without a length, or bounds that are exchanged make no error in a compiled
program, only activations that mean something else than what was asked for.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from qwen_hooks.errors import ModelError

APPLY_TO = ("all", "prompt", "generated")

UNBOUNDED = {"low": -np.inf, "high": np.inf, "max_norm": np.inf}
"""Fields that may be infinite, in one direction, and which."""


def check_numbers(name: str, fields: dict[str, Any]) -> None:
    """Check that an operation's fields are numbers that it can compute with.

    Args:
        name: name of the hook point, for messages.
        fields: of the operation, by name. Traced values are not looked at.

    Raises:
        ModelError: one is something else; says which and what it may be.
    """
    if fields["apply_to"] not in APPLY_TO:
        raise ModelError(
            f"{name}: apply_to is one of {', '.join(APPLY_TO)}, not {fields['apply_to']!r:.40}"
        )
    arrays = {
        field: np.asarray(value)
        for field, value in fields.items()
        if value is not None and not isinstance(value, str | bool | Tracer)
    }
    positions = arrays.pop("positions", None)
    if positions is not None and (
        positions.dtype.kind not in "iu" or positions.ndim not in (1, 2) or (positions < -1).any()
    ):
        raise ModelError(
            f"{name}: positions must be whole numbers [P] or [B, P] from 0, or -1 to fill up, not"
            f" {positions.dtype} {positions.tolist()!r:.60}"
        )
    for field, array in arrays.items():
        _check_finite(name, field, array)
    if {"low", "high"} <= arrays.keys():
        _check_bounds(name, arrays["low"], arrays["high"])
    if "direction" in arrays:
        _check_length(name, "direction", arrays["direction"])
    if fields.get("relative") and "vector" in arrays:
        _check_length(name, "vector", arrays["vector"])
    if "directions" in arrays:
        _check_independent(name, arrays["directions"])
    if "W_enc" in arrays:
        _check_autoencoder(name, arrays)
    if "values" in arrays:
        _check_values_of_positions(name, arrays["values"], positions)


def _check_finite(name: str, field: str, array: np.ndarray) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.kind not in "iu":
        raise ModelError(f"{name}: {field} must be numbers, not {array.dtype}")
    with np.errstate(over="ignore"):  # what is beyond float32 is infinite there
        allowed = np.isfinite(array.astype(np.float32))
    if field in UNBOUNDED:
        allowed |= array == UNBOUNDED[field]
    if not allowed.all():
        raise ModelError(f"{name}: {field} holds {array[~allowed].flat[0]}")


def _check_bounds(name: str, low: np.ndarray, high: np.ndarray) -> None:
    try:
        crossed = low > high
    except ValueError:  # for different numbers of samples, which is told later
        return
    if crossed.any():
        at = np.argmax(crossed)
        a, b = (np.broadcast_to(bound, crossed.shape).flat[at] for bound in (low, high))
        raise ModelError(f"{name}: low must be at most high, not {a} and {b}")


def _check_length(name: str, field: str, vectors: np.ndarray) -> None:
    if vectors.ndim and not (vectors != 0).any(axis=-1).all():
        raise ModelError(f"{name}: {field} must have a length above 0, to be made one long")


def _check_independent(name: str, directions: np.ndarray) -> None:
    if directions.ndim != 2:
        raise ModelError(f"{name}: directions are [r, W], not {list(directions.shape)}")
    rank = np.linalg.matrix_rank(directions.astype(np.float64))
    if rank < len(directions):
        raise ModelError(
            f"{name}: {len(directions)} directions span {rank} dimensions; they must be linearly"
            " independent"
        )


def _check_autoencoder(name: str, arrays: dict[str, np.ndarray]) -> None:
    if arrays["W_enc"].ndim != 2:
        raise ModelError(f"{name}: W_enc is [W, m], not {list(arrays['W_enc'].shape)}")
    width, latents = arrays["W_enc"].shape
    wanted = {
        "W_dec": (latents, width),
        "b_enc": (latents,),
        "b_dec": (width,),
        "threshold": (latents,),
    }
    for field, shape in wanted.items():
        if field in arrays and arrays[field].shape != shape:
            raise ModelError(
                f"{name}: {field} has shape {list(arrays[field].shape)}; W_enc {[width, latents]}"
                f" needs {list(shape)}"
            )
    k = arrays.get("k")
    if k is not None and (k.dtype.kind not in "iu" or k.ndim or not 1 <= k <= latents):
        raise ModelError(f"{name}: k must be a whole number from 1 to {latents}, not {k!s:.40}")


def _check_values_of_positions(name: str, values: np.ndarray, positions: np.ndarray | None) -> None:
    if values.ndim < 3:
        return
    if positions is None or positions.shape[-1] != values.shape[1]:
        count = "None" if positions is None else positions.shape[-1]
        raise ModelError(
            f"{name}: values [B, P, W] are for as many positions, not for {count}; they have shape"
            f" {list(values.shape)}"
        )
