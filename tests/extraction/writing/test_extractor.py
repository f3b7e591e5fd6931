"""Rows in, numbered files out; `test_extract_layer_activation` has the one-layer call."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extraction import ActivationExtractionConfig, ExistingRunError, RowBlock, StoreError
from extraction.errors import StorageUnavailableError
from extraction.run.records import CommitLog
from extraction.storage.local import LocalStorage
from tests.extraction.failing_storage import FailingStorage
from tests.extraction.known_rows import (
    batch_names,
    bytes_of,
    known_block,
    known_values,
    make_extractor,
    read_metadata,
    read_records,
)

LAYERS = (6, 12)
RUN_FILES = {"_run/run.json", "_run/lock.00000", "_run/closed.json"}
KEYS = ("task_id", "sample_idx", "step", "position", "token_id", "timestamp")


def rows_per_file(folder: Path, layer: int = 6) -> dict[str, int]:
    return {
        name: len(pickle.loads((folder / name).read_bytes())["activations"])
        for name in batch_names(folder, layer)
    }


def assert_holds_rows(folder: Path, rows: int, layers=(6,)):
    """The files hold the rows 0 .. rows-1, once each, in order, alike for all layers."""
    for hook, layer in enumerate(layers):
        records = read_records(folder, layer)
        assert [record["sample_idx"] for record in records] == list(range(rows))
        assert [record["position"] for record in records] == list(range(10, rows + 10))
        values = [record["activation"].tolist() for record in records]
        assert values == known_values(0, rows, hook).tolist()


@pytest.mark.parametrize(
    ("blocks", "sizes"),
    [
        ([1], [1]),
        ([4], [4]),
        ([3, 2], [4, 1]),
        ([1] * 9, [4, 4, 1]),
        ([2, 11], [4, 4, 4, 1]),
        ([12], [4, 4, 4]),
        ([0, 4, 0], [4]),
    ],
)
def test_batches_are_cut_at_exactly_save_every(tmp_path, blocks, sizes):
    first = 0
    with make_extractor(tmp_path, save_every=4) as extractor:
        for rows in blocks:
            extractor.add(known_block(first, rows))
            first += rows
            assert extractor.rows_written == first // 4 * 4
    names = [f"layer_6_batch_{number:06d}.pkl" for number in range(1, len(sizes) + 1)]
    assert rows_per_file(tmp_path) == dict(zip(names, sizes, strict=True))
    records = [f"_run/commits/{number:06d}.json" for number in range(1, len(sizes) + 1)]
    assert set(bytes_of(tmp_path)) == {*names, *records, *RUN_FILES, "metadata.json"}
    assert_holds_rows(tmp_path, first)


def test_a_full_batch_is_on_the_disk_before_close(tmp_path):
    extractor = make_extractor(tmp_path, save_every=2)
    extractor.add(known_block(0, 5))
    assert rows_per_file(tmp_path) == {"layer_6_batch_000001.pkl": 2, "layer_6_batch_000002.pkl": 2}
    assert read_metadata(tmp_path)["complete"] is False


def test_no_rows_leave_a_run_without_batches(tmp_path):
    with make_extractor(tmp_path / "new", LAYERS):
        pass
    assert set(bytes_of(tmp_path / "new")) == {*RUN_FILES, "metadata.json"}
    metadata = read_metadata(tmp_path / "new")
    assert metadata["layers_extracted"] == [6, 12]
    assert (metadata["batches"], metadata["total_samples"]) == ([], 0)
    assert metadata["complete"] is True


def test_all_layers_of_a_batch_hold_the_same_keys_in_the_same_order(tmp_path):
    block = known_block(0, 10, (23, 6, 12))
    shuffled = dict(sorted(block.activations.items()))  # the block's order is not the run's
    columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
    with make_extractor(tmp_path, (23, 6, 12), save_every=4) as extractor:
        extractor.add(RowBlock(**{**columns, "activations": shuffled}))
    assert_holds_rows(tmp_path, 10, (23, 6, 12))
    for number in (1, 2, 3):
        files = [
            pickle.loads((tmp_path / f"layer_{layer}_batch_{number:06d}.pkl").read_bytes())
            for layer in (23, 6, 12)
        ]
        keys = [[[row[key] for key in KEYS] for row in file["activations"]] for file in files]
        assert keys[0] == keys[1] == keys[2]
        assert [file["layer"] for file in files] == [23, 6, 12]


@given(
    blocks=st.lists(st.integers(0, 12), max_size=6),
    save_every=st.integers(1, 9),
    layers=st.sampled_from([(6,), (0, 23)]),
)
@settings(max_examples=15, derandomize=True)
def test_rows_out_are_rows_in(blocks, save_every, layers):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with make_extractor(folder, layers, save_every) as extractor:
            for number, rows in enumerate(blocks):
                extractor.add(known_block(sum(blocks[:number]), rows, layers))
        total = sum(blocks)
        assert_holds_rows(folder, total, layers)
        full, rest = divmod(total, save_every)
        for layer in layers:
            sizes = list(rows_per_file(folder, layer).values())
            assert sizes == [save_every] * full + [rest] * (rest > 0)


@pytest.mark.parametrize("layers", [(6,), (12,), (6, 12, 18)])
def test_add_refuses_other_hook_points(tmp_path, layers):
    extractor = make_extractor(tmp_path, LAYERS)
    with pytest.raises(StoreError, match="this run has"):
        extractor.add(known_block(0, 2, layers))
    extractor.close()
    assert read_metadata(tmp_path)["total_samples"] == 0


@pytest.mark.parametrize("shape", [(2, 3), (2, 5), (2, 1), (2,), (2, 4, 1)])
def test_add_refuses_other_widths(tmp_path, shape):
    block = known_block(0, 2, LAYERS)
    columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
    columns["activations"] = {**block.activations, "layer_12": np.zeros(shape, np.float32)}
    extractor = make_extractor(tmp_path, LAYERS)
    with pytest.raises(StoreError, match=r"layer_12 has shape .* not \[rows, 4\]"):
        extractor.add(RowBlock(**columns))


def test_nothing_can_be_added_to_a_closed_run(tmp_path):
    extractor = make_extractor(tmp_path)
    extractor.add(known_block(0, 1))
    extractor.close()
    before = bytes_of(tmp_path)
    with pytest.raises(StoreError, match="closed"):
        extractor.add(known_block(1, 1))
    extractor.close()
    assert bytes_of(tmp_path) == before
    assert_holds_rows(tmp_path, 1)


@pytest.mark.parametrize("settings", [{"save_every_n_samples": 0}, {"layers_to_extract": []}])
def test_settings_that_cannot_work_are_refused(tmp_path, settings):
    good = {"layers_to_extract": [6], "hidden_dim": 4, "model_name": "m", "output_dir": tmp_path}
    ActivationExtractionConfig(**good)
    with pytest.raises(StoreError):
        ActivationExtractionConfig(**{**good, **settings})


def test_a_layer_named_twice_is_refused_at_the_start(tmp_path):
    with pytest.raises(StoreError, match="6"):
        make_extractor(tmp_path, (6, 12, 6))


@pytest.mark.parametrize(
    "left",
    [
        "whole run",
        "metadata.json",
        "layer_6_batch_000001.pkl",
        "_run/commits/000001.json",
    ],
)
def test_an_existing_run_is_refused_and_left_as_it_is(tmp_path, left):
    with make_extractor(tmp_path, save_every=2) as extractor:
        extractor.add(known_block(0, 3))
    if left != "whole run":
        for name in bytes_of(tmp_path):
            if name != left:
                (tmp_path / name).unlink()
    before = bytes_of(tmp_path)
    with pytest.raises(ExistingRunError, match="already holds a run"):
        make_extractor(tmp_path, (12,))
    assert bytes_of(tmp_path) == before


def test_a_folder_with_other_files_is_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".tmp-1-abc").write_bytes(b"left by a killed process")
    with make_extractor(tmp_path) as extractor:
        extractor.add(known_block(0, 2))
    assert_holds_rows(tmp_path, 2)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_of_two_runs_begun_at_once_the_second_overwrites_nothing(tmp_path):
    first, second = make_extractor(tmp_path, save_every=2), make_extractor(tmp_path, save_every=2)
    first.add(known_block(0, 2))
    before = bytes_of(tmp_path)
    with pytest.raises(ExistingRunError, match="another process is writing"):
        second.add(known_block(50, 2))
    assert bytes_of(tmp_path) == before
    first.close()
    with pytest.raises(StoreError, match="a write failed earlier"):
        second.add(known_block(50, 2))
    assert_holds_rows(tmp_path, 2)


def test_a_run_begun_while_another_ended_overwrites_nothing(tmp_path):
    first, second = make_extractor(tmp_path, save_every=2), make_extractor(tmp_path, save_every=2)
    first.add(known_block(0, 2))
    first.close()  # the lock is free again
    before = bytes_of(tmp_path)
    with pytest.raises(ExistingRunError, match="at the same time"):
        second.add(known_block(50, 2))
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_an_unusable_folder_is_refused_at_the_start(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        make_extractor(tmp_path / folder)


def test_an_exception_leaves_what_was_published(tmp_path):
    with pytest.raises(KeyError), make_extractor(tmp_path, LAYERS, 2) as extractor:  # noqa: PT012
        extractor.add(known_block(0, 5, LAYERS))
        raise KeyError
    assert list(rows_per_file(tmp_path).values()) == [2, 2]
    assert_holds_rows(tmp_path, 4, LAYERS)
    assert read_metadata(tmp_path)["complete"] is False


class EmptyStorage(LocalStorage):
    """A back end that has a length, and is empty."""

    def __len__(self):
        return len(self.names())


def test_a_back_end_is_used_even_while_it_is_empty(tmp_path):
    storage = EmptyStorage(tmp_path / "wanted")
    with make_extractor(tmp_path / "unwanted", storage=storage) as extractor:
        extractor.add(known_block(0, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["wanted"]


# Three batches of two rows and a remainder, of two layers: `run.json`, four times two files, record
# and `metadata.json`; then `closed.json` and `metadata.json`.
WRITES = 19


@pytest.mark.parametrize("first", range(1, WRITES + 1))
def test_a_failed_write_doubles_no_row_and_loses_none_silently(tmp_path, first):
    extractor = make_extractor(
        tmp_path, LAYERS, 2, FailingStorage(tmp_path, range(first, first + 2))
    )
    with pytest.raises(StorageUnavailableError, match="the disk is failing"):  # noqa: PT012
        extractor.add(known_block(0, 7, LAYERS))
        extractor.close()
    with pytest.raises(StoreError, match="a write failed earlier"):
        extractor.close()
    metadata = read_metadata(tmp_path) if (tmp_path / "metadata.json").exists() else {}
    for layer in LAYERS:
        listed = [b for b in metadata.get("batches", []) if b["layer"] == f"layer_{layer}"]
        assert all(b["n_samples"] <= 2 for b in listed)
        files = [pickle.loads((tmp_path / b["file"]).read_bytes()) for b in listed]
        samples = [record["sample_idx"] for file in files for record in file["activations"]]
        assert samples == list(range(len(samples)))
        committed = sum(record.n_rows for record in CommitLog(LocalStorage(tmp_path)).records())
        assert len(samples) <= committed <= 7
    assert metadata.get("complete") is not True


@pytest.mark.parametrize("first", range(1, WRITES + 1))
def test_a_write_that_fails_once_costs_nothing(tmp_path, first):
    disk = FailingStorage(tmp_path, [first])
    with make_extractor(tmp_path, LAYERS, 2, disk) as extractor:
        extractor.add(known_block(0, 7, LAYERS))
    second_of_a_batch = first in {3, 7, 11, 15}  # the first is written again with it
    assert disk.writes == WRITES + 1 + second_of_a_batch
    assert_holds_rows(tmp_path, 7, LAYERS)
    assert read_metadata(tmp_path)["complete"] is True


def test_a_disk_that_stays_broken_does_not_hide_the_blocks_own_exception(tmp_path):
    disk = FailingStorage(tmp_path, range(6, 1000))  # after the first batch
    with pytest.raises(KeyError), make_extractor(tmp_path, LAYERS, 2, disk) as extractor:  # noqa: PT012
        extractor.add(known_block(0, 3, LAYERS))
        raise KeyError
    assert_holds_rows(tmp_path, 2, LAYERS)


def test_a_run_that_committed_nothing_is_no_run(tmp_path):
    """Its process died between `run.json` and the first batch."""
    with make_extractor(tmp_path, save_every=2) as extractor:
        extractor.add(known_block(0, 3))
    for name in bytes_of(tmp_path):
        if name != "_run/run.json":
            (tmp_path / name).unlink()
    with make_extractor(tmp_path, save_every=2) as extractor:
        extractor.add(known_block(5, 2))
    assert [record["task_id"] for record in read_records(tmp_path)] == ["task_5", "task_6"]
