"""Damaged files: what a reader refuses, what it says, and what it leaves out on request."""

import dataclasses
import errno
import json
import logging
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from extraction import ActivationExtractionConfig, ActivationExtractor
from extraction.errors import CorruptBatchError, StoreError, UnsafePickleError
from extraction.reading.dataset import ActivationDataset
from extraction.run.records import CommitLog
from extraction.run.rows import text_column
from extraction.run_layout import record_name
from extraction.storage.local import LocalStorage
from tests.extraction.known_rows import WIDTH, known_block
from tests.extraction.known_runs import FORMS, expected_rows, write_run

FORMATS = sorted({form[0] for form in FORMS})
ROWS, LAYERS = 12, (6, 12)
SEEN = [0, 1, 2, 3, 8, 9, 10, 11]  # all but the second batch


def damaged(folder: Path, pattern: str = "layer_12_batch_000002.*") -> Path:
    """The file to be damaged; for two-file formats the one with the activations."""
    return min(folder.glob(pattern), key=lambda path: len(path.suffixes))


def flip(path: Path, at: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def flip_in_the_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


def flip_the_first_byte(path: Path) -> None:
    flip(path, 0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero_the_tail(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def swap_batches(path: Path) -> None:
    shutil.copy(path.with_name(path.name.replace("000002", "000001")), path)


def take_away(path: Path) -> None:
    path.unlink()


SAME_SIZE = [flip, flip_in_the_middle, flip_the_first_byte, zero_the_tail, swap_batches]
OTHER_SIZE = [cut, empty, lengthen, take_away]


def numbers_in(stream) -> list[int]:
    return sorted(int(n) for batch in stream for n in batch["layer_6"][:, 0] // 1000)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("damage", SAME_SIZE)
@pytest.mark.parametrize("seed", [None, 0])
def test_a_file_that_differs_from_its_record_is_refused(
    tmp_path, file_format, damage, seed, caplog
):
    folder = write_run(tmp_path / "run", ROWS, LAYERS, file_format=file_format)
    path = damaged(folder)
    damage(path)
    dataset = ActivationDataset(folder, LAYERS)
    with pytest.raises(CorruptBatchError, match=path.name):
        dataset[4]
    with pytest.raises(CorruptBatchError, match=path.name):
        dataset[:]
    with pytest.raises(CorruptBatchError, match=path.name):
        list(dataset.batches(5, shuffle_seed=seed, pool_rows=8))
    assert dataset.skipped == {}
    assert [t for t in threading.enumerate() if t.name.startswith("read-act")] == []
    # The other batches can be read, and batches come up to the damaged one.
    np.testing.assert_array_equal(dataset[SEEN]["layer_12"], expected_rows(SEEN, 1))
    assert numbers_in([next(dataset.batches(4))]) == [0, 1, 2, 3]

    assert not caplog.records
    dataset = ActivationDataset(folder, LAYERS, on_bad="skip")
    assert len(dataset) == ROWS  # nobody has looked yet
    assert numbers_in(dataset.batches(5, shuffle_seed=seed, pool_rows=8, epochs=2)) == sorted(
        SEEN * 2
    )
    assert list(dataset.skipped) == [2]
    assert path.name in dataset.skipped[2]
    assert [r.levelno for r in caplog.records] == [logging.WARNING]  # once, not in every epoch
    with pytest.raises(CorruptBatchError, match=path.name):
        dataset[4]
    assert ActivationDataset(folder, 6)[:].shape == (ROWS, WIDTH)  # the other layer is whole


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("damage", OTHER_SIZE)
def test_a_file_of_another_size_is_found_at_opening(tmp_path, file_format, damage):
    folder = write_run(tmp_path / "run", ROWS, LAYERS, file_format=file_format)
    path = damaged(folder)
    damage(path)
    words = "is missing" if damage is take_away else "bytes, not"
    with pytest.raises(CorruptBatchError, match=f"{path.name} .*{words}"):
        ActivationDataset(folder, LAYERS)
    dataset = ActivationDataset(folder, LAYERS, on_bad="skip")
    assert list(dataset.skipped) == [2]
    assert words in dataset.skipped[2]
    assert len(dataset) == len(SEEN)
    np.testing.assert_array_equal(dataset[:]["layer_6"], expected_rows(SEEN, 0))
    assert numbers_in(dataset.batches(3)) == SEEN


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("damage", OTHER_SIZE)
def test_a_file_that_changes_after_opening_is_refused(tmp_path, file_format, damage):
    folder = write_run(tmp_path / "run", ROWS, LAYERS, file_format=file_format)
    dataset = ActivationDataset(folder, LAYERS)
    path = damaged(folder)
    damage(path)
    for read in (lambda: dataset[5], lambda: list(dataset.batches(4))):
        with pytest.raises(CorruptBatchError, match=path.name):
            read()


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_stream_with_left_out_batches_can_be_gone_on_with(tmp_path, file_format):
    folder = write_run(tmp_path / "run", 40, LAYERS, file_format=file_format)
    settings: dict = {"shuffle_seed": 4, "pool_rows": 12, "epochs": 2}
    opened_before = ActivationDataset(folder, LAYERS, on_bad="skip")
    untouched = opened_before.batches(3, **settings).position
    flip(damaged(folder))
    damaged(folder, "layer_6_batch_000007.*").unlink()
    whole = [numbers_in([batch]) for batch in opened_before.batches(3, **settings)]
    assert sum(map(len, whole)) == 2 * 32
    assert set(opened_before.skipped) == {2, 7}
    for after in range(len(whole) + 1):
        dataset = ActivationDataset(folder, LAYERS, on_bad="skip")
        stream = dataset.batches(3, **settings, start=untouched)
        begun = [numbers_in([next(stream)]) for _ in range(after)]
        position = json.loads(json.dumps(stream.position))
        rest = ActivationDataset(folder, LAYERS, on_bad="skip").batches(
            3, **settings, start=position
        )
        assert begun + [numbers_in([batch]) for batch in rest] == whole


def test_if_nothing_is_whole_a_stream_without_end_says_so(tmp_path):
    folder = write_run(tmp_path / "run", 4, LAYERS)
    flip(damaged(folder, "layer_6_*"))
    dataset = ActivationDataset(folder, LAYERS, on_bad="skip")
    for seed in (None, 0):
        assert list(dataset.batches(2, shuffle_seed=seed, epochs=3)) == []
        with pytest.raises(StoreError, match="rows for one batch"):
            next(dataset.batches(2, shuffle_seed=seed, epochs=None))


def test_outliers_are_looked_for_in_whole_batches(tmp_path):
    folder = write_run(tmp_path / "run", ROWS, LAYERS)
    flip(damaged(folder))
    with pytest.raises(CorruptBatchError):
        ActivationDataset(folder, LAYERS).outlier_rows(0)
    found = ActivationDataset(folder, LAYERS, on_bad="skip").outlier_rows(0)
    assert found["layer_12"].tolist() == SEEN


@pytest.mark.parametrize(("file_format", "sees_a_bit"), [
    ("pickle", False), ("npz", True), ("safetensors", False), ("raw", False)
])  # fmt: skip
def test_without_checksums_only_what_a_format_sees_itself_is_refused(
    tmp_path, file_format, sees_a_bit
):
    folder = write_run(tmp_path / "run", ROWS, LAYERS, file_format=file_format)
    path = damaged(folder)
    content = bytearray(path.read_bytes())
    at = content.index(expected_rows([5], 1).tobytes())
    flip(path, at)
    dataset = ActivationDataset(folder, LAYERS, verify_checksums=False)
    if sees_a_bit:
        with pytest.raises(CorruptBatchError, match=path.name):
            dataset[5]
    else:
        assert dataset[5]["layer_12"][0] != expected_rows([5], 1)[0, 0]


@pytest.mark.parametrize("file_format", ["safetensors", "raw"])
def test_a_mapped_file_is_checked_when_it_is_first_touched(tmp_path, file_format):
    folder = write_run(tmp_path / "run", ROWS, LAYERS, file_format=file_format)
    dataset = ActivationDataset(folder, LAYERS, cache_bytes=0)
    assert dataset[5]["layer_12"][0] == 5100
    path = damaged(folder)
    content = path.read_bytes()
    flip(path, content.index(expected_rows([7], 1).tobytes()))
    assert dataset[5]["layer_12"][0] == 5100  # checked before; streams check each time
    with pytest.raises(CorruptBatchError, match="crc32c"):
        list(dataset.batches(4))


def test_a_damaged_second_file_is_named(tmp_path):
    folder = write_run(tmp_path / "run", ROWS, LAYERS, file_format="raw")
    path = folder / "layer_12_batch_000002.keys.npz"
    flip(path)
    with pytest.raises(CorruptBatchError, match="crc32c"):
        ActivationDataset(folder, LAYERS)[5]
    path.unlink()
    with pytest.raises(CorruptBatchError, match=r"000002\.keys\.npz is missing"):
        ActivationDataset(folder, LAYERS)


def rewrite_record(folder: Path, **changes) -> None:
    path = folder / record_name(1)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def vouch(folder: Path, batch_id: int, hook: str, other: Path) -> None:
    """Puts another run's file in a batch's place, with a record that vouches for it."""
    records = [CommitLog(LocalStorage(place)).read(batch_id) for place in (folder, other)]
    ours, theirs = records
    theirs_file = next(iter(theirs.files.values()))
    shutil.copy(other / theirs_file.file, folder / ours.files[hook].file)
    file = dataclasses.replace(theirs_file, file=ours.files[hook].file)
    record = dataclasses.replace(ours, files={**ours.files, hook: file})
    (folder / record_name(batch_id)).write_bytes(record.to_json())


def other_run(folder: Path, layer=12, rows=4, width=WIDTH, dtype="float32", **columns) -> Path:
    config = ActivationExtractionConfig(
        output_dir=folder,
        layers_to_extract=(layer,),
        hidden_dim=width,
        model_name="m",
        file_format="safetensors",
        store_dtype=dtype,
    )
    block = known_block(0, rows)
    with ActivationExtractor(config) as extractor:
        values = np.ones((rows, width), np.float32)
        extractor.add(dataclasses.replace(block, activations={f"layer_{layer}": values}, **columns))
    return folder


TASKS = text_column(["task_0", "task_1", "task_2", "another"])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"layer": 6}, "holds layer_6, not layer_12"),
        ({"rows": 3}, "holds 3 rows, not 4"),
        ({"width": 5}, "rows of width 5, not 4"),
        ({"dtype": "bfloat16"}, "is bfloat16, not float32"),
        ({"task_ids": TASKS}, "not those of layer_6_batch_000001.safetensors"),
        ({"sample_idx": np.array([0, 1, 3, 2])}, "not those of layer_6_batch_000001.safetensors"),
        ({"step": np.array([0, 0, 0, 1], np.int32)}, "not those of"),
        ({"position": np.array([0, 0, 0, 1], np.int32)}, "not those of"),
        ({"token_id": np.array([0, 0, 0, 1], np.int32)}, "not those of"),
    ],
)
def test_a_whole_file_of_something_else_is_refused(tmp_path, other, words):
    folder = write_run(tmp_path / "run", ROWS, LAYERS)
    vouch(folder, 1, "layer_12", other_run(tmp_path / "other", **other))
    for read in (lambda d: d[0], lambda d: list(d.batches(4)), lambda d: d.keys(0)):
        with pytest.raises(CorruptBatchError, match=f"layer_12_batch_000001.safetensors.*{words}"):
            read(ActivationDataset(folder, LAYERS))
    dataset = ActivationDataset(folder, LAYERS, on_bad="skip")
    assert numbers_in(dataset.batches(4)) == list(range(4, ROWS))


