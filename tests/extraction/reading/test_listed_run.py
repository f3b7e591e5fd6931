"""Folders that have `metadata.json` and files, and nothing else of a run."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from extraction.errors import CorruptBatchError, StoreError
from extraction.reading.dataset import ActivationDataset
from tests.extraction.formats.batches import founding_document
from tests.extraction.known_rows import WIDTH
from tests.extraction.known_runs import FORMS, MODEL, expected_rows, write_run

ROWS, LAYERS = 10, (6, 12)


def copied(folder: Path) -> Path:
    """What is left of a run where only the files that one sees were copied."""
    (folder / "_run").rename(folder.with_name("run_that_was_left"))
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_without_the_records_reads_like_the_run(tmp_path, form):
    folder = write_run(tmp_path / "run", ROWS, LAYERS, file_format=form[0], dtype=form[1])
    before = ActivationDataset(folder, LAYERS)
    expected = before.info, before.keys().sample_idx.tolist()
    dataset = ActivationDataset(copied(folder), LAYERS)
    assert (dataset.info, dataset.keys().sample_idx.tolist()) == expected
    for hook, rows in enumerate(dataset[:].values()):
        np.testing.assert_array_equal(rows, expected_rows(range(ROWS), hook, form[1]))
    numbers = [row for batch in dataset.batches(3, shuffle_seed=0) for row in batch["layer_6"]]
    assert len(numbers) == ROWS
    assert dataset.outlier_rows(1.1)["layer_6"].tolist() == [5, 6, 7, 8, 9]
    stored = ActivationDataset(folder, 6, dtype="stored")[:]
    assert stored.dtype.name == form[1]


def test_a_position_goes_from_the_run_to_its_copy(tmp_path):
    folder = write_run(tmp_path / "run", ROWS, LAYERS)
    stream = ActivationDataset(folder, 6).batches(3, shuffle_seed=2)
    next(stream)
    position, rest = stream.position, list(stream)
    again = list(ActivationDataset(copied(folder), 6).batches(3, shuffle_seed=2, start=position))
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(rest))


def write_as_the_founding_document(folder: Path, dtype=np.float32, **changes) -> Path:
    """What founding document 004's own code leaves: its keys and no more, numpy's own pickles."""
    folder.mkdir()
    batches = []
    for batch_id, rows in enumerate((3, 2), start=1):
        for layer in LAYERS:
            name = f"layer_{layer}_batch_{batch_id:06d}.pkl"
            document = founding_document(rows, layer=layer, dtype=dtype)
            (folder / name).write_bytes(pickle.dumps(document))
            batches.append(
                {"batch_id": batch_id, "layer": f"layer_{layer}", "file": name, "n_samples": rows}
            )
    document = {
        "model_name": MODEL,
        "layers_extracted": list(LAYERS),
        "hidden_dim": WIDTH,
        "total_samples": 10,
        "batches": batches,
    }
    (folder / "metadata.json").write_text(json.dumps(document | changes))
    return folder


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_what_founding_document_004s_own_code_writes(tmp_path, dtype):
    folder = write_as_the_founding_document(tmp_path / "run", dtype)
    dataset = ActivationDataset(folder, LAYERS)
    info = dataset.info
    assert (info.rows, info.format, info.dtype, info.run_id) == (5, "pickle", None, None)
    assert (info.sequences, info.complete, info.statistics) == (None, None, {})
    values = np.arange(12).reshape(3, WIDTH) / 3
    expected = np.concatenate([values, values[:2]]).astype(dtype).astype(np.float32)
    for rows in dataset[:].values():
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, expected)
    assert (
        dataset.keys().task_ids.tolist()
        == ["task_abc0", "task_abc0", "task_abc1"] + ["task_abc0"] * 2
    )
    assert set(dataset.keys().position.tolist()) == {-1}
    assert len(dataset.outlier_rows()["layer_6"]) == 0
    with pytest.raises(StoreError, match=r"read it with dtype=.float32"):
        ActivationDataset(folder, 6, dtype="stored")


def test_new_batches_in_the_list_are_taken_up(tmp_path):
    folder = write_as_the_founding_document(tmp_path / "run")
    path = folder / "metadata.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"batches": whole["batches"][2:]}))  # the second batch
    dataset = ActivationDataset(folder, 6)
    assert len(dataset) == 2
    path.write_text(json.dumps(whole))
    assert dataset.refresh() == 3
    assert len(dataset) == 5
    assert dataset.keys().sample_idx.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", "../layer_6_batch_000001.pkl"),
        ("file", "/etc/passwd"),
        ("file", "sub/layer_6_batch_000001.pkl"),
        ("file", "..\\layer_6.pkl"),
        ("file", ".."),
        ("file", "."),
        ("file", ""),
        ("file", "a\0.pkl"),
        ("file", 5),
        ("file", "layer_6_batch_000002.pkl"),  # twice
        ("batch_id", 2),  # twice
        ("batch_id", "1"),
        ("batch_id", True),
        ("batch_id", -1),
        ("n_samples", "3"),
        ("n_samples", -3),
        ("n_samples", None),
        ("layer", "layer_7"),
        ("layer", [6]),
    ],
)
def test_a_list_that_cannot_be_trusted_is_refused(tmp_path, key, value):
    folder = write_as_the_founding_document(tmp_path / "run")
    path = folder / "metadata.json"
    document = json.loads(path.read_text())
    document["batches"][0][key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"metadata\.json|more than one batch"):
        ActivationDataset(folder, 6)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        "{}",
        "[" * 100_000,
        '{"batches": 5, "model_name": "m", "layers_extracted": [6], "hidden_dim": 4}',
        '{"batches": [5], "model_name": "m", "layers_extracted": [6], "hidden_dim": 4}',
        '{"batches": [{}], "model_name": "m", "layers_extracted": [6], "hidden_dim": 4}',
        '{"batches": [], "model_name": "m", "layers_extracted": 6, "hidden_dim": 4}',
        '{"batches": [], "model_name": "m", "layers_extracted": [6.5], "hidden_dim": 4}',
        '{"batches": [], "model_name": "m", "layers_extracted": [6], "hidden_dim": "4"}',
        '{"batches": [], "model_name": "m", "layers_extracted": [6], "hidden_dim": 4, "format": 1}',
        '{"batches": [], "model_name": "m", "layers_extracted": [6], "hidden_dim": 4, "dtype": 1}',
    ],
)
def test_a_damaged_document_is_refused_by_name(tmp_path, text):
    (tmp_path / "metadata.json").write_text(text)
    with pytest.raises(StoreError, match=r"metadata\.json (is damaged|names the format)"):
        ActivationDataset(tmp_path, 6)


@pytest.mark.parametrize(
    "changes", [{"complete": "yes"}, {"total_sequences": "5"}, {"statistics": []},
                {"statistics": {"layer_6": 5}}, {"statistics": {"layer_6": {"median_norm": "5"}}}]
)  # fmt: skip
def test_damaged_information_is_refused(tmp_path, changes):
    folder = write_as_the_founding_document(tmp_path / "run", **changes)
    with pytest.raises(StoreError, match=r"metadata\.json is damaged"):
        _ = ActivationDataset(folder, 6).info


def test_a_missing_file_is_refused_and_named(tmp_path):
    folder = write_as_the_founding_document(tmp_path / "run")
    (folder / "layer_6_batch_000002.pkl").unlink()
    with pytest.raises(CorruptBatchError, match=r"layer_6_batch_000002\.pkl is missing"):
        ActivationDataset(folder, 6)
    assert len(ActivationDataset(folder, 12)) == 5
    dataset = ActivationDataset(folder, 6, on_bad="skip")
    assert (len(dataset), list(dataset.skipped)) == (3, [2])


def test_a_missing_second_file_is_refused_and_named(tmp_path):
    folder = copied(write_run(tmp_path / "run", ROWS, file_format="raw"))
    (folder / "layer_6_batch_000002.keys.npz").unlink()
    with pytest.raises(CorruptBatchError, match=r"layer_6_batch_000002\.keys\.npz is missing"):
        ActivationDataset(folder, 6)


def edited(folder: Path, **changes) -> Path:
    """Changes the entry of layer 12's second batch."""
    path = folder / "metadata.json"
    document = json.loads(path.read_text())
    document["batches"][3].update(changes)
    path.write_text(json.dumps(document))
    return folder


