import json
import sys

import datasets
import numpy as np
import pytest

from extraction.errors import StoreError
from extraction.exports import export, huggingface
from extraction.exports.ordered_rows import ordered_rows
from extraction.exports.run_rows import RunRows
from tests.extraction.exports.ragged_runs import (
    GENERATED,
    HOOKS,
    LAST,
    ROWS,
    WIDTHS,
    WITH_ROWS,
    entries,
    known_row,
    write_ragged_run,
)
from tests.extraction.known_runs import FORMS

ORDER = [(sample, position) for sample in WITH_ROWS for position in sample.positions]
COLUMNS = dict(zip(HOOKS, ["blocks.6.hook_resid_post", "blocks.6.mlp.hook_post"], strict=True))


def check(dataset, context_size: int, dtype: str = "float32", names=COLUMNS) -> None:
    """Compares every row and token with what was written."""
    contexts = ROWS // context_size
    assert len(dataset) == contexts
    dataset = dataset.with_format("numpy")
    order = ORDER[: contexts * context_size]
    for hook, column in names.items():
        expected = np.stack([known_row(*row, hook, dtype) for row in order])
        expected = expected.reshape(contexts, context_size, WIDTHS[hook])
        np.testing.assert_array_equal(dataset[column][:], expected)
    expected = np.array([sample.tokens[position] for sample, position in order])
    found = dataset["token_ids"][:]
    np.testing.assert_array_equal(found, expected.reshape(contexts, context_size))


@pytest.mark.parametrize(("file_format", "dtype"), FORMS)
def test_rows_follow_one_another(tmp_path, file_format, dtype):
    write_ragged_run(tmp_path / "run", file_format, dtype)
    done = export(tmp_path / "run", tmp_path / "out", "huggingface", context_size=2)
    assert (done.samples, done.rows) == (3, ROWS)
    assert "rows at the end that fill no context, left out: 1" in done.notes
    assert "samples that have no rows, left out: 1" in done.notes
    dataset = datasets.load_from_disk(tmp_path / "out")
    check(dataset, 2, dtype)
    assert dataset.features == datasets.Features(
        {COLUMNS[hook]: datasets.Array2D((2, WIDTHS[hook]), "float32") for hook in HOOKS}
        | {"token_ids": datasets.Sequence(datasets.Value("int32"), length=2)}
    )


@pytest.mark.parametrize(
    ("context_size", "per_file", "written", "chunk"),
    [(1, 1, 1, 1), (1, 2, 3, 2), (1, 4, 3, 100), (2, 3, 2, 3), (3, 2, 1, 4), (4, 100, 100, 1)],
)
def test_files_and_chunks_of_any_size(
    tmp_path, monkeypatch, context_size, per_file, written, chunk
):
    row_bytes = 4 * sum(WIDTHS.values())
    context_bytes = context_size * (row_bytes + 4)
    monkeypatch.setattr(huggingface, "FILE_BYTES", per_file * context_bytes)
    monkeypatch.setattr(huggingface, "WRITTEN_BYTES", written * context_bytes)
    monkeypatch.setattr("extraction.exports.run_rows.CHUNK_BYTES", chunk * row_bytes)
    write_ragged_run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "huggingface", context_size=context_size)
    check(datasets.load_from_disk(tmp_path / "out"), context_size)
    files = sorted(map(str, (tmp_path / "out").glob("data-*.arrow")))
    lengths = [len(datasets.Dataset.from_file(file)) for file in files]
    whole, rest = divmod(ROWS // context_size, per_file)
    assert lengths == [per_file] * whole + [rest] * (rest > 0)


def test_no_more_is_held_than_a_sample_spans(tmp_path, monkeypatch):
    monkeypatch.setattr("extraction.exports.run_rows.CHUNK_BYTES", 1)
    whole = tuple(((sample, position),) for sample, position in ORDER)
    write_ragged_run(tmp_path / "run", batches=whole, lines=None)
    given = [len(rows["token_ids"]) for rows in ordered_rows(RunRows(tmp_path / "run"))]
    assert given == [1] * ROWS


def test_the_library_tells_two_exports_apart(tmp_path):
    """It keeps what it computes from a dataset under its fingerprint."""
    write_ragged_run(tmp_path / "run")
    states = []
    for name in ("a", "b"):
        export(tmp_path / "run", tmp_path / name, "huggingface", context_size=2)
        assert entries(tmp_path / name) == {
            "data-00000-of-00001.arrow",
            "dataset_info.json",
            "state.json",
        }
        states.append(json.loads((tmp_path / name / "state.json").read_text()))
    assert states[0].pop("_fingerprint") != states[1].pop("_fingerprint")
    datasets.load_from_disk(tmp_path / "a").save_to_disk(tmp_path / "c")
    theirs = json.loads((tmp_path / "c" / "state.json").read_text())
    theirs.pop("_fingerprint")
    assert states == [theirs] * 2


def test_canonical_names(tmp_path):
    write_ragged_run(tmp_path / "run")
    out = tmp_path / "out"
    export(tmp_path / "run", out, "huggingface", context_size=3, names="canonical")
    check(datasets.load_from_disk(out), 3, names={hook: hook for hook in HOOKS})


def test_rows_without_a_position_follow_in_their_order(tmp_path):
    batches = (((GENERATED, -1), (LAST, 1), (GENERATED, -1)),)
    write_ragged_run(tmp_path / "run", batches=batches, lines=None)
    export(tmp_path / "run", tmp_path / "out", "huggingface", context_size=3)
    dataset = datasets.load_from_disk(tmp_path / "out")
    assert dataset["token_ids"][:] == [[-1, -1, 12]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "to='huggingface' needs context_size: rows of the run"),
        ({"context_size": 10}, "has 9 rows, too few for a context of 10"),
        ({"context_size": 0}, "context_size must be a whole number from 1, not 0"),
        ({"context_size": 2, "names": "x"}, "names must be transformer_lens or canonical"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, words):
    write_ragged_run(tmp_path / "run")
    with pytest.raises(StoreError, match=words):
        export(tmp_path / "run", tmp_path / "out", "huggingface", **options)
    assert entries(tmp_path) == {"run"}


def test_datasets_is_asked_for_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StoreError, match="pip install datasets"):
        export(tmp_path / "none", tmp_path / "out", "huggingface", context_size=2)
