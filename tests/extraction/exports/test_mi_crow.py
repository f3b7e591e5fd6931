"""The layout of mi_crow's store; the safetensors library is the judge of its files.

mi_crow itself reads an export in `make test-peers-mi-crow`.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from extraction.errors import StoreError, UnsafeNameError
from extraction.exports import export
from tests.extraction.exports.ragged_runs import (
    HOOKS,
    MODEL,
    ROWS,
    WIDTHS,
    WITH_ROWS,
    entries,
    known_row,
    write_ragged_run,
)
from tests.extraction.known_runs import FORMS


def folder_of(out):
    """The only run in an exported store, and its `meta.json`."""
    (folder,) = (out / "activations").iterdir()
    return folder, json.loads((folder / "meta.json").read_text("utf-8"))


@pytest.mark.parametrize(("file_format", "dtype"), FORMS)
@pytest.mark.parametrize(("shard_size", "chunk"), [(1, 1), (2, 3), (3, 100), (64, 2)])
def test_every_row_is_in_its_batch(tmp_path, monkeypatch, file_format, dtype, shard_size, chunk):
    row_bytes = 4 * sum(WIDTHS.values())
    monkeypatch.setattr("extraction.exports.run_rows.CHUNK_BYTES", chunk * row_bytes)
    write_ragged_run(tmp_path / "run", file_format, dtype)
    done = export(tmp_path / "run", tmp_path / "store", "mi_crow", shard_size=shard_size)
    assert (done.samples, done.rows) == (3, ROWS)
    folder, meta = folder_of(tmp_path / "store")
    shards = [WITH_ROWS[at : at + shard_size] for at in range(0, 3, shard_size)]
    assert entries(folder) == {"meta.json"} | {f"batch_{n}" for n in range(len(shards))}
    assert meta["sample_count"] == 3
    assert meta["batch_count"] == len(shards)
    for number, samples in enumerate(shards):
        batch = folder / f"batch_{number}"
        assert entries(batch) == {"metadata.json", *HOOKS}
        for hook in HOOKS:
            assert entries(batch / hook) == {"activations.safetensors"}
            (tensor,) = load_tensors(batch / hook / "activations.safetensors").values()
            assert tensor.dtype == getattr(torch, dtype)
            wanted = [known_row(s, p, hook, dtype) for s in samples for p in s.positions]
            np.testing.assert_array_equal(tensor.float().numpy(), wanted)
        keys = json.loads((batch / "metadata.json").read_text("utf-8"))
        assert keys["_tensor_metadata_names"] == {hook: ["activations"] for hook in HOOKS}
        assert keys["samples"] == [
            {
                "task_id": sample.task_id,
                "sample_idx": sample.sample_idx,
                "positions": list(sample.positions),
                "token_ids": [sample.tokens[position] for position in sample.positions],
            }
            for sample in samples
        ]


def test_what_meta_json_says(tmp_path):
    write_ragged_run(tmp_path / "run")
    run_id = json.loads((tmp_path / "run/_run/run.json").read_text())["run_id"]
    export(tmp_path / "run", tmp_path / "both", "mi_crow", shard_size=2)
    folder, meta = folder_of(tmp_path / "both")
    assert folder.name == run_id
    assert meta == {
        "run_name": run_id,
        "model": MODEL,
        "options": {"dtype": "float32", "batch_size": 2},
        "layer_signatures": list(HOOKS),
        "num_layers": 2,
        "layer_name": None,
        "sample_count": 3,
        "row_count": ROWS,
        "batch_count": 2,
        "batch_info": [
            {"batch": 0, "sample_count": 2, "row_count": ROWS - 1},
            {"batch": 1, "sample_count": 1, "row_count": 1},
        ],
        "shard_size": 2,
        "hidden_dims": WIDTHS,
    }
    export(tmp_path / "run", tmp_path / "one", "mi_crow", hook_points=[6], skip_first=4)
    folder, meta = folder_of(tmp_path / "one")
    assert (meta["layer_name"], meta["sample_count"], meta["row_count"]) == ("layer_6", 2, 2)
    rows = load_file(folder / "batch_0/layer_6/activations.safetensors")["tensor"]
    assert rows.shape == (2, 4)


def test_a_run_without_an_id(tmp_path):
    write_ragged_run(tmp_path / "run", "pickle")
    (tmp_path / "run/_run").rename(tmp_path / "gone")
    path = tmp_path / "run/metadata.json"
    document = json.loads(path.read_text())
    for run_id, error in (
        (None, None),
        ("../x", StoreError),
        ("..", UnsafeNameError),
        (3, StoreError),
    ):
        path.write_text(json.dumps(document | {"run_id": run_id}))
        if error is None:
            export(tmp_path / "run", tmp_path / "out", "mi_crow")
            assert folder_of(tmp_path / "out")[0].name == "run"
        else:
            with pytest.raises(error):
                export(tmp_path / "run", tmp_path / "bad", "mi_crow")
    assert entries(tmp_path) == {"run", "gone", "out"}


@pytest.mark.parametrize("shard_size", [0, -1, 1.5, "2"])
def test_a_bad_shard_size(tmp_path, shard_size):
    with pytest.raises(StoreError, match="shard_size must be a whole number from 1"):
        export(tmp_path / "run", tmp_path / "out", "mi_crow", shard_size=shard_size)
