import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extraction.errors import CorruptBatchError, StoreError
from extraction.formats.key_arrays import KEY_DTYPES, KeyTable, key_arrays
from extraction.run.rows import text_column
from tests.extraction.formats.batches import assert_same_keys, varied_block


@pytest.mark.parametrize("rows", [0, 1, 7, 100])
def test_keys_come_back(rows):
    block = varied_block(rows)
    assert_same_keys(KeyTable(key_arrays(block)).block(), block)


@given(st.lists(st.text(), max_size=20))
def test_any_texts_come_back(texts):
    block = dataclasses.replace(varied_block(len(texts)), task_ids=text_column(texts))
    assert KeyTable(key_arrays(block)).block().task_ids.tolist() == texts


def test_names_and_dtypes_are_as_documented():
    arrays = key_arrays(varied_block(5))
    assert {name: array.dtype.str for name, array in arrays.items()} == KEY_DTYPES
    assert list(arrays) == list(KEY_DTYPES)
    assert {array.ndim for array in arrays.values()} == {1}


def test_a_shared_text_is_stored_once():
    texts = text_column(["one task", "other", "one task"])
    arrays = key_arrays(dataclasses.replace(varied_block(3), task_ids=texts))
    assert arrays["task_id.utf8"].tobytes() == b"one taskother"
    assert arrays["task_id.offsets"].tolist() == [0, 8, 13]
    assert arrays["task_id.index"].tolist() == [0, 1, 0]


def test_text_that_numpy_holds_becomes_plain_text():
    texts = text_column([np.str_("a"), "a", np.str_("b")])
    found = KeyTable(key_arrays(dataclasses.replace(varied_block(3), task_ids=texts))).block()
    assert [type(text) for text in found.task_ids] == [str] * 3


@pytest.mark.parametrize("name", ["task_id", "timestamp"])
def test_half_a_surrogate_pair_is_refused_by_name(name):
    texts = text_column(["fine", "\ud83e"])
    column = {"task_id": "task_ids", "timestamp": "timestamps"}[name]
    with pytest.raises(StoreError, match=rf"{name} holds '\\ud83e'"):
        key_arrays(dataclasses.replace(varied_block(2), **{column: texts}))


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("task_id.offsets", [], "does not span"),
        ("task_id.offsets", [1, 2, 3], "does not span"),
        ("task_id.offsets", [0, 1, 2], "does not span"),
        ("task_id.offsets", [0, 4, 3], "decreases"),
        ("task_id.offsets", [0, -1, 3], "decreases"),
        ("task_id.offsets", [0, 2**62, 3], "decreases"),
        ("task_id.index", [0, 2, 0], "beyond the 2"),
        ("task_id.index", [0, -1, 0], "beyond the 2"),
        ("task_id.index", [0, 1], "differ in length"),
        ("task_id.index", [], "differ in length"),
        ("sample_idx", [1, 2, 3, 4], "differ in length"),
        ("token_id", [], "differ in length"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(name, values, reason):
    texts = text_column(["a", "bc", "a"])
    arrays = key_arrays(dataclasses.replace(varied_block(3), task_ids=texts))
    arrays[name] = np.array(values, arrays[name].dtype)
    with pytest.raises(CorruptBatchError, match=reason):
        KeyTable(arrays)


def test_an_index_into_no_texts_is_refused():
    arrays = key_arrays(varied_block(2))
    arrays["task_id.offsets"] = np.zeros(1, np.int64)
    arrays["task_id.utf8"] = np.zeros(0, np.uint8)
    with pytest.raises(CorruptBatchError, match="beyond the 0"):
        KeyTable(arrays)


def test_offsets_that_cut_a_character_are_refused():
    arrays = key_arrays(dataclasses.replace(varied_block(2), task_ids=text_column(["é", "b"])))
    arrays["task_id.offsets"] = np.array([0, 1, 3])
    with pytest.raises(CorruptBatchError, match="cuts a character"):
        KeyTable(arrays)


def test_the_same_rows_may_be_stored_otherwise():
    block = dataclasses.replace(varied_block(3), task_ids=text_column(["a", "b", "a"]))
    arrays = key_arrays(block)
    texts = {
        "task_id.utf8": np.frombuffer(b"baa", np.uint8),
        "task_id.offsets": np.arange(4),
        "task_id.index": np.array([1, 0, 2], np.int32),
    }
    assert KeyTable(arrays).same_rows(KeyTable(arrays | texts))
    texts["task_id.index"] = np.array([1, 0, 0], np.int32)
    assert not KeyTable(arrays).same_rows(KeyTable(arrays | texts))
    other = dataclasses.replace(block, step=block.step + 1)
    assert not KeyTable(arrays).same_rows(KeyTable(key_arrays(other)))
