import numpy as np
import pytest

from extraction.errors import StoreError
from extraction.exports import export
from tests.extraction.exports.padded_arrays import expected_arrays
from tests.extraction.exports.ragged_runs import (
    EVERY,
    GENERATED,
    LAST,
    ROWS,
    entries,
    write_ragged_run,
)
from tests.extraction.known_runs import FORMS


@pytest.mark.parametrize(("file_format", "dtype"), FORMS)
def test_every_row_has_its_place(tmp_path, file_format, dtype):
    write_ragged_run(tmp_path / "run", file_format, dtype)
    done = export(tmp_path / "run", tmp_path / "acts.npz", "npz")
    assert (done.samples, done.rows) == (3, ROWS)
    expected = expected_arrays(dtype)
    with np.load(tmp_path / "acts.npz") as loaded:
        assert set(loaded.keys()) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(loaded[name], array)
            if name != "task_ids":
                assert loaded[name].dtype == array.dtype
        assert loaded["task_ids"].dtype.kind == "U"
    assert entries(tmp_path) == {"run", "acts.npz"}


def test_bfloat16_is_refused(tmp_path):
    write_ragged_run(tmp_path / "run", "raw", "bfloat16")
    with pytest.raises(StoreError, match="npz holds float32, not bfloat16"):
        export(tmp_path / "run", tmp_path / "acts.npz", "npz", dtype="bfloat16")


def test_without_output_lines_the_tokens_of_rows_are_known(tmp_path):
    write_ragged_run(tmp_path / "run", lines=None)
    done = export(tmp_path / "run", tmp_path / "acts.npz", "npz", hook_points=[6])
    assert "samples without an output line, with only the tokens of rows: 3" in done.notes
    with np.load(tmp_path / "acts.npz") as loaded:
        assert loaded["input_ids"].tolist() == [
            [11, 12, 13, 14, 21],
            [-1, -1, 0, 24, 25],
            [-1, 12, -1, -1, -1],
        ]
        np.testing.assert_array_equal(loaded["layer_6"], expected_arrays()["layer_6"][:, :5])


def test_rows_without_a_position_are_refused(tmp_path):
    batches = (((EVERY, 0), (GENERATED, -1), (LAST, 1)),)
    write_ragged_run(tmp_path / "run", batches=batches, lines=None)
    with pytest.raises(StoreError, match=r"rows of long \(sample_idx 3\) have no position"):
        export(tmp_path / "run", tmp_path / "acts.npz", "npz")
    assert entries(tmp_path) == {"run"}
