import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extraction.errors import StoreError
from extraction.reading.row_order import RowOrder, id_ranges, ids_of, permutation

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=30).map(tuple)


def order_of(order: RowOrder, epoch: int) -> list[tuple[int, int]]:
    """The rows of an epoch as (batch, row in it)."""
    rows = []
    for pool in order.pools(epoch):
        there: list = [None] * pool.rows
        places = [range(pool.rows)] if order.seed is None else order.places(pool)
        for batch, places_of_batch in zip(pool.batches, places, strict=True):
            assert len(places_of_batch) == order.sizes[batch]
            for row, place in enumerate(places_of_batch):
                assert there[place] is None
                there[place] = (batch, row)
        assert pool.first_row == len(rows)
        rows += there
        assert pool.last is (len(rows) == sum(order.sizes))
    return rows


@given(sizes=SIZES, seed=st.integers(0, 2**130), pool_rows=st.integers(1, 60), epoch=st.integers(0))
def test_every_row_comes_once_in_an_epoch_and_pools_keep_their_bound(sizes, seed, pool_rows, epoch):
    order = RowOrder(sizes=sizes, seed=seed, pool_rows=pool_rows)
    rows = order_of(order, epoch)
    assert sorted(rows) == [(b, row) for b, size in enumerate(sizes) for row in range(size)]
    for pool in order.pools(epoch):
        assert pool.epoch == epoch
        assert pool.rows <= pool_rows or len(pool.batches) == 1
    assert order_of(order, epoch) == rows


@given(sizes=SIZES)
def test_without_a_seed_rows_come_as_they_are_stored(sizes):
    order = RowOrder(sizes=sizes, seed=None, pool_rows=1)
    rows = order_of(order, 3)
    assert rows == sorted(rows)
    assert [pool.batches for pool in order.pools(0)] == [(b,) for b in range(len(sizes))]


def test_seeds_and_epochs_give_orders_of_their_own():
    sizes = (5,) * 20
    orders = [
        order_of(RowOrder(sizes=sizes, seed=seed, pool_rows=30), epoch)
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len({tuple(order) for order in orders}) == 16
    batches = [
        tuple(pool.batches for pool in RowOrder(sizes=sizes, seed=1, pool_rows=5).pools(epoch))
        for epoch in range(4)
    ]
    assert len(set(batches)) == 4  # not only the rows of a pool change places


def test_an_order_is_the_same_on_every_machine_and_for_ever():
    """Positions that users keep depend on these numbers."""
    assert permutation(10, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]
    assert permutation(10, 2**70 + 1, 3, 4).tolist() == [3, 9, 0, 4, 5, 8, 7, 6, 1, 2]
    rows = order_of(RowOrder(sizes=(2, 3, 1, 4), seed=7, pool_rows=6), 1)
    assert rows[:4] == [(3, 0), (3, 3), (3, 2), (3, 1)]
    assert rows[4:] == [(0, 1), (1, 0), (2, 0), (1, 1), (0, 0), (1, 2)]


def test_a_permutation_is_one_of_all_alike():
    """Each of the 24 orders of four numbers, in 4,800 draws: 200 times, give or take 14."""
    found = collections.Counter(tuple(permutation(4, seed).tolist()) for seed in range(4800))
    assert len(found) == 24
    assert all(130 < times < 270 for times in found.values())
    assert permutation(0, 1).tolist() == []
    assert permutation(1, 1).tolist() == [0]


def test_rows_of_a_pool_are_well_mixed():
    """A batch's rows land all over its pool, not beside each other."""
    order = RowOrder(sizes=(512,) * 8, seed=0, pool_rows=4096)
    (pool,) = order.pools(0)
    for places in order.places(pool):
        counts = np.histogram(places, bins=8, range=(0, 4096))[0]
        assert (counts > 30).all()
        assert (np.diff(np.sort(places)) == 1).mean() < 0.25


@given(ids=st.lists(st.integers(0, 40), unique=True))
def test_ranges_give_back_the_numbers_in_their_order(ids):
    assert ids_of(id_ranges(ids), range(41)) == ids


def test_numbers_without_a_gap_are_one_range():
    assert id_ranges([*range(1, 1001), 1005, 1003, 1004]) == [[1, 1000], [1005, 1005], [1003, 1004]]


@pytest.mark.parametrize(
    "ranges",
    [None, 5, "12", [5], [[1]], [[1, 2, 3]], [[1, "2"]], [[1.0, 2]], [[True, 2]], [[1, 10**18]],
     [[1, 2], [2, 3]], [[4, 5]], {"1": 2}],
)  # fmt: skip
def test_other_ranges_are_refused(ranges):
    with pytest.raises(StoreError, match=r"position|range"):
        ids_of(ranges, [1, 2, 3])
