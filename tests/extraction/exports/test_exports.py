"""What all targets share, and the command as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import extraction
from extraction.__main__ import main
from extraction.errors import CorruptBatchError, StoreError
from extraction.exports import TARGETS, export
from extraction.storage.gcs import GcsStorage
from tests.extraction.bucket_environment import bucket  # noqa: F401
from tests.extraction.exports.padded_arrays import expected_arrays
from tests.extraction.exports.ragged_runs import ROWS, entries, write_ragged_run

ROOT = Path(extraction.__file__).parents[1]
OPTIONS = {
    "npz": {},
    "pt": {},
    "memmap": {"hook_points": [6], "n_positions": 1},
    "huggingface": {"context_size": 2},
    "mi_crow": {},
}


def run(capsys, *arguments) -> tuple[int, str, str]:
    try:
        status = main(["export", *map(str, arguments)])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_every_target_is_tested():
    assert set(OPTIONS) == set(TARGETS)


@pytest.mark.parametrize("to", TARGETS)
def test_an_export_that_fails_leaves_nothing(tmp_path, to):
    storage = write_ragged_run(tmp_path / "run", "safetensors")
    name = "layer_6_batch_000002.safetensors"
    data = bytearray(storage.get(name))
    data[-1] ^= 1
    storage.replace(name, bytes(data))
    with pytest.raises(CorruptBatchError, match=name):
        export(tmp_path / "run", tmp_path / "out", to, **OPTIONS[to])
    assert entries(tmp_path) == {"run"}


@pytest.mark.parametrize("to", ["npz", "huggingface"])  # a file and a folder
def test_what_is_killed_has_no_name(tmp_path, to):
    """The process ends at its last step, when all is written and nothing renamed."""
    write_ragged_run(tmp_path / "run")
    code = f"""
import os
from extraction.exports import export
os.rename = lambda *paths: os._exit(9)
export({str(tmp_path / "run")!r}, {str(tmp_path / "out")!r}, {to!r}, **{OPTIONS[to]!r})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, cwd=ROOT)
    assert done.returncode == 9
    names = entries(tmp_path) - {"run"}
    assert len(names) == 1
    assert names.pop().startswith(".tmp-out-")
    export(tmp_path / "run", tmp_path / "out", to, **OPTIONS[to])


@pytest.mark.parametrize("to", TARGETS)
def test_what_exists_is_refused_before_the_run_is_read(tmp_path, to):
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="out exists already"):
        export(tmp_path / "none", tmp_path / "out", to, **OPTIONS[to])
    assert entries(tmp_path / "out") == set()


def test_a_run_in_a_bucket(tmp_path, bucket):  # noqa: F811
    write_ragged_run(GcsStorage("gs://bucket/some/run"), "raw", "bfloat16")
    export("gs://bucket/some/run", tmp_path / "acts.npz", "npz")
    with np.load(tmp_path / "acts.npz") as loaded:
        for name, array in expected_arrays("bfloat16").items():
            np.testing.assert_array_equal(loaded[name], array)


def test_a_folder_without_its_records(tmp_path):
    write_ragged_run(tmp_path / "run", "pickle")
    (tmp_path / "run/_run").rename(tmp_path / "gone")
    done = export(tmp_path / "run", tmp_path / "acts.npz", "npz")
    assert any("without an output line" in note for note in done.notes)
    expected = expected_arrays()
    with np.load(tmp_path / "acts.npz") as loaded:
        np.testing.assert_array_equal(loaded["layer_6"], expected["layer_6"][:, :5])


def test_the_hook_points_that_are_asked_for(tmp_path):
    write_ragged_run(tmp_path / "run")
    done = export(tmp_path / "run", tmp_path / "a.npz", "npz", hook_points=["layers.6.mlp.neurons"])
    assert done.hook_points == ("layers.6.mlp.neurons",)
    with np.load(tmp_path / "a.npz") as loaded:
        assert "layer_6" not in loaded
    with pytest.raises(StoreError, match=r"there is no layer_7; .* has layer_6, layers\.6\.mlp"):
        export(tmp_path / "run", tmp_path / "b.npz", "npz", hook_points=[7])


