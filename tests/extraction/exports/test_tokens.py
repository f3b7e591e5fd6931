import numpy as np
import pytest

from extraction.errors import CorruptBatchError
from extraction.exports.run_rows import RunRows
from extraction.exports.tokens import Tokens
from tests.extraction.exports.ragged_runs import (
    EVERY,
    GENERATED,
    LAST,
    SKIPPED,
    write_ragged_run,
)


@pytest.mark.parametrize(
    ("only_read", "expected"),
    [
        (False, [[11, 12, 13, 14, 21, 22], [41, 42, 0, 24, 25, 26], [11, 12, 23, 9, 9, 9]]),
        (True, [[11, 12, 13, 14, 21, 9], [41, 42, 0, 24, 25, 9], [11, 12, 9, 9, 9, 9]]),
    ],
)
def test_tokens_of_output_lines(tmp_path, only_read, expected):
    write_ragged_run(tmp_path)
    tokens = Tokens(RunRows(tmp_path), only_read=only_read)
    assert tokens.lengths.tolist() == [6 - only_read, 6 - only_read, 3 - only_read]
    assert (tokens.largest, tokens.notes) == (42, [])
    array = np.full((3, 7), 9)
    tokens.write(array, np.ones(3, np.int64))
    assert array.tolist() == [[9, *row] for row in expected]


def test_some_samples_without_a_line(tmp_path):
    write_ragged_run(tmp_path, lines=((EVERY, SKIPPED), (LAST,)))
    tokens = Tokens(RunRows(tmp_path))
    assert tokens.lengths.tolist() == [6, 5, 3]
    assert tokens.notes == ["samples without an output line, with only the tokens of rows: 1"]


def test_tokens_that_are_none_are_refused(tmp_path):
    for number, token in enumerate(["x", 1 << 40, None]):
        broken = type(GENERATED)(**vars(GENERATED) | {"generated": (1, 2, token)})
        folder = tmp_path / str(number)
        write_ragged_run(folder, lines=((EVERY,), (broken, LAST)))
        with pytest.raises(CorruptBatchError, match="token ids that are not int32"):
            Tokens(RunRows(folder))
