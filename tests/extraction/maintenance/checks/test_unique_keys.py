import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extraction.maintenance.checks import unique_keys
from extraction.maintenance.checks.unique_keys import (
    KeyIndex,
    row_hashes,
    row_keys,
    sequence_hashes,
    text_hashes,
)
from extraction.run.rows import RowBlock, text_column


def block_of(keys: list[tuple[str, int, int, int]]) -> RowBlock:
    """Rows of (task_id, sample_idx, position, step)."""
    return RowBlock(
        task_ids=text_column([key[0] for key in keys]),
        sample_idx=np.array([key[1] for key in keys], np.int64),
        position=np.array([key[2] for key in keys], np.int32),
        step=np.array([key[3] for key in keys], np.int32),
        token_id=np.zeros(len(keys), np.int32),
        timestamps=text_column([""] * len(keys)),
        activations={},
    )


few = st.tuples(
    st.sampled_from(["", "a", "b", "ü", "\ud800"]),
    st.sampled_from([0, 1, -1, 2**62]),
    st.sampled_from([-1, 0, 1, 2**31 - 1]),
    st.sampled_from([0, 1]),
)


@given(st.lists(few, max_size=30))
@settings(derandomize=True)
def test_hashes_agree_where_keys_do(keys):
    block = block_of(keys)
    hashes, exact = row_hashes(block).tolist(), row_keys(block)
    assert len(set(hashes)) == len(set(exact))
    assert dict(zip(exact, hashes, strict=True)) == {
        key: hashes[exact.index(key)] for key in set(exact)
    }
    sequences = list(zip(block.task_ids, block.sample_idx.tolist(), strict=True))
    assert len(set(sequence_hashes(block).tolist())) == len(set(sequences))


def test_position_decides_where_it_is_known():
    keys = row_keys(block_of([("a", 0, 7, 0), ("a", 0, 7, 1), ("a", 0, -1, 0), ("a", 0, -1, 1)]))
    assert keys == [("a", 0, 7), ("a", 0, 7), ("a", 0, "step 0"), ("a", 0, "step 1")]


def test_a_million_keys_have_as_many_hashes():
    numbers = np.arange(1_000_000)
    assert len(np.unique(text_hashes(["a"] * len(numbers), numbers))) == len(numbers)


def expected_duplicates(batches):
    found = set()
    for second, keys in enumerate(batches):
        for first in range(second):
            if set(keys) & set(batches[first]):
                found.add((first, second))
        if len(set(keys)) < len(keys):
            found.add((second, second))
    return found


@given(st.lists(st.lists(few, max_size=4), max_size=4), st.booleans())
@settings(derandomize=True, max_examples=200)
def test_keys_that_stand_twice_are_found_and_no_others(keys, colliding):
    batches = [row_keys(block_of(batch)) for batch in keys]
    index = KeyIndex()
    for number, batch in enumerate(keys):
        hashes = row_hashes(block_of(batch))
        index.add(number, hashes & np.uint64(3) if colliding else hashes)
    found = {(first, second) for _, first, second, _ in index.duplicates(batches.__getitem__)}
    expected = expected_duplicates(batches)
    assert found <= expected
    if not colliding:
        # Of a key in three batches the outer two need not be told as well.
        assert {second for _, second in found} == {second for _, second in expected}


def test_an_example_and_a_count_are_told():
    first = block_of([("a", 0, 1, 0), ("a", 0, 2, 0), ("a", 0, 3, 0)])
    second = block_of([("b", 0, 1, 0), ("a", 0, 3, 0), ("a", 0, 2, 0)])
    index = KeyIndex()
    index.add("one", row_hashes(first))
    index.add("none", row_hashes(block_of([])))
    index.add("two", row_hashes(second))
    blocks = {"one": first, "two": second}
    told = list(index.duplicates(lambda name: row_keys(blocks[name])))
    assert told == [(("a", 0, 3), "one", "two", 2)]


def test_no_batch_is_read_without_need():
    index = KeyIndex()
    for number in range(3):
        index.add(number, row_hashes(block_of([("a", number, 1, 0)])))
    assert list(index.duplicates(pytest.fail)) == []
    assert list(KeyIndex().duplicates(pytest.fail)) == []
    assert (index.distinct(), KeyIndex().distinct()) == (3, 0)


def test_only_so_many_pairs_are_looked_into(monkeypatch):
    monkeypatch.setattr(unique_keys, "REPORTED", 5)
    index = KeyIndex()
    keys = [("a", 0, 1, 0)]
    for number in range(50):
        index.add(number, row_hashes(block_of(keys)))
    assert len(list(index.duplicates(lambda _: row_keys(block_of(keys))))) == 5
