import dataclasses
import itertools

import numpy as np
import pytest

from extraction import RowBlock, StoreError
from extraction.run.rows import text_column
from tests.extraction.known_rows import known_block

LAYERS = (6, 12)
COLUMNS = ["task_ids", "sample_idx", "step", "position", "token_id", "timestamps"]


def assert_same_rows(left: RowBlock, right: RowBlock):
    assert len(left) == len(right)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        assert getattr(left, name).dtype == getattr(right, name).dtype
    assert list(left.activations) == list(right.activations)
    for hook in left.activations:
        np.testing.assert_array_equal(left.activations[hook], right.activations[hook])


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_must_have_one_length(name):
    block = known_block(0, 3)
    with pytest.raises(StoreError, match=name):
        dataclasses.replace(block, **{name: getattr(block, name)[:2]})


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_every_hook_point_must_have_that_length(rows):
    short = known_block(0, rows, LAYERS).activations["layer_12"]
    block = known_block(0, 3, LAYERS)
    with pytest.raises(StoreError, match="layer_12"):
        dataclasses.replace(block, activations={**block.activations, "layer_12": short})


@pytest.mark.parametrize(
    ("rows", "first", "count"),
    [
        (slice(2, 5), 2, 3),
        (slice(None, 2), 0, 2),
        (slice(4, None), 4, 3),
        (slice(5, 99), 5, 2),
        (slice(3, 3), 3, 0),
    ],
)
def test_slice_holds_the_same_rows_of_every_array(rows, first, count):
    assert_same_rows(known_block(0, 7, LAYERS)[rows], known_block(first, count, LAYERS))


@pytest.mark.parametrize("cuts", [[0, 7], [0, 3, 7], [0, 0, 1, 6, 6, 7]])
def test_concatenation_undoes_cutting(cuts):
    pieces = [known_block(start, stop - start, LAYERS) for start, stop in itertools.pairwise(cuts)]
    assert_same_rows(RowBlock.concatenate(pieces), known_block(0, 7, LAYERS))


def test_concatenation_keeps_the_order_of_the_blocks():
    joined = RowBlock.concatenate([known_block(5, 1), known_block(0, 2)])
    assert joined.sample_idx.tolist() == [5, 0, 1]
    assert joined.task_ids.tolist() == ["task_5", "task_0", "task_1"]
    assert joined.activations["layer_6"][:, 0].tolist() == [5000, 0, 1000]


def test_text_column_cuts_nothing_off():
    joined = np.concatenate([text_column(["a"]), text_column(["a longer one"]), text_column([])])
    assert joined.tolist() == ["a", "a longer one"]
    assert all(type(text) is str for text in joined)