def test_a_wrong_count_of_rows_is_refused(tmp_path):
    folder = edited(write_as_the_founding_document(tmp_path / "run"), n_samples=4)
    dataset = ActivationDataset(folder, 12)
    for read in (lambda: dataset[4], lambda: list(dataset.batches(2))):
        with pytest.raises(CorruptBatchError, match=r"layer_12_batch_000002\.pkl: .*2 rows, not 4"):
            read()


def test_a_file_of_another_layer_is_refused(tmp_path):
    folder = write_as_the_founding_document(tmp_path / "run")
    (folder / "layer_12_batch_000002.pkl").write_bytes(
        (folder / "layer_6_batch_000002.pkl").read_bytes()
    )
    with pytest.raises(CorruptBatchError, match="holds layer_6, not layer_12"):
        ActivationDataset(folder, 12)[4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_id": 9}, r"same batches: .* \[2, 9\]"),
        ({"n_samples": 1}, "different numbers of rows"),
    ],
)
def test_layers_that_cannot_be_aligned_are_read_one_at_a_time(tmp_path, changes, words):
    folder = edited(write_as_the_founding_document(tmp_path / "run"), **changes)
    with pytest.raises(StoreError, match=words):
        ActivationDataset(folder, LAYERS)
    assert len(ActivationDataset(folder, 6)) == 5
    assert len(ActivationDataset(folder, 12)) == 3 + changes.get("n_samples", 2)
