"""Runs that version 0.1.0 wrote are read, verified and converted by this one."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from extraction import ActivationDataset
from extraction.__main__ import main

RUNS = Path(__file__).parent / "runs"
ROOT = Path(__file__).parents[2]
EXPECTED = dict(np.load(RUNS / "expected.npz"))
LAYERS = ("layer_1", "layer_3")
NEURONS = "layers.2.mlp.neurons"
UNFINISHED_ROWS = 6
"""Of the first unit; the last one, which was committed too, has none."""

WHOLE = ("pickle", "npz", "safetensors", "safetensors_bfloat16", "raw", "raw_bfloat16")
FOLDERS = {
    **{name: RUNS / name / "activations" for name in (*WHOLE, "unfinished")},
    "extractor": RUNS / "extractor",
    "plain": RUNS / "plain",
}


def hook_points(name: str) -> tuple[str, ...]:
    return LAYERS if name in ("extractor", "plain") else (*LAYERS, NEURONS)


def expected(name: str, hook: str) -> np.ndarray:
    """Values `[rows, width]` as the run's form holds them, in float32."""
    values = EXPECTED[hook][: UNFINISHED_ROWS if name == "unfinished" else None]
    if name.endswith("bfloat16"):
        values = values.astype(ml_dtypes.bfloat16)
    return values.astype(np.float32)


@pytest.mark.parametrize("name", FOLDERS)
def test_values_are_those_that_were_written(name):
    for hook in hook_points(name):
        np.testing.assert_array_equal(
            ActivationDataset(FOLDERS[name], hook)[:], expected(name, hook)
        )


@pytest.mark.parametrize("name", FOLDERS)
def test_keys_are_those_that_were_written(name):
    keys = ActivationDataset(FOLDERS[name], "layer_1").keys()
    rows = len(expected(name, "layer_1"))
    assert list(keys.task_ids) == EXPECTED["task_id"][:rows].tolist()
    np.testing.assert_array_equal(keys.sample_idx, EXPECTED["sample_idx"][:rows])
    if name == "plain":  # the original script recorded no more
        return
    for column in ("step", "position", "token_id"):
        np.testing.assert_array_equal(getattr(keys, column), EXPECTED[column][:rows])


@pytest.mark.parametrize("name", FOLDERS)
def test_a_stream_gives_every_row_once(name):
    stream = ActivationDataset(FOLDERS[name], "layer_3").batches(4, shuffle_seed=1)
    found = np.concatenate(list(stream))
    wanted = expected(name, "layer_3")
    order = np.lexsort(found.T)
    np.testing.assert_array_equal(found[order], wanted[np.lexsort(wanted.T)])


@pytest.mark.parametrize("level", ["1", "2", "3"])
@pytest.mark.parametrize("name", FOLDERS)
def test_verify_gives_the_status(name, level):
    status = {"plain": 3, "unfinished": 4}.get(name, 0)
    assert main(["verify", str(FOLDERS[name]), "--level", level]) == status


@pytest.mark.parametrize("target", ["pickle", "safetensors"])
@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in ("plain", "unfinished")])
def test_conversion_keeps_every_row(name, target, tmp_path):
    folder = tmp_path / "converted"
    assert main(["convert", str(FOLDERS[name]), str(folder), "--format", target]) == 0
    for hook in hook_points(name):
        np.testing.assert_array_equal(ActivationDataset(folder, hook)[:], expected(name, hook))
    assert main(["verify", str(folder), "--level", "3"]) == 0


OLDER = """
import sys
from extraction.__main__ import main as maintain
from inference.distributed_inference_with_activations import main as extract
folder, source, name = sys.argv[1:]
flags = ["--model_path", "m", "--tasks_file", "t", "--output_dir", folder, "--format", name]
assert extract(flags) == 2
assert maintain(["convert", source, folder + "/same", "--format", name]) == 2
assert maintain(["convert", source, folder + "/new", "--format", "safetensors"]) == 0
assert maintain(["verify", folder + "/new", "--level", "3"]) == 0
"""


@pytest.mark.parametrize("name", ["npz", "raw"])
def test_formats_of_the_version_before_are_read_and_no_longer_written(name, tmp_path):
    """In a process of its own, where the tests' writers of these formats are not."""
    source = RUNS / name / "activations"
    command = [sys.executable, "-c", OLDER, tmp_path, source, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(refused) == 2
    assert all("no longer written" in line and "convert" in line for line in refused)
    for hook in hook_points(name):
        before, after = (ActivationDataset(run, hook) for run in (source, tmp_path / "new"))
        np.testing.assert_array_equal(before[:], after[:])
