import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extraction.run.largest_rows import (
    LONGEST_TASK_ID,
    MOST_KEPT,
    columns_of,
    rows_of_columns,
)
from extraction.run.rows import RowBlock
from extraction.run.statistics import RowStatistics


def block_of(rows: np.ndarray, *, task_ids=None) -> RowBlock:
    """Rows with keys of their own; three rows a sample."""
    numbers = np.arange(len(rows))
    return RowBlock.of(
        {"layer_6": rows},
        [f"t{n // 12}" for n in numbers] if task_ids is None else task_ids,
        sample_idx=numbers // 3,
        position=numbers % 3,
        token_id=100 + numbers,
        step=numbers % 2,
    )


def statistics_of(block: RowBlock) -> RowStatistics:
    return RowStatistics.of(block.activations["layer_6"], keys=block)


def expected_rows(block: RowBlock, most: int = MOST_KEPT) -> list[tuple]:
    """By numpy and sorting, of all rows."""
    rows = block.activations["layer_6"].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.sqrt((rows * rows).sum(axis=1))
    found = [
        (-norm, *key)
        for norm, *key in zip(
            norms.tolist(),
            block.task_ids.tolist(),
            block.sample_idx.tolist(),
            block.position.tolist(),
            block.token_id.tolist(),
            block.step.tolist(),
            strict=True,
        )
        if np.isfinite(norm)
    ]
    return sorted(found)[:most]


def as_expected(largest) -> list[tuple]:
    return [(-row.norm, *row.key) for row in largest]


CASES = {
    "many": lambda random: random.standard_normal((500, 8)),
    "few": lambda random: random.standard_normal((9, 8)),
    "one": lambda random: random.standard_normal((1, 8)),
    "none": lambda random: random.standard_normal((0, 8)),
    "all equal": lambda random: np.ones((200, 8)),
    "all zero": lambda random: np.zeros((200, 8)),
    "ties at the edge": lambda random: np.repeat(random.integers(0, 4, (200, 1)), 8, axis=1),
    "not finite": lambda random: np.where(
        random.random((300, 8)) < 0.1, np.nan, random.standard_normal((300, 8))
    ),
    "none finite": lambda random: np.full((80, 8), np.inf),
}


@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_sorting_all_rows(case):
    block = block_of(CASES[case](np.random.default_rng(3)).astype(np.float32))
    found = statistics_of(block)
    assert found.largest is not None
    assert as_expected(found.largest) == expected_rows(block)
    totals = dict(
        zip(block.token_id.tolist(), block.activations["layer_6"].astype(float).sum(1), strict=True)
    )
    for row in found.largest:
        assert row.total == pytest.approx(totals[row.token_id], abs=1e-12)


@given(st.lists(st.integers(0, 90), max_size=8), st.booleans(), st.randoms(use_true_random=False))
def test_those_of_units_in_any_order_are_those_of_all_rows(sizes, ties, chance: random.Random):
    bounds = [0, *itertools.accumulate(sizes)]
    rows = np.random.default_rng(len(sizes)).standard_normal((bounds[-1], 4)).astype(np.float32)
    if ties:
        rows = np.round(rows)
    block = block_of(rows)
    units = [statistics_of(block[a:b]) for a, b in itertools.pairwise(bounds)]
    merged = RowStatistics.merge(chance.sample(units, len(units)))
    assert as_expected(merged.largest) == expected_rows(block)
    whole = statistics_of(block)
    assert merged.largest == whole.largest
    assert merged.bin_sums is not None
    assert whole.bin_sums is not None
    assert merged.bin_sums.keys() == whole.bin_sums.keys() == whole.norms.keys()
    for name, sums in whole.bin_sums.items():
        assert merged.bin_sums[name].first == sums.first
        assert merged.bin_sums[name].norms == pytest.approx(sums.norms, rel=1e-14)
        assert merged.bin_sums[name].total == pytest.approx(sums.total, abs=1e-12)


def test_a_part_without_keys_leaves_the_sum_without_keys():
    block = block_of(np.ones((5, 4), np.float32))
    with_keys, without = statistics_of(block), RowStatistics.of(block.activations["layer_6"])
    for parts in ([with_keys, without], [without, with_keys]):
        merged = RowStatistics.merge(parts)
        assert (merged.rows, merged.largest, merged.bin_sums) == (10, None, None)
    empty = RowStatistics.of(np.zeros((0, 4)))
    assert RowStatistics.merge([with_keys, empty]) == with_keys


def test_long_task_ids_are_cut_so_that_records_stay_small():
    block = block_of(
        np.ones((70, 4), np.float32), task_ids=[f"{n:03d}" + "ü" * 10**5 for n in range(70)]
    )
    found = statistics_of(block)
    assert {len(row.task_id) for row in found.largest or ()} == {LONGEST_TASK_ID}
    assert len(json.dumps(columns_of(found.largest or ()))) < 100_000


def damaged(change):
    columns = json.loads(json.dumps(columns_of(statistics_of(block_of(np.eye(6))).largest or ())))
    change(columns)
    return columns


DAMAGED = {
    "a column less": lambda c: c.pop("step"),
    "a column more": lambda c: c.update(more=[]),
    "no lists": lambda c: c.update(norm={}),
    "a row less": lambda c: c["norm"].pop(),
    "too many": lambda c: [column.extend(column * 11) for column in c.values()],
    "text for a norm": lambda c: c["norm"].__setitem__(0, "1"),
    "a norm that is none": lambda c: c["norm"].__setitem__(0, float("nan")),
    "an infinite norm": lambda c: c["norm"].__setitem__(0, float("inf")),
    "a norm below 0": lambda c: c["norm"].__setitem__(5, -1.0),
    "a huge whole number": lambda c: c["total"].__setitem__(0, 10**400),
    "a truth for a sample": lambda c: c["sample_idx"].__setitem__(0, True),
    "a sample beyond int64": lambda c: c["sample_idx"].__setitem__(0, 1 << 63),
    "a position beyond int32": lambda c: c["position"].__setitem__(0, 1 << 31),
    "a token that is none": lambda c: c["token_id"].__setitem__(0, 1.5),
    "a task that is no text": lambda c: c["task_id"].__setitem__(0, 7),
    "a long task": lambda c: c["task_id"].__setitem__(0, "x" * 201),
    "another order": lambda c: c["norm"].__setitem__(0, 0.5),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_columns_are_refused(damage):
    rows_of_columns(damaged(lambda c: None))
    with pytest.raises(ValueError, match=r"largest|zip"):
        rows_of_columns(damaged(DAMAGED[damage]))
