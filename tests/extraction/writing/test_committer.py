"""A record vouches for exactly what is on the disk; `test_committer_faults` breaks the disk."""

import dataclasses
import datetime
import hashlib
import json

import google_crc32c
import ml_dtypes
import numpy as np
import pytest

from extraction import RowBlock, StoreError
from extraction.errors import ConflictError
from extraction.formats import FORMATS
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.rows import text_column
from extraction.run.statistics import RowStatistics
from extraction.storage.local import LocalStorage
from extraction.writing import committer
from extraction.writing.committer import Committer, keys_digest
from tests.extraction.known_rows import bytes_of, known_block, known_values

HOOKS = ("layer_6", "layer_12")
LINES = [
    {"task_id": "task_0", "sample_idx": 0, "generated_token_ids": [5, 6], "finish_reason": "stop",
     "text": "größer\nals"},
    {"task_id": "gone", "sample_idx": 0, "generated_token_ids": [], "finish_reason": "skipped",
     "text": "", "reason": "empty"},
]  # fmt: skip
KINDS = [(name, dtype) for name, kind in FORMATS.items() for dtype in kind.dtypes]


def assert_vouches(folder, record: CommitRecord):
    """Every file of the record is there, to the byte."""
    for file in record.all_files():
        data = (folder / file.file).read_bytes()
        assert file.bytes == len(data)
        assert int(file.crc32c, 16) == google_crc32c.value(data)
        assert file.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("large_rows", [0, committer.LARGE_ROWS])
@pytest.mark.parametrize("source", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("file_format", "dtype"), KINDS)
def test_the_record_vouches_for_exactly_the_bytes_on_the_disk(
    tmp_path, monkeypatch, file_format, dtype, source, large_rows
):
    monkeypatch.setattr(committer, "LARGE_ROWS", large_rows)
    block = known_block(0, 5, (6, 12))
    values = {hook: (rows / 7).astype(source) for hook, rows in block.activations.items()}
    block = dataclasses.replace(block, activations=values)
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    record = Committer(LocalStorage(tmp_path), HOOKS, file_format, dtype).commit(3, block, LINES)
    assert before <= datetime.datetime.fromisoformat(record.written_at)
    assert_vouches(tmp_path, record)
    assert list(CommitLog(LocalStorage(tmp_path)).records()) == [record]
    listed = {file.file for file in record.all_files()}
    assert set(bytes_of(tmp_path)) == {*listed, "_run/commits/000003.json"}

    kind = FORMATS[file_format]
    assert set(record.files) == set(HOOKS)
    assert set(record.sidecars) == (set(HOOKS) if kind.sidecar_extension else set())
    for hook in HOOKS:
        assert record.files[hook].file == f"{hook}_batch_000003.{kind.extension}"
        data = (tmp_path / record.files[hook].file).read_bytes()
        sidecar = record.sidecars.get(hook)
        parsed = kind.parse(data, sidecar and (tmp_path / sidecar.file).read_bytes())
        narrow = np.dtype(dtype) if dtype == "float32" else ml_dtypes.bfloat16
        stored = values[hook].astype(narrow).astype(np.float32)
        np.testing.assert_array_equal(parsed.block().activations[hook], stored)
        assert parsed.keys.task_ids.tolist() == block.task_ids.tolist()
        assert parsed.keys.position.tolist() == block.position.tolist()
        assert record.statistics[hook] == RowStatistics.of(stored, keys=block)
    assert (record.n_rows, record.n_sequences) == (5, 5)
    assert record.outputs is not None
    lines = (tmp_path / record.outputs.file).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == LINES


@pytest.mark.parametrize("file_format", ["pickle", "npz"])
def test_a_dtype_that_the_format_does_not_hold_is_refused_at_once(tmp_path, file_format):
    with pytest.raises(StoreError, match="bfloat16"):
        Committer(LocalStorage(tmp_path), HOOKS, file_format, "bfloat16")


@pytest.mark.parametrize("lines", [None, [], LINES])
def test_a_unit_without_rows_has_a_record_too(tmp_path, lines):
    record = Committer(LocalStorage(tmp_path), HOOKS).commit(1, None, lines)
    assert (record.n_rows, record.n_sequences, record.files, record.sidecars) == (0, 0, {}, {})
    assert (record.outputs is None) == (lines is None)
    assert_vouches(tmp_path, record)
    outputs = set() if lines is None else {"_run/outputs/000001.jsonl"}
    assert set(bytes_of(tmp_path)) == {*outputs, "_run/commits/000001.json"}


def test_sequences_are_counted_once_unless_told(tmp_path):
    block = known_block(0, 6)
    turns = dataclasses.replace(
        block,
        task_ids=text_column(["a", "b", "a", "b", "a", "a"]),
        sample_idx=np.array([0, 0, 0, 0, 1, 1]),
    )
    committer = Committer(LocalStorage(tmp_path), HOOKS[:1])
    assert committer.commit(1, turns).n_sequences == 3
    assert committer.commit(2, turns, n_sequences=1).n_sequences == 1


