"""Rows as arrays of numpy, JAX or torch; each is imported only when it is needed."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from extraction.errors import StoreError

Rows = dict[str, np.ndarray]
"""`[rows, width]` of each hook point."""


def presenter(
    framework: str, names: Mapping[str, str], single: bool, bfloat16: bool
) -> Callable[[Rows], Any]:
    """Return a function from a stream's rows to what the user gets.

    Args:
        framework: numpy, jax or torch; it is imported here.
        names: key of each hook point in the dictionary that the user gets.
        single: whether the user gets the array of the only hook point instead of a dictionary.
        bfloat16: whether the rows are uint16 bits of bfloat16.

    Raises:
        StoreError: there is no such framework.
        ImportError: the framework is not installed.
    """
    if framework not in ("numpy", "jax", "torch"):
        raise StoreError(f"framework must be numpy, jax or torch, not {framework!r}")
    if framework == "torch":
        import torch

        def convert(rows: np.ndarray) -> Any:
            if bfloat16:
                return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(rows)

    elif framework == "jax":
        import jax

        def convert(rows: np.ndarray) -> Any:
            return jax.device_put(with_dtype(rows, bfloat16))

    else:

        def convert(rows: np.ndarray) -> Any:
            return with_dtype(rows, bfloat16)

    if single:
        (only,) = names
        return lambda rows: convert(rows[only])
    return lambda rows: {names[hook]: convert(values) for hook, values in rows.items()}


def with_dtype(rows: np.ndarray, bfloat16: bool) -> np.ndarray:
    """Return uint16 bits as bfloat16, other rows as they are.

    Raises:
        StoreError: ml_dtypes, which numpy needs for bfloat16, is not installed.
    """
    if not bfloat16:
        return rows
    try:
        import ml_dtypes
    except ImportError:
        raise StoreError(
            "numpy has no bfloat16 without ml_dtypes; run `pip install ml_dtypes`, or read with"
            " dtype='float32'"
        ) from None
    return rows.view(ml_dtypes.bfloat16)
