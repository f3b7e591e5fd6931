"""Rows as arrays of numpy, JAX or torch; each is imported only when it is needed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.formats import ParsedBatch
from extraction.formats.float_types import to_float32
from extraction.reading.row_numbers import EVERY, Place

Rows = dict[str, np.ndarray]
"""`[rows, width]` of each hook point."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowForm:
    """The form in which a user gets rows.

    Attributes:
        names: key of each hook point in the dictionaries that the user gets.
        single: whether the user gets the array of the only hook point instead of a dictionary.
        stored: whether rows keep the dtype of the files; else they are float32.
        bfloat16: whether that dtype is bfloat16. Its rows are uint16 bits until the user gets them.

    """

    names: Mapping[str, str]
    single: bool
    stored: bool
    bfloat16: bool

    @classmethod
    def of(
        cls,
        dtype: str,
        stored_dtype: str | None,
        address: str,
        names: Mapping[str, str],
        *,
        single: bool,
    ) -> "RowForm":
        """Return the form for a dtype that the user asks for.

        Args:
            dtype: `"float32"` or `"stored"`.
            stored_dtype: dtype of the run's files; None if the run does not record it.
            address: address of the run, for messages.
            names: see the class.
            single: see the class.

        Raises:
            StoreError: there is no such dtype, the run does not record its own, or ml_dtypes, which
                numpy needs for bfloat16, is not installed.
        """
        if dtype not in ("float32", "stored"):
            raise StoreError(f"dtype must be 'float32' or 'stored', not {dtype!r}")
        stored = dtype == "stored"
        if stored and stored_dtype is None:
            raise StoreError(f"{address} does not record its dtype; read it with dtype='float32'")
        bfloat16 = stored and stored_dtype == "bfloat16"
        form = cls(names=names, single=single, stored=stored, bfloat16=bfloat16)
        with_dtype(np.zeros(0, form.dtype), bfloat16)  # without ml_dtypes: refused now, not later
        return form

    @property
    def dtype(self) -> np.dtype:
        """The dtype of rows before the user gets them: uint16 or float32."""
        return np.dtype(np.uint16 if self.bfloat16 else np.float32)

    def values(self, parsed: ParsedBatch, rows: Place = EVERY) -> np.ndarray:
        """Return rows of a batch, `[rows, width]`, in `dtype`."""
        stored = parsed.stored[rows]
        return stored if self.stored else to_float32(stored, parsed.dtype)

    def as_asked(self, values: Mapping[str, Any]) -> Any:
        """Return the only hook point's value, or a dictionary by the user's names."""
        if self.single:
            (only,) = self.names
            return values[only]
        return {self.names[hook]: value for hook, value in values.items()}


def presenter(framework: str, form: RowForm) -> Callable[[Rows], Any]:
    """Return a function from a stream's rows to what the user gets.

    Args:
        framework: numpy, jax or torch; it is imported here.
        form: form in which the user gets the rows.

    Raises:
        StoreError: there is no such framework.
        ImportError: the framework is not installed.
    """
    if framework not in ("numpy", "jax", "torch"):
        raise StoreError(f"framework must be numpy, jax or torch, not {framework!r}")
    if framework == "torch":
        import torch

        def convert(rows: np.ndarray) -> Any:
            if form.bfloat16:
                return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(rows)

    elif framework == "jax":
        import jax

        def convert(rows: np.ndarray) -> Any:
            return jax.device_put(with_dtype(rows, form.bfloat16))

    else:

        def convert(rows: np.ndarray) -> Any:
            return with_dtype(rows, form.bfloat16)

    return lambda rows: form.as_asked({hook: convert(values) for hook, values in rows.items()})


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
