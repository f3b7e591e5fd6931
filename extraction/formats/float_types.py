"""Float types of stored activations, with numpy alone.

A bfloat16 is the upper half of a float32, so a uint16 array of its bits is enough, and ml_dtypes is
not needed.
"""

import numpy as np

from extraction.errors import StoreError

SOURCES = ("float16", "float32", "float64", "bfloat16")
_NOT_A_NUMBER = 0x7FC0  # as XLA and ml_dtypes write it

CACHED_VALUES = 1 << 15
"""Numbers rounded at a time, so that intermediate results fit into a core's cache."""


def stored_array(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return activations as they are stored in a file.

    Args:
        values: float16, float32, float64 or ml_dtypes' bfloat16, any layout.
        dtype: float32 or bfloat16.

    Returns:
        C-contiguous little-endian float32, or uint16 with the bits of bfloat16. It is `values`
        itself, or a view, where nothing has to change.

    Raises:
        StoreError: values of another dtype.
    """
    values = np.asarray(values)
    source = values.dtype.name
    if source not in SOURCES:
        raise StoreError(f"activations of dtype {source} are not stored, only {', '.join(SOURCES)}")
    if source == "bfloat16":
        bits = np.ascontiguousarray(values.view(np.uint16), dtype="<u2")
        return bits if dtype == "bfloat16" else widened(bits)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite beyond float32; signalling NaN
        floats = np.ascontiguousarray(values, dtype="<f4")
    return floats if dtype == "float32" else bfloat16_bits(floats)


def to_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Return stored activations as float32; float32 itself is not copied.

    Args:
        stored: array of any shape; bfloat16 as uint16 bits.
        dtype: name of its dtype.
    """
    if dtype == "bfloat16":
        return widened(stored)
    with np.errstate(over="ignore", invalid="ignore"):
        return stored.astype(np.float32, copy=False)


def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return activations as float32, after the rounding of `stored_array` to `dtype`."""
    return to_float32(stored_array(values, dtype), dtype)


def widened(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values that bfloat16 bits stand for, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def bfloat16_bits(floats: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to bfloat16 (to nearest, ties to even) as uint16 bits.

    Half of the last kept bit's worth, less one for even values, is added before the lower half is
    cut off; a carry moves into the exponent, and into infinity, as it should.
    """
    result = np.empty(floats.shape, "<u2")
    source, target = floats.reshape(-1), result.reshape(-1)
    scratch = np.empty(min(CACHED_VALUES, len(source)), np.uint32)
    for start in range(0, len(source), CACHED_VALUES):
        part = source[start : start + CACHED_VALUES]
        bits, rounded = part.view(np.uint32), scratch[: len(part)]
        np.right_shift(bits, 16, out=rounded)
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        half = target[start : start + CACHED_VALUES]
        half[...] = rounded
        nan = np.isnan(part)  # the sum above would run over
        if nan.any():
            half[nan] = np.where(np.signbit(part[nan]), _NOT_A_NUMBER | 0x8000, _NOT_A_NUMBER)
    return result
