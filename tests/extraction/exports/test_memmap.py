import dataclasses
import json

import numpy as np
import pytest

from extraction import save_activations
from extraction.errors import StoreError
from extraction.exports import export
from tests.extraction.exports.ragged_runs import (
    EVERY,
    GENERATED,
    LAST,
    MODEL,
    WITH_ROWS,
    entries,
    known_row,
    write_ragged_run,
)
from tests.extraction.known_runs import FORMS

LAST_BATCHES = (((EVERY, 4), (GENERATED, 4)), ((LAST, 1),))
TWO_WIDTHS = "rows of one width, but the widths are layer_6 4, layers.6.mlp.neurons 7; choose"


def maps(folder, n_hook_points, n_positions, width, seq_len):
    """As founding document 003's CachedDataset opens them."""
    acts = np.memmap(
        f"{folder}/acts.dat",
        dtype="float32",
        mode="r",
        shape=(3, n_hook_points, n_positions, width),
    )
    ids = np.memmap(f"{folder}/ids.dat", dtype="float32", mode="r", shape=(3, seq_len))
    return np.array(acts), np.array(ids)


@pytest.mark.parametrize(("file_format", "dtype"), FORMS)
def test_the_only_row_of_each_sample(tmp_path, file_format, dtype):
    write_ragged_run(tmp_path / "run", file_format, dtype, batches=LAST_BATCHES)
    out = tmp_path / "acts"
    done = export(tmp_path / "run", out, "memmap", hook_points=[6], pad_token_id=99)
    assert (done.samples, done.rows) == (3, 3)
    acts, ids = maps(out, 1, 1, 4, 5)
    expected = [known_row(s, s.positions[-1], "layer_6", dtype) for s in WITH_ROWS]
    np.testing.assert_array_equal(acts[:, 0, 0], expected)
    assert ids.tolist() == [[11, 12, 13, 14, 21], [41, 42, 0, 24, 25], [99, 99, 99, 11, 12]]
    assert [s.tokens[s.positions[-1]] for s in WITH_ROWS] == ids[:, -1].tolist()
    assert json.loads((out / "export.json").read_text("utf-8")) == {
        "acts": {"file": "acts.dat", "dtype": "float32", "shape": [3, 1, 1, 4]},
        "ids": {"file": "ids.dat", "dtype": "float32", "shape": [3, 5]},
        "hook_points": ["layer_6"],
        "pad_token_id": 99,
        "model_name": MODEL,
        "run_id": json.loads((tmp_path / "run/_run/run.json").read_text())["run_id"],
        "task_ids": ["tâsk", "long", "tâsk"],
        "sample_idx": [0, 3, 1],
        "positions": [[4], [4], [1]],
    }
    assert entries(out) == {"acts.dat", "ids.dat", "export.json"}


def test_the_last_rows_of_each_sample_in_order(tmp_path):
    long = dataclasses.replace(LAST, prompt=(5, 6, 7), positions=(0, 2, 1))
    batches = (
        ((EVERY, 4), (long, 2), (GENERATED, 3)),
        ((EVERY, 0), (EVERY, 3), (long, 0)),
        ((GENERATED, 2), (long, 1), (GENERATED, 4)),
    )
    write_ragged_run(tmp_path / "run", batches=batches, lines=None, hooks=("layer_6",))
    done = export(tmp_path / "run", tmp_path / "acts", "memmap", n_positions=2)
    assert "rows before the last 2 of their samples, left out: 3" in done.notes
    acts, _ = maps(tmp_path / "acts", 1, 2, 4, 5)
    for row, (sample, positions) in zip(
        acts, [(EVERY, (3, 4)), (long, (1, 2)), (GENERATED, (3, 4))], strict=True
    ):
        expected = [known_row(sample, position, "layer_6") for position in positions]
        np.testing.assert_array_equal(row[0], expected)


def test_hook_points_stand_in_the_order_asked_for(tmp_path, monkeypatch):
    widths = {"layer_6": 4, "layer_12": 4}
    monkeypatch.setattr("tests.extraction.exports.ragged_runs.WIDTHS", widths)
    write_ragged_run(tmp_path / "run", batches=LAST_BATCHES, hooks=tuple(widths))
    export(tmp_path / "run", tmp_path / "acts", "memmap", hook_points=[12, 6])
    acts, _ = maps(tmp_path / "acts", 2, 1, 4, 5)
    for number, hook in enumerate(["layer_12", "layer_6"]):
        expected = [known_row(sample, sample.positions[-1], hook) for sample in WITH_ROWS]
        np.testing.assert_array_equal(acts[:, number, 0], expected)


