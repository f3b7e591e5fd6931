"""Rows of large norm, against numpy over all rows."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extraction import StoreError
from extraction.run.large_norms import LargeNorms, check_multiple, summary_of
from extraction.run.rows import RowBlock
from extraction.run.statistics import RowStatistics


def rows_with_sinks(samples: int, length: int, *, every: int = 1, seed: int = 0) -> RowBlock:
    """Samples of `length` tokens; the first token of each `every`-th one has a norm 148 times that
    of others, and token 13 of some of them one 40 times as large."""
    random = np.random.default_rng(seed)
    position = np.tile(np.arange(length), samples)
    sample = np.repeat(np.arange(samples), length)
    rows = random.standard_normal((samples * length, 16)) + 0.1
    rows[(position == 0) & (sample % every == 0)] *= 148
    rows[(position == 5) & (sample % 7 == 0)] *= 40
    return RowBlock.of(
        {"layer_6": rows.astype(np.float32)},
        ["t"] * len(rows),
        sample_idx=sample,
        position=position,
        token_id=np.where(position == 0, 1, np.where(position == 5, 13, 1000 + position)),
    )


def large(block: RowBlock, multiple: float = 10.0, unit: int = 100) -> LargeNorms:
    parts = [block[start : start + unit] for start in range(0, len(block), unit)]
    return LargeNorms.of(
        RowStatistics.merge(
            RowStatistics.of(part.activations["layer_6"], keys=part) for part in parts
        ),
        multiple,
    )


def assert_as_numpy(block: RowBlock, found: LargeNorms) -> None:
    """What is counted as above is left out; everything else follows."""
    rows = block.activations["layer_6"].astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    finite = np.isfinite(norms)
    above = finite & (norms > found.limit)
    assert found.rows <= above.sum() <= found.rows + found.unsettled
    assert found.mean == pytest.approx(rows[finite].mean(), rel=1e-9)
    assert found.mean_norm == pytest.approx(norms[finite].mean(), rel=1e-12)
    assert found.largest is not None
    assert [row.norm for row in found.largest] == pytest.approx(
        np.sort(norms[above])[::-1][:64].tolist(), rel=1e-12
    )
    if found.unsettled:
        return
    assert found.at_position_0 == (above & (block.position == 0)).sum()
    left = finite & ~above
    if not left.any():
        assert (found.mean_without, found.mean_norm_without) == (None, None)
    else:
        assert found.mean_without == pytest.approx(rows[left].mean(), rel=1e-9, abs=1e-13)
        assert found.mean_norm_without == pytest.approx(norms[left].mean(), rel=1e-12)


@pytest.mark.parametrize("samples", [3, 40, 300])  # up to 64 rows above, and more
def test_sinks_are_found_and_taken_away(samples):
    block = rows_with_sinks(samples, 12)
    found = large(block)
    assert_as_numpy(block, found)
    assert (found.unsettled, found.at_position_0) == (0, samples)
    assert found.rows == samples + math.ceil(samples / 7)
    positions, token_ids = found.places
    assert positions[0] == [0, min(samples, 64)]
    assert token_ids[0] == [1, min(samples, 64)]
    if samples == 40:
        assert positions == [[0, 40], [5, 6]]
        assert token_ids == [[1, 40], [13, 6]]
    assert found.mean_norm_without is not None
    assert found.mean_norm_without < 0.6 * (found.mean_norm or 0)


@given(
    st.integers(1, 200),
    st.floats(0.3, 40),
    st.integers(1, 90),
    st.sampled_from([1.0, 0.0, np.nan, np.inf, 300.0]),
)
def test_any_rows_at_any_multiple(count, multiple, unit, special):
    random = np.random.default_rng(count)
    rows = random.standard_normal((count, 3)) * 2.0 ** random.uniform(-3, 3, (count, 1))
    rows[random.random(count) < 0.2] = special
    rows = np.round(rows, 1).astype(np.float32)  # so that norms are equal, too
    block = RowBlock.of({"layer_6": rows}, ["t"] * count, position=np.arange(count) % 4)
    found = large(block, multiple, unit)
    if not np.isfinite(rows).any():
        assert (found.rows, found.unsettled, found.mean) == (0, 0, None)
    else:
        assert_as_numpy(block, found)


def test_rows_in_the_bin_of_the_limit_are_settled_by_the_keys_as_far_as_they_reach():
    median = 1.0
    middle = 2 ** (0.5 / 8)  # of its bin
    for beside, settled in ((60, True), (70, False)):
        norms = [*[median] * 1000, *[10 * middle * 1.0001] * beside]
        block = RowBlock.of(
            {"layer_6": np.array(norms, np.float64)[:, None]}, ["t"] * len(norms), position=3
        )
        found = large(block)
        assert found.limit == pytest.approx(10 * middle)
        assert (found.rows, found.unsettled) == ((beside, 0) if settled else (64, beside - 64))
        assert_as_numpy(block, found)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_one_row_and_rows_all_alike_are_not_large(value):
    for count in (1, 300):
        block = RowBlock.of({"layer_6": np.full((count, 4), value)}, ["t"] * count, position=0)
        found = large(block)
        assert (found.rows, found.unsettled, found.at_position_0) == (0, 0, 0)
        assert found.mean_without == found.mean == value


def test_where_most_rows_are_zero_every_other_one_is_above():
    rows = np.zeros((200, 4))
    rows[::3] = 1e-3
    block = RowBlock.of({"layer_6": rows}, ["t"] * 200, position=0)
    found = large(block)
    assert (found.limit, found.rows, found.unsettled) == (0, 67, 0)
    assert (found.mean_without, found.mean_norm_without) == (0, 0)


@pytest.mark.parametrize("rows", [np.zeros((0, 4)), np.full((3, 4), np.nan), np.zeros((3, 0))])
def test_nothing_is_told_of_nothing(rows):
    block = RowBlock.of({"layer_6": rows}, ["t"] * len(rows))
    found = large(block)
    assert (found.rows, found.unsettled, found.mean, found.mean_without) == (0, 0, None, None)
    statistics = RowStatistics.of(rows, keys=block)
    json.dumps(summary_of(statistics), allow_nan=False)


def test_statistics_without_keys_tell_what_the_histogram_does():
    block = rows_with_sinks(300, 12)
    statistics = RowStatistics.of(block.activations["layer_6"])
    found = LargeNorms.of(statistics)
    norms = np.linalg.norm(block.activations["layer_6"].astype(np.float64), axis=1)
    above = (norms > found.limit).sum()
    assert found.rows <= above <= found.rows + found.unsettled
    assert found.mean == pytest.approx(block.activations["layer_6"].mean(dtype=np.float64))
    lacking = (found.at_position_0, found.largest, found.mean_norm, found.mean_without)
    assert lacking == (None, None, None, None)
    assert found.places == ([], [])
    assert summary_of(statistics).keys().isdisjoint({"mean_norm", "large_norms"})


def test_the_summary_is_bounded():
    block = rows_with_sinks(300, 12)
    columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
    columns["token_id"] = np.arange(len(block))
    summary = summary_of(RowStatistics.of(block.activations["layer_6"], keys=RowBlock(**columns)))
    assert summary["large_norms"]["rows"] == 343
    assert len(summary["large_norms"]["token_ids"]) == 8
    assert len(json.dumps(summary["large_norms"])) < 1000


@pytest.mark.parametrize("multiple", [0, -1, math.nan, math.inf, "10", True, None])
def test_multiples_that_are_none_are_refused(multiple):
    with pytest.raises(StoreError, match="max_norm_multiple"):
        check_multiple(multiple)


def test_multiples_may_be_any_number_above_0():
    assert [check_multiple(n) for n in (3, 0.5, np.float32(2))] == [3.0, 0.5, 2.0]


def test_the_median_is_the_same_for_any_cut():
    block = rows_with_sinks(30, 12)
    limits = {large(block, unit=unit).limit for unit in (1, 7, 100, 1000)}
    assert len(limits) == 1