def test_the_type_of_refusal_stays(tmp_path):
    folder = write_run(tmp_path / "run", 4, file_format="pickle")
    path = folder / "layer_6_batch_000001.pkl"
    content = path.read_bytes()
    evil = b"\x80\x03cos\nsystem\nX\x04\0\0\0true\x85R."
    path.write_bytes(evil + bytes(len(content) - len(evil)))
    with pytest.raises(UnsafePickleError, match=path.name):
        ActivationDataset(folder, 6, verify_checksums=False)[0]


@pytest.mark.parametrize(
    "changes",
    [{"n_rows": "4"}, {"n_rows": -1}, {"n_rows": None}, {"files": {}}, {"batch_id": 2},
     {"files": {"layer_6": {"file": "../x", "bytes": 1, "crc32c": "", "sha256": ""}}}],
)  # fmt: skip
def test_a_damaged_commit_record_is_refused(tmp_path, changes):
    folder = write_run(tmp_path / "run", ROWS)
    rewrite_record(folder, **changes)
    with pytest.raises(StoreError, match=r"record"):
        ActivationDataset(folder, 6)


def test_a_file_that_two_batches_name_is_refused(tmp_path):
    folder = write_run(tmp_path / "run", ROWS)
    files = json.loads((folder / record_name(2)).read_text())["files"]
    rewrite_record(folder, files=files)
    with pytest.raises(StoreError, match=r"layer_6_batch_000002\.safetensors is named"):
        ActivationDataset(folder, 6)


