"""Exports without the rows that filters leave out."""

import json

import numpy as np
import pytest

from extraction import ActivationDataset, StoreError
from extraction.__main__ import main
from extraction.exports import export
from tests.extraction.reading.test_row_filters import SPECIAL, rows_of, written

ASKED = {"max_norm_multiple": 10, "exclude_special": True, "skip_first": 2}
FLAGS = ["--max_norm_multiple", "10", "--exclude_special", "--skip_first", "2"]
HOOK = "layer_3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("run") / "run", rows_of(0))


def kept_rows(folder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, samples and positions of the rows that are kept, by numpy."""
    dataset = ActivationDataset(folder, HOOK)
    rows, keys = dataset[:], dataset.keys()
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    kept = norms <= 10 * dataset.info.statistics[HOOK]["median_norm"]
    kept &= ~np.isin(keys.token_id, SPECIAL) & (keys.position >= 2)
    return rows[kept], keys.sample_idx[kept], keys.position[kept]


def test_npz_holds_the_rows_that_are_kept(folder, tmp_path):
    exported = export(folder, tmp_path / "x.npz", "npz", hook_points=[3], **ASKED)
    rows, sample, position = kept_rows(folder)
    assert exported.rows == len(rows)
    assert exported.samples == len(set(sample.tolist()))
    found = np.load(tmp_path / "x.npz")
    numbers = {key: n for n, key in enumerate(found["sample_idx"].tolist())}
    at = np.array([numbers[s] for s in sample.tolist()])
    assert found["attention_mask"].sum() == len(rows)
    np.testing.assert_array_equal(found[HOOK][at, position], rows)
    assert not np.any(found[HOOK][found["attention_mask"] == 0])


def test_memmap_takes_the_last_of_the_rows_that_are_kept(folder, tmp_path):
    export(folder, tmp_path / "x", "memmap", hook_points=[3], n_positions=1, **ASKED)
    rows, sample, position = kept_rows(folder)
    document = json.loads((tmp_path / "x" / "export.json").read_text())
    acts = np.memmap(tmp_path / "x" / "acts.dat", np.float32).reshape(document["acts"]["shape"])
    for n, number in enumerate(document["sample_idx"]):
        last = np.flatnonzero(sample == number)[-1]
        np.testing.assert_array_equal(acts[n, 0, 0], rows[last])
        assert document["positions"][n] == [position[last]]


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        (FLAGS, ASKED),
        (["--exclude_special", "5", "1"], {"exclude_special": [1, 5]}),
        (["--max_norm_multiple", "3.5"], {"max_norm_multiple": 3.5}),
        ([], {}),
    ],
    ids=str,
)
def test_the_command_takes_the_same_names(folder, tmp_path, capsys, flags, asked):
    out = tmp_path / "x.npz"
    arguments = ["export", str(folder), str(out), "--to", "npz", "--hook_points", "3", *flags]
    assert main(arguments) == 0
    kept = ActivationDataset(folder, HOOK).kept_rows(**asked)
    assert np.load(out)["attention_mask"].sum() == len(kept.numbers)
    lines = capsys.readouterr().out.splitlines()
    for name in asked:
        assert f"rows that --{name} leaves out: {kept.left_out[name]}" in lines
    assert sum("leaves out" in line for line in lines) == len(asked)


def test_filters_that_leave_nothing_are_refused(folder, tmp_path):
    with pytest.raises(StoreError, match="skip_first leaves out: 140"):
        export(folder, tmp_path / "x.npz", "npz", skip_first=99)
    assert not list(tmp_path.iterdir())


def test_a_flag_that_is_none_is_named_as_a_flag(folder, tmp_path, capsys):
    command = ["export", str(folder), str(tmp_path / "x"), "--to", "npz"]
    assert main([*command, "--max_norm_multiple", "-1"]) == 2
    assert "--max_norm_multiple -1.0 must be a finite number above 0" in capsys.readouterr().err
    assert main([*command, "--skip_first", "-1"]) == 2
    assert "--skip_first -1 is no whole number" in capsys.readouterr().err
