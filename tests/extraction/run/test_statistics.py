import functools
import itertools
import json
import math
import operator
import random
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extraction.run.large_norms import summary_of
from extraction.run.statistics import RowStatistics
from tests.extraction.known_rows import known_block

DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


def rows_of(count: int, width: int, seed: int = 0, dtype=np.float32) -> np.ndarray:
    """Rows of norms from 2^-7 to 2^7, whatever the width."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, width)) * 2.0 ** generator.uniform(-7, 7, (count, 1))
    return rows.astype(dtype)


def exact_sums(rows: np.ndarray) -> tuple[Fraction, Fraction]:
    """The sum and the sum of squares, without any rounding."""
    values = [Fraction(float(value)) for value in rows.ravel()]
    return sum(values, Fraction()), sum((value * value for value in values), Fraction())


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_and_sums_are_numpys(dtype):
    rows = rows_of(40, 30, dtype=dtype)
    found = RowStatistics.of(rows)
    wide = rows.astype(np.float64)
    assert (found.rows, found.nonfinite_rows, found.values) == (40, 0, 1200)
    assert found.total == pytest.approx(wide.sum(), rel=1e-12)
    assert found.total_squares == pytest.approx((wide**2).sum(), rel=1e-12)
    norms = np.linalg.norm(wide, axis=1)
    edges = 2.0 ** (np.arange(-80, 161) / 8)
    histogram = np.histogram(norms, edges)[0]
    expected = {str(number - 80): n for number, n in enumerate(histogram.tolist()) if n}
    assert found.norms == expected
    summary = summary_of(found)
    assert summary["mean"] == pytest.approx(wide.mean(), rel=1e-12)
    assert summary["mean_square"] == pytest.approx((wide**2).mean(), rel=1e-12)
    assert summary["norm_histogram"]["counts"] == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored_as", [np.float32, ml_dtypes.bfloat16])
def test_rows_are_counted_as_a_file_gives_them_back(dtype, stored_as):
    rows = rows_of(300, 600, dtype=dtype)  # more than are looked at together
    with np.errstate(over="ignore"):
        rows[7, 3] = 3.402e38  # infinite as a bfloat16, and as a float16
        given_back = rows.astype(np.float32).astype(stored_as)
    wide = stored_as is np.float32 and dtype in (np.float32, np.float64)
    found = RowStatistics.of(rows, np.dtype(stored_as).name)
    assert found == RowStatistics.of(given_back)
    assert found.nonfinite_rows == (0 if wide else 1)


def test_sums_of_many_numbers_are_right_to_the_last_digits():
    rows = rows_of(300, 64, seed=3)
    total, squares = exact_sums(rows)
    found = RowStatistics.of(rows)
    # Against the sum of the magnitudes, as the numbers nearly cancel.
    assert abs(Fraction(found.total) - total) < 1e-15 * float(np.abs(rows).sum())
    assert abs(Fraction(found.total_squares) - squares) < 1e-15 * squares


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_finite_are_counted_and_left_out(dtype):
    rows = rows_of(10, 6, dtype=dtype)
    finite = RowStatistics.of(rows[[0, 2, 3, 5, 6, 7, 8]])
    rows[1, 3], rows[4, 0], rows[9] = np.nan, np.inf, -np.inf
    found = RowStatistics.of(rows)
    assert (found.rows, found.nonfinite_rows, found.values) == (10, 3, 42)
    assert (found.total, found.total_squares) == (finite.total, finite.total_squares)
    assert found.norms == finite.norms
    assert sum(found.norms.values()) == 7


@pytest.mark.parametrize("bits", [0x7F80_0001, 0xFFC0_0000, 0x7F80_0000])
def test_every_kind_of_nan_and_infinity_is_quiet(bits):
    rows = np.array([[0, bits], [bits, bits]], np.uint32).view(np.float32)
    assert RowStatistics.of(rows).nonfinite_rows == 2


def test_the_largest_float32_is_finite():
    largest = float(np.finfo(np.float32).max)
    rows = np.full((3, 5000), largest, np.float32)
    found = RowStatistics.of(rows)
    assert found.nonfinite_rows == 0
    assert found.median_norm() == pytest.approx(largest * 5000**0.5, rel=0.045)


def test_rows_of_zeros_and_of_the_smallest_numbers_have_bins_too():
    smallest = np.full((1, 4), np.finfo(np.float32).smallest_subnormal)
    rows = np.concatenate([np.zeros((2, 4), np.float32), smallest, -np.zeros((1, 4), np.float32)])
    found = RowStatistics.of(rows)
    assert found.norms == {"zero": 3, str(-148 * 8): 1}  # 2 times 2^-149
    assert found.median_norm() == 0
    assert RowStatistics.of(smallest).median_norm() == pytest.approx(2.0**-148, rel=0.045)


def test_no_rows_have_no_means():
    for rows in (np.zeros((0, 4), np.float32), np.full((3, 4), np.nan, np.float32)):
        found = RowStatistics.of(rows)
        assert math.isnan(found.median_norm())
        summary = summary_of(found)
        assert [summary[key] for key in ("mean", "mean_square", "median_norm")] == [None] * 3
        assert summary["rows"] == summary["nonfinite_rows"] == len(rows)
        json.dumps(summary, allow_nan=False)
    assert RowStatistics.merge([]) == RowStatistics.of(np.zeros((0, 4)), keys=known_block(0, 0))


@pytest.mark.parametrize("width", [1, 7, 896, 8200])  # numpy cuts rows above 8192
def test_a_rows_numbers_depend_on_neither_layout_nor_neighbours(width):
    rows = rows_of(12, width, seed=width)
    whole = RowStatistics.of(rows)
    assert RowStatistics.of(np.asfortranarray(rows)) == whole
    assert RowStatistics.of(np.repeat(rows, 2, axis=1)[:, ::2]) == whole
    for row in rows:
        alone = RowStatistics.of(row[None])
        beside = RowStatistics.of(np.stack([np.zeros_like(row), row, np.zeros_like(row)]))
        assert (beside.total, beside.total_squares) == (alone.total, alone.total_squares)


@given(st.lists(st.integers(0, 9), max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_the_units_does_not_matter(sizes, chance: random.Random):
    bounds = [0, *itertools.accumulate(sizes)]
    rows = rows_of(bounds[-1], 5, seed=len(sizes), dtype=np.float64)
    if len(rows) > 2:
        rows[1], rows[2, 4] = 0, np.nan
    units = [RowStatistics.of(rows[a:b]) for a, b in itertools.pairwise(bounds)]
    merged = RowStatistics.merge(units)
    shuffled = chance.sample(units, len(units))
    assert RowStatistics.merge(shuffled) == merged
    assert json.dumps(summary_of(RowStatistics.merge(shuffled))) == json.dumps(summary_of(merged))


def test_sums_that_depend_on_the_order_elsewhere_do_not_here():
    units = [RowStatistics.of(rows_of(3, 5, seed=seed, dtype=np.float64)) for seed in range(40)]
    naive, merged = set(), set()
    for seed in range(20):
        shuffled = random.Random(seed).sample(units, len(units))
        # Python's own sum makes up for lost digits since 3.12.
        naive.add(functools.reduce(operator.add, (unit.total for unit in shuffled)))
        merged.add(RowStatistics.merge(shuffled).total)
    assert len(naive) > len(merged) == 1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_any_cut_into_units_and_hosts_counts_the_same(sizes, chance: random.Random):
    bounds = [0, *itertools.accumulate(sizes)]
    rows = rows_of(bounds[-1], 5, seed=sum(sizes), dtype=np.float64)
    units = [RowStatistics.of(rows[a:b]) for a, b in itertools.pairwise(bounds)]
    hosts = [[], [], []]
    for unit in units:
        hosts[chance.randrange(3)].append(unit)
    found = RowStatistics.merge(map(RowStatistics.merge, hosts))
    whole = RowStatistics.of(rows)
    assert (found.rows, found.values, found.norms) == (whole.rows, whole.values, whole.norms)
    # Sums are rounded where they are merged, so here they are not the same to the last digit.
    scale = float(np.abs(rows).sum())
    assert found.total == pytest.approx(whole.total, abs=1e-15 * scale)
    assert found.total_squares == pytest.approx(whole.total_squares, rel=1e-15)


@given(
    st.lists(st.floats(2.0**-20, 2.0**20), min_size=1, max_size=30),
    st.integers(0, 40),
)
def test_the_median_is_right_within_4_5_percent(norms, zeros):
    rows = np.array([*norms, *[0.0] * zeros])[:, None]
    expected = sorted([*norms, *[0.0] * zeros])[(len(rows) - 1) // 2]
    assert RowStatistics.of(rows).median_norm() == pytest.approx(expected, rel=0.045)


def test_bins_at_powers_of_two():
    rows = np.array([[0.5], [1.0], [1.09], [1.0906], [2.0]])  # 2^(1/8) is 1.0905
    assert RowStatistics.of(rows).norms == {"-8": 1, "0": 2, "1": 1, "8": 1}
