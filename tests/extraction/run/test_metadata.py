import json
import pickle
from pathlib import Path

import pytest

from extraction.run.metadata import BatchFile, metadata_document
from extraction.version import __version__
from tests.extraction.known_rows import WIDTH, known_block, make_extractor, read_metadata

# Founding document 004's keys, in its order.
DOCUMENT_KEYS = ["model_name", "layers_extracted", "hidden_dim", "total_samples", "batches"]
BATCH_KEYS = ["batch_id", "layer", "file", "n_samples"]
LAYERS = (6, 12)


def assert_true_to_the_files(folder: Path):
    """Every number can be found again in the files that the document lists, and all are listed."""
    metadata = read_metadata(folder)
    rows = {f"layer_{layer}": 0 for layer in metadata["layers_extracted"]}
    sequences = set()
    for batch in metadata["batches"]:
        file = pickle.loads((folder / batch["file"]).read_bytes())
        assert batch["layer"] == f"layer_{file['layer']}"
        assert batch["file"] == f"{batch['layer']}_batch_{batch['batch_id']:06d}.pkl"
        assert batch["n_samples"] == len(file["activations"])
        rows[batch["layer"]] += len(file["activations"])
        sequences |= {(row["task_id"], row["sample_idx"]) for row in file["activations"]}
    listed = [batch["file"] for batch in metadata["batches"]]
    files = [path.name for path in folder.iterdir() if path.is_file()]
    assert sorted([*listed, "metadata.json"]) == sorted(files)
    assert set(rows.values()) == {metadata["total_samples"]}
    assert metadata["total_sequences"] == len(sequences)


def test_document_is_founding_004s_and_more():
    batches = [
        BatchFile(batch_id=n, hook_point=f"layer_{layer}", file=f"l{layer}b{n}.pkl", n_samples=rows)
        for n, rows in ((1, 512), (2, 88))
        for layer in LAYERS
    ]
    data = metadata_document(
        model_name="Qwen/Qwen2.5-0.5B",
        hook_points=("layer_6", "layer_12"),
        hidden_dim=896,
        batches=batches,
        total_sequences=300,
        complete=True,
        file_format="pickle",
        run={"prompt": "größer"},
    )
    document = json.loads(data.decode("utf-8"))
    assert list(document)[:5] == DOCUMENT_KEYS
    assert document["model_name"] == "Qwen/Qwen2.5-0.5B"
    assert document["layers_extracted"] == [6, 12]
    assert document["hidden_dim"] == 896
    assert document["total_samples"] == 600  # rows of one layer, not of all
    assert [list(batch) for batch in document["batches"]] == [BATCH_KEYS] * 4
    assert document["batches"][2] == {
        "batch_id": 2,
        "layer": "layer_6",
        "file": "l6b2.pkl",
        "n_samples": 88,
    }
    assert document["total_sequences"] == 300
    assert (document["complete"], document["format"]) == (True, "pickle")
    assert document["run"] == {"prompt": "größer"}


def test_other_hook_points_carry_their_names():
    data = metadata_document(
        model_name="m",
        hook_points=("layer_6.mlp", "layer_6"),
        hidden_dim=4,
        batches=[],
        total_sequences=0,
        complete=False,
        file_format="pickle",
        run={},
    )
    assert json.loads(data)["layers_extracted"] == ["layer_6.mlp", 6]


@pytest.mark.parametrize("rows", [0, 1, 2, 7])
def test_a_finished_run_is_described_as_it_is(tmp_path, rows):
    with make_extractor(tmp_path, LAYERS, 2) as extractor:
        extractor.add(known_block(0, rows, LAYERS))
    assert_true_to_the_files(tmp_path)
    metadata = read_metadata(tmp_path)
    assert metadata["total_samples"] == metadata["total_sequences"] == rows
    assert metadata["hidden_dim"] == WIDTH
    assert metadata["run"] == {"seed": 7, "program_version": __version__}
    assert metadata["complete"] is True


def test_several_rows_of_a_sequence_count_as_one_sequence(tmp_path):
    with make_extractor(tmp_path, save_every=2) as extractor:
        for step in range(3):
            row = known_block(0, 1).activations["layer_6"][0]
            extractor.extract_layer_activation(6, row, "task", 0, step=step)
    assert_true_to_the_files(tmp_path)
    assert read_metadata(tmp_path)["total_sequences"] == 1


def test_sequences_that_take_turns_are_counted_once(tmp_path):
    # A batch of two in a generation loop: a, b, a, b, a, b.
    rows = known_block(0, 2).activations["layer_6"]
    with make_extractor(tmp_path) as extractor:
        for _ in range(3):
            extractor.extract_layer_activation(6, rows, ["a", "b"], [0, 0])
    assert read_metadata(tmp_path)["total_samples"] == 6
    assert read_metadata(tmp_path)["total_sequences"] == 2


def test_sequences_without_a_published_row_are_not_counted(tmp_path):
    extractor = make_extractor(tmp_path, save_every=2)
    extractor.add(known_block(0, 5))
    metadata = read_metadata(tmp_path)
    assert metadata["total_sequences"] == metadata["total_samples"] == 4


@pytest.mark.parametrize("batches", [1, 40])
def test_a_run_ended_by_an_exception_lists_every_published_file(tmp_path, batches):
    with pytest.raises(KeyError), make_extractor(tmp_path, save_every=1) as extractor:  # noqa: PT012
        for number in range(batches):
            extractor.add(known_block(number, 1))
        raise KeyError
    assert_true_to_the_files(tmp_path)
    assert read_metadata(tmp_path)["complete"] is False