@pytest.mark.parametrize(("dtype", "nonfinite"), [("float32", 0), ("bfloat16", 1)])
def test_statistics_are_those_of_the_stored_numbers(tmp_path, dtype, nonfinite):
    block = known_block(0, 2)
    rows = block.activations["layer_6"]
    rows[1, 0] = np.finfo(np.float32).max  # infinite as a bfloat16
    record = Committer(LocalStorage(tmp_path), HOOKS[:1], "raw", dtype).commit(1, block)
    assert record.statistics["layer_6"].nonfinite_rows == nonfinite


def test_a_batch_that_exists_is_left_as_it_is(tmp_path):
    first = Committer(LocalStorage(tmp_path), HOOKS[:1]).commit(1, known_block(0, 4))
    before = bytes_of(tmp_path)
    again = dataclasses.replace(known_block(0, 4), timestamps=text_column(["later"] * 4))
    assert Committer(LocalStorage(tmp_path), HOOKS[:1]).commit(1, again) == first
    assert bytes_of(tmp_path) == before


class AnotherIsQuicker(LocalStorage):
    """Another process commits the same batch while this one does."""

    def put_new(self, name, data, attributes=None):
        other = Committer(LocalStorage(self.folder), HOOKS[:1])
        other.commit(1, known_block(0, 3))
        super().put_new(name, data, attributes)


def test_two_that_commit_a_batch_at_once_are_told(tmp_path):
    with pytest.raises(ConflictError, match="another process committed batch 1"):
        Committer(AnotherIsQuicker(tmp_path), HOOKS[:1]).commit(1, known_block(0, 4))
    assert CommitLog(LocalStorage(tmp_path)).read(1).n_rows == 3


def test_what_a_dead_process_left_is_replaced(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.put_new("layer_6_batch_000001.pkl", b"of a process that died before its record")
    storage.put_new("_run/outputs/000001.jsonl", b"{}")
    record = Committer(storage, HOOKS[:1]).commit(1, known_block(0, 4), LINES)
    assert_vouches(tmp_path, record)
    assert record.n_rows == 4


def test_rows_that_no_file_can_hold_leave_no_record(tmp_path):
    half = dataclasses.replace(known_block(0, 2), task_ids=text_column(["a", "\ud800"]))
    with pytest.raises(StoreError, match="surrogate"):
        Committer(LocalStorage(tmp_path), HOOKS[:1]).commit(1, half)
    assert CommitLog(LocalStorage(tmp_path)).batch_ids() == set()


def with_changed(block: RowBlock, name: str) -> RowBlock:
    column = getattr(block, name).copy()
    column[2] = "other" if column.dtype == object else column[2] + 1
    return dataclasses.replace(block, **{name: column})


def changed_line(key: str, value) -> list[dict]:
    return [LINES[0] | {key: value}, LINES[1]]


def test_the_keys_digest_depends_on_every_key():
    block = known_block(0, 5, (6, 12))
    keys = ("task_ids", "sample_idx", "step", "position", "token_id")
    digests = {name: keys_digest(with_changed(block, name), LINES) for name in keys}
    digests |= {
        "the same": keys_digest(block, LINES),
        "fewer rows": keys_digest(block[:4], LINES),
        "another order": keys_digest(RowBlock.concatenate([block[1:], block[:1]]), LINES),
        "no rows": keys_digest(None, LINES),
        "no lines": keys_digest(block),
        "one line": keys_digest(block, LINES[:1]),
        "tokens": keys_digest(block, changed_line("generated_token_ids", [5, 7])),
        "end": keys_digest(block, changed_line("finish_reason", "length")),
        "task of a line": keys_digest(block, changed_line("task_id", "task_1")),
        "sample of a line": keys_digest(block, changed_line("sample_idx", 1)),
        "texts cut elsewhere": keys_digest(
            dataclasses.replace(block, task_ids=text_column(["ta", "sk_0", "b", "c", "d"])), LINES
        ),
        "texts cut elsewhere, too": keys_digest(
            dataclasses.replace(block, task_ids=text_column(["t", "ask_0", "b", "c", "d"])), LINES
        ),
    }
    assert len(set(digests.values())) == len(digests)


def test_the_keys_digest_depends_on_nothing_else():
    block = known_block(0, 5, (6, 12))
    digest = keys_digest(block, LINES)
    later = dataclasses.replace(block, timestamps=text_column(["later"] * 5))
    other = dataclasses.replace(block, activations={"layer_6": known_values(9, 5)})
    wider = dataclasses.replace(
        block, step=block.step.astype(np.int64), sample_idx=block.sample_idx.astype(np.int32)
    )
    spread = dataclasses.replace(block, position=np.repeat(block.position, 2)[::2])
    for same in (later, other, wider, spread):
        assert keys_digest(same, LINES) == digest
    assert keys_digest(block, changed_line("text", "other")) == digest


def test_the_keys_digest_is_what_other_versions_computed(tmp_path):
    """Attempts of one run may be made by different versions of this program."""
    block = known_block(0, 2)
    columns = [[0, 1], [0, 0], [10, 11], [20, 21]]  # sample, step, position, token
    expected = hashlib.sha256(b'["task_0", "task_1"]')
    for column in columns:
        for number in column:
            expected.update(number.to_bytes(8, "little"))
    expected.update(b'["task_0", 0, [5, 6], "stop"]["gone", 0, [], "skipped"]')
    record = Committer(LocalStorage(tmp_path), HOOKS[:1]).commit(1, block, LINES)
    assert record.keys_sha256 == expected.hexdigest()