@pytest.mark.parametrize(("file_format", "dtype"), FORMS)
@pytest.mark.parametrize("seq_len", [5, 9])
def test_all_rows_at_their_tokens_aligned_to_the_right(tmp_path, file_format, dtype, seq_len):
    write_ragged_run(tmp_path / "run", file_format, dtype)
    options = {"hook_points": [6], "seq_len": seq_len, "pad_token_id": 99}
    done = export(tmp_path / "run", tmp_path / "acts", "memmap", **options)
    slots = f"9 of the {3 * seq_len} slots have a row; the others are 0"
    assert slots in done.notes
    acts, ids = maps(tmp_path / "acts", 1, seq_len, 4, seq_len)
    for n, sample in enumerate(WITH_ROWS):
        read = sample.tokens[:-1]  # the last one is never an input
        wanted = np.zeros((seq_len, 4), np.float32)
        for position in sample.positions:
            wanted[position - len(read)] = known_row(sample, position, "layer_6", dtype)
        np.testing.assert_array_equal(acts[n, 0], wanted)
        assert ids[n].tolist() == [99] * (seq_len - len(read)) + list(read)
    document = json.loads((tmp_path / "acts/export.json").read_text("utf-8"))
    assert document["positions"] == [list(sample.positions) for sample in WITH_ROWS]
    assert document["acts"]["shape"] == [3, 1, seq_len, 4]


def test_rows_left_out_are_zeros_in_their_places(tmp_path):
    write_ragged_run(tmp_path / "run")
    options = {"hook_points": [6], "seq_len": 5, "skip_first": 3}
    export(tmp_path / "run", tmp_path / "acts", "memmap", **options)
    acts = np.fromfile(tmp_path / "acts/acts.dat", np.float32).reshape(2, 5, 4)
    assert (acts != 0).any(axis=2).tolist() == [[False] * 3 + [True] * 2] * 2


def test_rows_without_positions_have_no_place(tmp_path):
    save_activations({"layer_6": np.ones((3, 4), np.float32)}, tmp_path / "run")
    with pytest.raises(StoreError, match="no position, which seq_len needs; n_positions=1 does no"):
        export(tmp_path / "run", tmp_path / "acts", "memmap", seq_len=4)
    export(tmp_path / "run", tmp_path / "acts", "memmap", n_positions=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hook_points": [6], "seq_len": 4}, r"more than 4 tokens: tâsk .*, long .*; seq_len=5 is"),
        ({"seq_len": 0}, "seq_len must be a whole number from 1, not 0"),
        ({"seq_len": 4, "n_positions": 1}, "give one of the two"),
        ({}, TWO_WIDTHS),
        ({"hook_points": [6]}, r"from 1 to 5 rows, .* n_positions=1 exports the last 1 of each"),
        (
            {"hook_points": [6], "n_positions": 4},
            r"fewer than 4 rows: long \(sample_idx 3\), tâsk \(sample_idx 1\); n_positions=1",
        ),
        ({"n_positions": 0}, "n_positions must be a whole number from 1, not 0"),
        ({"pad_token_id": 1 << 24}, "pad_token_id must be from 0 to 16777215, not 16777216"),
        ({"pad_token_id": -1}, "pad_token_id must be from 0"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, words):
    write_ragged_run(tmp_path / "run")
    with pytest.raises(StoreError, match=words):
        export(tmp_path / "run", tmp_path / "acts", "memmap", **options)
    assert entries(tmp_path) == {"run"}


@pytest.mark.parametrize(("largest", "fits"), [((1 << 24) - 1, True), (1 << 24, False)])
def test_ids_are_exact_or_refused(tmp_path, largest, fits):
    sample = dataclasses.replace(LAST, prompt=(largest, 12))
    write_ragged_run(tmp_path / "run", batches=(((sample, 1),),), lines=((sample,),))
    if not fits:
        with pytest.raises(StoreError, match="token 16777216 is not exact in float32"):
            export(tmp_path / "run", tmp_path / "acts", "memmap", hook_points=[6])
        return
    export(tmp_path / "run", tmp_path / "acts", "memmap", hook_points=[6])
    ids = np.fromfile(tmp_path / "acts/ids.dat", np.float32)
    assert ids.astype(np.int64).tolist() == [largest, 12]