def test_a_refused_refresh_changes_nothing(tmp_path):
    folder = write_run(tmp_path / "run", 4)
    dataset = ActivationDataset(folder, 6)
    later = write_run(tmp_path / "later", ROWS)
    for path in (*later.glob("*000003*"), *later.glob("_run/commits/*000003*")):
        shutil.copy(path, folder / path.relative_to(later))
    cut(damaged(folder, "*000003*"))
    for _ in range(2):
        with pytest.raises(CorruptBatchError, match="000003"):
            dataset.refresh()
        assert len(dataset) == 4
    shutil.copy(damaged(later, "*000003*"), folder)
    assert dataset.refresh() == 4
    assert dataset.keys().sample_idx.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_an_empty_file_where_rows_should_be(tmp_path):
    folder = write_run(tmp_path / "run", 4, file_format="raw")
    (folder / "_run").rename(tmp_path / "away")
    empty(folder / "layer_6_batch_000001.bin")
    with pytest.raises(CorruptBatchError, match="too few for 4 rows"):
        ActivationDataset(folder, 6)[0]


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EIO, CorruptBatchError), (errno.EMFILE, OSError)]
)
def test_a_bad_disk_is_damage_and_a_lack_of_descriptors_is_not(tmp_path, monkeypatch, number, kind):
    folder = write_run(tmp_path / "run", ROWS, LAYERS)
    dataset = ActivationDataset(folder, LAYERS, on_bad="skip")

    def fail(*_):
        raise OSError(number, "as it were")

    monkeypatch.setattr("extraction.reading.stored_files._fill", fail)
    monkeypatch.setattr("extraction.reading.stored_files._crc32c_of", fail)
    with pytest.raises(kind, match="as it were"):
        dataset[0]
    if kind is OSError:
        with pytest.raises(OSError, match="as it were"):
            list(dataset.batches(4))
    else:
        assert list(dataset.batches(4)) == []
    assert sorted(dataset.skipped) == ([1, 2, 3] if kind is CorruptBatchError else [])


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", ROWS)
    monkeypatch.setattr("extraction.reading.stored_files.STEP", 100)
    assert len(list(ActivationDataset(folder, 6).batches(4))) == 3  # in many steps
    dataset = ActivationDataset(folder, 6)
    real = os.fstat

    def fstat(number: int) -> SimpleNamespace:
        found = real(number)
        size = 1000 if found.st_size == 500 else found.st_size
        return SimpleNamespace(st_size=size, st_mode=found.st_mode)

    monkeypatch.setattr("extraction.reading.stored_files.os.fstat", fstat)
    path = folder / "layer_6_batch_000001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:500])
    monkeypatch.setattr(dataset._files, "_check_size", lambda file, size: None)
    with pytest.raises(CorruptBatchError, match="became shorter"):
        list(dataset.batches(4))
