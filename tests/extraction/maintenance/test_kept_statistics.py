"""Statistics, largest norms and keys after every way a run is made, against numpy over all rows."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from extraction import ActivationDataset
from extraction.maintenance.convert import convert
from extraction.maintenance.merge import merge
from extraction.maintenance.repair import repair
from extraction.maintenance.verify import verify
from extraction.run.records import CommitLog
from extraction.run.rows import RowBlock
from extraction.run.totals import RunTotals
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata
from tests.extraction.written_runs import HOOKS, write_run
from tests.golden.test_golden_runs import FOLDERS, hook_points

LENGTH = 9
"""Tokens of a sample."""


def unit(number: int, samples: int = 8) -> RowBlock:
    """Rows whose first tokens are sinks; one is not finite and one is zero, norms repeat."""
    random = np.random.default_rng(number)
    rows = samples * LENGTH
    position = np.tile(np.arange(LENGTH), samples)
    values = {}
    for hook in HOOKS:
        values[hook] = np.round(random.standard_normal((rows, 4)), 1).astype(np.float32) + 0.25
        values[hook][position == 0] *= 148
        values[hook][3] = 0
    values[HOOKS[0]][4, 2] = np.nan
    return RowBlock.of(
        values,
        [f"tâsk_{number}"] * rows,
        sample_idx=np.repeat(np.arange(samples), LENGTH),
        position=position,
        token_id=np.where(position == 0, 1, 100 + random.integers(0, 9, rows)),
    )


def written(place, numbers, *, planned=None, file_format="pickle") -> LocalStorage:
    storage = LocalStorage(place)
    write_run(storage, file_format, units=0, planned=planned or len(numbers))
    commit(storage, dict(enumerate(numbers, 1)), file_format)
    return storage


def commit(storage, numbers: dict[int, int], file_format="pickle") -> None:
    for batch_id, number in numbers.items():
        Committer(storage, HOOKS, file_format).commit(batch_id, unit(number))
    write_metadata(storage)


def assert_numpys(storage, hooks=HOOKS, *, records: bool = True) -> None:
    """`metadata.json`, and what the records add up to, are what numpy makes of all rows."""
    document = json.loads(storage.get("metadata.json"))["statistics"]
    totals = RunTotals(CommitLog(storage).records()) if records else None
    for hook in hooks:
        dataset = ActivationDataset(storage, hook)
        rows, keys = dataset[:].astype(np.float64), dataset.keys()
        norms = np.sqrt((rows * rows).sum(axis=1))
        finite, found = np.isfinite(norms), document[hook]
        assert (found["rows"], found["nonfinite_rows"]) == (len(rows), (~finite).sum())
        assert found["mean"] == pytest.approx(rows[finite].mean(), rel=1e-12)
        assert found["mean_norm"] == pytest.approx(norms[finite].mean(), rel=1e-12)
        lower_median = np.sort(norms[finite])[(finite.sum() - 1) // 2]
        assert found["median_norm"] == pytest.approx(lower_median, rel=0.045)
        large = found["large_norms"]
        above = finite & (norms > 10 * found["median_norm"])
        assert (large["rows"], large["unsettled_rows"]) == (above.sum(), 0)
        assert large["rows_at_position_0"] == (above & (keys.position == 0)).sum()
        assert large["mean_without"] == pytest.approx(rows[finite & ~above].mean(), rel=1e-12)
        without = norms[finite & ~above].mean()
        assert large["mean_norm_without"] == pytest.approx(without, rel=1e-12)
        order = sorted(
            np.flatnonzero(finite).tolist(),
            key=lambda i: (-norms[i], keys.task_ids[i], keys.sample_idx[i], keys.position[i]),
        )[:64]
        listed = [i for i in order if above[i]]
        assert large["rows_with_keys"] == len(listed)
        for column, named in (("position", "positions"), ("token_id", "token_ids")):
            counted = Counter(getattr(keys, column)[listed].tolist())
            ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
            assert large[named] == [list(item) for item in ordered[:8]]
        if totals is not None:
            kept = totals.statistics(hook).largest
            assert kept is not None
            assert [row.key for row in kept] == [
                (keys.task_ids[i], keys.sample_idx[i], keys.position[i], keys.token_id[i], 0)
                for i in order
            ]
            assert [row.norm for row in kept] == norms[order].tolist()


@pytest.mark.parametrize("file_format", ["pickle", "safetensors"])
def test_of_a_run_and_of_one_written_in_pieces(tmp_path, file_format):
    whole = written(tmp_path / "whole", range(12), file_format=file_format)
    assert_numpys(whole)
    pieces = written(tmp_path / "pieces", [0, 1], planned=12, file_format=file_format)
    assert_numpys(pieces)
    commit(pieces, {n + 1: n for n in (7, 3, 11)}, file_format)  # as hosts commit them
    assert_numpys(pieces)
    commit(pieces, {n + 1: n for n in range(12)}, file_format)  # those that are there stay
    one, two = (json.loads(run.get("metadata.json"))["statistics"] for run in (whole, pieces))
    assert one == two


def test_of_merged_runs(tmp_path):
    sources = [written(tmp_path / "a", [0, 1, 2]), written(tmp_path / "b", [5, 4])]
    out = LocalStorage(tmp_path / "out")
    merge(out, sources)
    assert_numpys(out)
    assert verify(out, 3).exit_status == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_converted_runs(tmp_path, dtype):
    source, out = written(tmp_path / "run", range(5)), LocalStorage(tmp_path / "out")
    convert(source, out, "safetensors", dtype)
    assert_numpys(out)
    assert verify(out, 3).exit_status == 0


def test_of_repaired_runs(tmp_path):
    storage = written(tmp_path / "run", range(5))
    expected = storage.get("metadata.json")
    storage.remove("metadata.json")
    repair(storage)
    assert storage.get("metadata.json") == expected
    shutil.rmtree(tmp_path / "run" / "_run")
    storage.remove("metadata.json")
    repair(storage)
    assert_numpys(storage, records=False)
    rebuilt = json.loads(storage.get("metadata.json"))["statistics"]
    assert rebuilt == json.loads(expected)["statistics"]


@pytest.mark.parametrize("name", ["pickle", "npz", "raw_bfloat16", "extractor"])
def test_of_runs_of_the_version_before_once_they_are_converted_or_merged(name, tmp_path):
    source = LocalStorage(FOLDERS[name], writable=False)
    assert "large_norms" not in json.loads(source.get("metadata.json"))["statistics"]["layer_1"]
    out = LocalStorage(tmp_path / "converted")
    convert(source, out, "safetensors")
    assert_numpys_of_steps(out, hook_points(name))
    merged = LocalStorage(tmp_path / "merged")
    merge(merged, [source])
    assert_numpys_of_steps(merged, hook_points(name))
    assert verify(merged, 3).exit_status == verify(out, 3).exit_status == 0


def assert_numpys_of_steps(storage, hooks) -> None:
    """Of small runs with several steps, the largest rows are all rows."""
    totals = RunTotals(CommitLog(storage).records())
    for hook in hooks:
        dataset = ActivationDataset(storage, hook)
        norms = np.linalg.norm(dataset[:].astype(np.float64), axis=1)
        kept = totals.statistics(hook).largest
        assert kept is not None
        assert len(kept) == len(norms) < 64
        assert sorted(row.norm for row in kept) == pytest.approx(np.sort(norms).tolist())
        keys = dataset.keys()
        by_key = dict(
            zip(
                zip(
                    keys.task_ids,
                    keys.sample_idx,
                    keys.position,
                    keys.token_id,
                    keys.step,
                    strict=True,
                ),
                norms,
                strict=True,
            )
        )
        assert all(by_key[row.key] == pytest.approx(row.norm) for row in kept)