def test_a_run_that_goes_on_or_is_empty_is_told(tmp_path):
    write_ragged_run(tmp_path / "run", planned=5)
    done = export(tmp_path / "run", tmp_path / "a.npz", "npz")
    assert "the run is not complete; it may still get rows, which this export lacks" in done.notes
    write_ragged_run(tmp_path / "empty", batches=(), lines=())
    with pytest.raises(StoreError, match="holds no rows yet"):
        export(tmp_path / "empty", tmp_path / "b.npz", "npz")


def test_the_command_tells_what_it_wrote(capsys, tmp_path):
    write_ragged_run(tmp_path / "run")
    out = tmp_path / "out"
    arguments = [tmp_path / "run", out, "--to", "huggingface", "--context_size", 2]
    status, text, err = run(capsys, *arguments, "--hook_points", 6, "layers.6.mlp.neurons")
    assert (status, err) == (0, "")
    assert text == (
        f"exported: 3 samples, {ROWS} rows for each of 2 hook points, in {out}\n"
        "4 contexts of 2 rows; columns blocks.6.hook_resid_post, blocks.6.mlp.hook_post\n"
        "rows at the end that fill no context, left out: 1\n"
        "samples that have no rows, left out: 1\n"
    )
    status, text, err = run(capsys, *arguments)
    assert (status, text) == (2, "")
    assert err == f"error: {out} exists already; give another name for the export, or remove it\n"


def test_the_command_has_the_targets_flags(capsys, tmp_path):
    write_ragged_run(tmp_path / "run")
    out = tmp_path / "out"
    flags = ["--hook_points", 6, "--n_positions", 1, "--pad_token_id", 7]
    assert run(capsys, tmp_path / "run", out, "--to", "memmap", *flags)[0] == 0
    document = json.loads((out / "export.json").read_text("utf-8"))
    assert (document["pad_token_id"], document["acts"]["shape"]) == (7, [3, 1, 1, 4])
    status, text, _ = run(capsys, "--help")
    assert status == 0
    assert "examples:\n  python -m extraction export ./activations" in text
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("usage"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "out"], "--to"),
        (["run", "out", "--to", "csv"], "csv"),
        (["none", "out", "--to", "npz"], "no such folder"),
        (["run", "gs://bucket/out", "--to", "npz"], "local path"),
        (["run", "out", "--to", "npz", "--n_positions", "1"], "--n_positions is not for --to npz"),
        (
            ["run", "out", "--to", "memmap", "--names", "canonical"],
            "takes --n_positions, --seq_len",
        ),
        (["run", "out", "--to", "huggingface"], "needs --context_size"),
        (["run", "out", "--to", "npz", "--dtype", "bfloat16"], "npz holds float32, not bfloat16"),
        (["run", "out", "--to", "npz", "--hook_points", "7"], "there is no layer_7"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    write_ragged_run(tmp_path / "run")
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert entries(tmp_path) == {"run"}


def test_numpy_alone_is_needed_for_npz_memmap_and_mi_crow(tmp_path):
    write_ragged_run(tmp_path / "run", "raw", "bfloat16")
    code = f"""
import sys
for name in ("jax", "torch", "transformers", "ml_dtypes", "google.cloud", "datasets", "pyarrow",
             "safetensors", "tqdm", "qwen_hooks.model", "inference"):
    sys.modules[name] = None
from extraction.__main__ import main
folder = {str(tmp_path)!r}
for to, *flags in (["npz"], ["memmap", "--n_positions", "1", "--hook_points", "6"],
                   ["mi_crow", "--dtype", "float32"]):
    assert main(["export", folder + "/run", folder + "/" + to, "--to", to, *flags]) == 0
assert main(["export", folder + "/run", folder + "/pt", "--to", "pt"]) == 2
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=ROOT)
    assert entries(tmp_path) == {"run", "npz", "memmap", "mi_crow"}
