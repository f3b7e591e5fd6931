import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from extraction.errors import StoreError
from extraction.formats.float_types import bfloat16_bits, stored_array, to_float32, widened

ALL_BITS = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
SOURCES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


def rounded(floats: np.ndarray) -> np.ndarray:
    """The bits that ml_dtypes rounds to."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        return floats.astype(ml_dtypes.bfloat16).view(np.uint16)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.tobytes() == right.tobytes()


def test_every_bfloat16_widens_as_ml_dtypes_widens_it():
    expected = ALL_BITS.view(ml_dtypes.bfloat16).astype(np.float32)
    assert same_bits(widened(ALL_BITS), expected)


def test_every_bfloat16_comes_back_from_float32():
    known = ~np.isnan(widened(ALL_BITS))
    np.testing.assert_array_equal(bfloat16_bits(widened(ALL_BITS))[known], ALL_BITS[known])


def test_rounding_is_ml_dtypes_at_every_step_between_neighbours():
    # All sums of an upper half and a lower half that decides: below, at and above the middle.
    upper = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    floats = (upper | lower).view(np.float32)
    assert same_bits(bfloat16_bits(floats), rounded(floats))


@given(hnp.arrays(np.uint32, st.integers(0, 50)))
def test_rounding_is_ml_dtypes_anywhere(bits):
    floats = bits.view(np.float32)
    assert same_bits(bfloat16_bits(floats), rounded(floats))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_values_are_the_nearest(source, dtype):
    values = np.array([[1 / 3, -65504, 6e-8], [np.inf, np.nan, -0.0]]).astype(source)
    stored = stored_array(values, dtype)
    exact = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    np.testing.assert_array_equal(
        to_float32(stored, dtype), values.astype(np.float32).astype(exact).astype(np.float32)
    )
    assert stored.dtype == (np.uint16 if dtype == "bfloat16" else np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_that_fit_are_not_copied(dtype):
    values = np.ones((3, 4), np.float32 if dtype == "float32" else ml_dtypes.bfloat16)
    assert np.shares_memory(stored_array(values, dtype).view(np.uint8), values.view(np.uint8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("source", [np.float32, ml_dtypes.bfloat16, np.dtype(">f4")])
def test_any_layout_becomes_rows_in_order(dtype, source):
    values = np.arange(24, dtype=np.float32).reshape(4, 6).astype(source)
    for view in (values[::2, ::-1], values.T, values[:, 1:4]):
        stored = stored_array(view, dtype)
        assert stored.flags.c_contiguous
        np.testing.assert_array_equal(to_float32(stored, dtype), view.astype(np.float32))


def test_beyond_the_range_is_infinite_without_a_warning():
    large = np.array([[1e300, -1e300, 3.4e38]])
    assert stored_array(large, "float32").tolist()[0][:2] == [np.inf, -np.inf]
    assert to_float32(stored_array(large, "bfloat16"), "bfloat16").tolist() == [
        [np.inf, -np.inf, np.inf]
    ]
    assert to_float32(large, "float64").tolist()[0][:2] == [np.inf, -np.inf]


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, object, "U4", ml_dtypes.float8_e4m3fn])
def test_other_dtypes_are_refused_by_name(dtype):
    values = np.zeros((2, 2), dtype)
    with pytest.raises(StoreError, match=values.dtype.name):
        stored_array(values, "float32")
