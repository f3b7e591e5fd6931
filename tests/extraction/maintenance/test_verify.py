"""Every damage is named, with its file; what is whole passes at every level."""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from extraction.maintenance.verify import verify
from extraction.run.identity import RunIdentity, begin
from extraction.run.records import CommitLog, CommitRecord, CommittedFile
from extraction.run.rows import RowBlock
from extraction.run.statistics import RowStatistics
from extraction.run_layout import RUN_FILE, record_name
from extraction.storage import FileInfo
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import close, write_metadata
from tests.extraction.known_rows import known_block, make_extractor
from tests.extraction.known_runs import FORMS
from tests.extraction.written_runs import (
    HOOKS,
    WIDTH,
    edit_json,
    records_of,
    sample_rows,
    write_run,
)

GOOD, DAMAGED, FOREIGN, INCOMPLETE = 0, 1, 3, 4
FILE = "layer_12_batch_000002.pkl"
RECORD = "_run/commits/000002.json"
METADATA = "metadata.json"


def assert_damaged(storage, level: int, file: str, words: str, batch_id: int | None = None):
    """The report names the file and what is wrong, and nothing else is damaged."""
    report = verify(storage, level)
    assert report.exit_status == DAMAGED
    assert {problem.file for problem in report.problems} == {file}
    assert words in " ".join(problem.problem for problem in report.problems)
    if batch_id is not None:
        assert {problem.batch_id for problem in report.problems} == {batch_id}


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize(("file_format", "dtype"), FORMS)
def test_a_whole_run_is_good(tmp_path, file_format, dtype, level):
    storage = write_run(tmp_path, file_format, dtype)
    report = verify(storage, level)
    assert (report.exit_status, report.problems, report.notes) == (GOOD, [], [])
    files = 3 * (5 if file_format == "raw" else 3)
    assert report.counts["batches"] == report.counts["planned_batches"] == 3
    assert (report.counts["files"], report.counts["rows"]) == (files, 18)
    assert report.counts["sequences"] == 9
    assert report.counts.get("bytes_read", 0) == (report.counts["bytes"] if level > 1 else 0)


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize(("file_format", "dtype"), FORMS)
def test_numbers_of_all_sizes_are_good(tmp_path, file_format, dtype, level):
    # Zeros, subnormals, infinities, NaN, and what bfloat16 rounds to infinity.
    block, lines = sample_rows(0)
    values = np.random.default_rng(0).standard_normal((len(block), WIDTH)).astype(np.float32)
    values[0] = 0
    values[1] = 1e-40
    values[2, 1], values[3, 2], values[4, 3] = np.inf, np.nan, 3.4e38
    columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
    block = RowBlock(**{**columns, "activations": {hook: values for hook in HOOKS}})
    storage = write_run(tmp_path, file_format, dtype, units=0, planned=1)
    Committer(storage, HOOKS, file_format, dtype).commit(1, block, lines)
    write_metadata(storage)
    assert verify(storage, level).exit_status == GOOD
    expected = 3 if dtype == "bfloat16" else 2
    assert records_of(storage)[0].statistics["layer_6"].nonfinite_rows == expected


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_an_extractors_run_is_good(tmp_path, rows, level):
    with make_extractor(tmp_path, (6, 12), save_every=3) as extractor:
        extractor.add(known_block(0, rows, (6, 12)))
    report = verify(LocalStorage(tmp_path), level)
    assert report.exit_status == GOOD
    assert report.counts["rows"] == rows


def test_steps_stand_for_positions_that_are_not_known(tmp_path):
    with make_extractor(tmp_path, save_every=2) as extractor:
        for _ in range(5):
            extractor.extract_layer_activation(6, np.ones(WIDTH, np.float32), "task", 0)
    assert verify(LocalStorage(tmp_path), 3).exit_status == GOOD


def test_an_extractor_that_goes_on_is_incomplete(tmp_path):
    extractor = make_extractor(tmp_path, save_every=1)
    extractor.add(known_block(0, 40))
    report = verify(LocalStorage(tmp_path), 3)
    assert report.exit_status == INCOMPLETE
    assert "not closed" in report.unfinished[0]
    extractor.close()
    assert verify(LocalStorage(tmp_path), 3).exit_status == GOOD


@pytest.mark.parametrize("level", [1, 2, 3])
def test_missing_batches_are_told_apart_from_damage(tmp_path, level):
    storage = write_run(tmp_path, units=2, planned=7)
    report = verify(storage, level)
    assert report.exit_status == INCOMPLETE
    assert report.unfinished == ["5 of 7 batches are missing: 3-7"]


def test_damage_wins_over_what_is_missing(tmp_path):
    storage = write_run(tmp_path, units=2, planned=7)
    storage.remove(FILE)
    assert_damaged(storage, 1, FILE, "is missing", 2)


def test_a_run_without_its_first_batch_is_incomplete(tmp_path):
    assert verify(write_run(tmp_path, units=0, planned=2)).exit_status == INCOMPLETE


# What happens to a file; the level that finds it on a disk.
def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def emptied(data: bytes) -> bytes:
    return b""


def extended(data: bytes) -> bytes:
    return data + b"\0"


def zero_tailed(data: bytes) -> bytes:
    return data[:-64] + bytes(64)


def flipped_at(part: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        place = int(len(data) * part)
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return flip


DAMAGES = {
    "truncated": (truncated, 1, "bytes"),
    "zero length": (emptied, 1, "0 bytes"),
    "trailing byte": (extended, 1, "bytes"),
    "zero-filled tail": (zero_tailed, 2, "crc32c"),
    "bit flip in the header": (flipped_at(0), 2, "crc32c"),
    "bit flip in the middle": (flipped_at(0.5), 2, "crc32c"),
    "bit flip near the end": (flipped_at(0.95), 2, "crc32c"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file_format", ["pickle", "npz", "safetensors", "raw"])
def test_damaged_files_are_named(tmp_path, damage, file_format):
    change, level, words = DAMAGES[damage]
    storage = write_run(tmp_path, file_format)
    name = records_of(storage)[1].files["layer_12"].file
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    for deeper in (1, 2, 3):
        if deeper >= level:
            assert_damaged(storage, deeper, name, words, 2)
        else:
            assert verify(storage, deeper).exit_status == GOOD


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_output_lines_and_second_files_are_named(tmp_path, damage):
    change, level, words = DAMAGES[damage]
    storage = write_run(tmp_path, "raw")
    for name in ("_run/outputs/000003.jsonl", "layer_6_batch_000001.keys.npz"):
        whole = storage.get(name)
        storage.replace(name, change(whole))
        assert_damaged(storage, level, name, words)
        storage.replace(name, whole)


def test_a_bit_that_no_checksum_guards_is_found_by_the_parser(tmp_path):
    # As if the record had been written of the damaged file: only its structure can tell.
    storage = write_run(tmp_path)
    data = flipped_at(0)(storage.get(FILE))
    storage.replace(FILE, data)
    revouch(storage, FILE)
    assert verify(storage, 1).exit_status == GOOD
    assert_damaged(storage, 2, FILE, "pickle", 2)


def test_a_missing_file_is_named(tmp_path):
    storage = write_run(tmp_path)
    storage.remove(FILE)
    for level in (1, 2, 3):
        assert_damaged(storage, level, FILE, "is missing", 2)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    storage = write_run(tmp_path)
    opened = storage.open_local

    def open_local(name):
        if name == FILE:
            raise OSError(5, "Input/output error")
        return opened(name)

    monkeypatch.setattr(storage, "open_local", open_local)
    assert_damaged(storage, 2, FILE, "Input/output error", 2)


@pytest.mark.parametrize("file_format", ["pickle", "npz", "safetensors", "raw"])
def test_files_of_two_layers_swapped_are_named(tmp_path, file_format):
    storage = write_run(tmp_path, file_format)
    files = [records_of(storage)[1].files[hook].file for hook in HOOKS]
    one, other = map(storage.get, files)
    storage.replace(files[0], other)
    storage.replace(files[1], one)
    report = verify(storage, 2)
    assert report.exit_status == DAMAGED
    assert {problem.file for problem in report.problems} == set(files)
    # Even where the record vouches for them, the files say whose they are; a raw file is nothing
    # but numbers, but they are not those of the statistics.
    for name in files:
        revouch(storage, name)
    report = verify(storage, 3 if file_format == "raw" else 2)
    assert report.exit_status == DAMAGED
    assert {problem.file for problem in report.problems} == set(files)
    if file_format != "raw":
        assert "holds layer_12 with 6 rows" in report.problems[0].problem


def revouch(storage, name: str) -> None:
    """Makes the record of batch 2 vouch for what is in the file now."""
    from extraction.checksums import crc32c, sha256

    data = storage.get(name)

    def change(record):
        for entry in (*record["files"].values(), *record["sidecars"].values(), record["outputs"]):
            if entry["file"] == name:
                entry.update(bytes=len(data), crc32c=crc32c(data), sha256=sha256(data))

    edit_json(storage, RECORD, change)


def recommit(storage, change, lines_change=None, batch_id: int = 2) -> None:
    """Writes batch 2 again of rows that were changed, with a right record of wrong things."""
    block, lines = sample_rows(batch_id - 1)
    columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
    storage.remove(record_name(batch_id))
    lines = lines_change(lines) if lines_change else lines
    Committer(storage, HOOKS).commit(batch_id, RowBlock(**(columns | change(columns))), lines)
    write_metadata(storage)


def test_rows_of_another_width_are_named(tmp_path):
    storage = write_run(tmp_path)
    wide = {hook: np.ones((6, WIDTH + 1), np.float32) for hook in HOOKS}
    recommit(storage, lambda columns: {"activations": wide})
    assert verify(storage, 1).exit_status == GOOD
    report = verify(storage, 2)
    assert report.exit_status == DAMAGED
    assert {FILE, "layer_6_batch_000002.pkl"} <= {problem.file for problem in report.problems}
    assert "rows of 5 numbers, not 4" in report.problems[0].problem


def test_other_hook_points_have_a_width_of_their_own_in_all_batches(tmp_path):
    storage = LocalStorage(tmp_path)
    hook = "layer_6.mlp.hidden"
    identity = RunIdentity.new(
        model_name="m", hook_points=[hook], hidden_dim=WIDTH, planned_batches=2
    )
    begin(storage, identity)
    for number, width in ((1, 7), (2, 7)):
        commit_one(storage, hook, number, width)
    write_metadata(storage)
    assert verify(storage, 3).exit_status == GOOD
    storage.remove(RECORD)
    commit_one(storage, hook, 2, 8)
    write_metadata(storage)
    assert_damaged(storage, 2, RECORD, "rows of 8 numbers, 7 in batches before", 2)


def commit_one(storage, hook: str, number: int, width: int) -> None:
    block, lines = sample_rows(number)
    columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
    columns["activations"] = {hook: np.ones((len(block), width), np.float32)}
    Committer(storage, [hook]).commit(number, RowBlock(**columns), lines)


def test_nonfinite_rows_must_be_as_recorded(tmp_path):
    storage = write_run(tmp_path)

    def change(record):
        statistics = record["statistics"]["layer_12"]
        statistics["nonfinite_rows"] = 1
        norms = statistics["norms"]
        first = next(iter(norms))
        norms[first] -= 1
        if not norms[first]:
            del norms[first], statistics["bin_sums"][first]
        for column in statistics["largest"].values():
            column.pop()

    edit_json(storage, RECORD, change)
    write_metadata(storage)
    assert verify(storage, 1).exit_status == GOOD
    for level in (2, 3):
        assert_damaged(storage, level, FILE, "nonfinite" if level == 3 else "not finite", 2)


def largest(column, values):
    """Other numbers at the head of a column of the largest rows."""

    def change(statistics):
        statistics["largest"][column][: len(values)] = values

    return change


def other_bins(statistics):
    statistics.update(norms={"200": 6}, bin_sums={"200": [0.0, 2.0**26, 0]})


def other_sums(index, value):
    def change(statistics):
        for sums in statistics["bin_sums"].values():
            sums[index] = value

    return change


STATISTICS = {
    "total": lambda statistics: statistics.update(total=9.0),
    "total_squares": lambda statistics: statistics.update(total_squares=0.1),
    "norms": other_bins,
    "values": lambda statistics: statistics.update(values=20),
    "sums of numbers": other_sums(0, 50.0),
    "sums of norms": other_sums(1, 50.0),
    "rows at position 0": other_sums(2, 1),
    "largest norms": largest("norm", [50.0, 49.0]),
    "a position": largest("position", [77]),
    "a token": largest("token_id", [77]),
    "a sample": largest("sample_idx", [77]),
    "a task": largest("task_id", ["other"]),
    "a step": largest("step", [77]),
}


@pytest.mark.parametrize("field", STATISTICS)
def test_statistics_must_be_as_recorded(tmp_path, field):
    storage = write_run(tmp_path)

    def change(record):
        STATISTICS[field](record["statistics"]["layer_12"])

    edit_json(storage, RECORD, change)
    write_metadata(storage)
    assert verify(storage, 2).exit_status == GOOD
    assert_damaged(storage, 3, FILE, "record", 2)


def test_sums_may_differ_in_their_last_digits(tmp_path):
    storage = write_run(tmp_path)

    def change(record):
        record["statistics"]["layer_12"]["total"] += 1e-6
        record["statistics"]["layer_12"]["total_squares"] *= 1 + 1e-6
        norms = record["statistics"]["layer_12"]["largest"]["norm"]
        norms[:] = [norm * (1 + 1e-6) for norm in norms]

    edit_json(storage, RECORD, change)
    write_metadata(storage)
    assert verify(storage, 3).exit_status == GOOD


def test_a_wrong_sha256_is_named(tmp_path):
    storage = write_run(tmp_path)

    def change(record):
        record["files"]["layer_12"]["sha256"] = "0" * 64

    edit_json(storage, RECORD, change)
    assert verify(storage, 2).exit_status == GOOD
    assert_damaged(storage, 3, FILE, "sha256", 2)


def test_a_wrong_keys_digest_is_named(tmp_path):
    storage = write_run(tmp_path)
    edit_json(storage, RECORD, lambda record: record.update(keys_sha256="0" * 64))
    assert verify(storage, 2).exit_status == GOOD
    assert_damaged(storage, 3, "layer_6_batch_000002.pkl", "rows and generated tokens", 2)


@pytest.mark.parametrize("file_format", ["pickle", "raw"])
@pytest.mark.parametrize("column", ["task_ids", "sample_idx", "step", "position", "token_id"])
def test_layers_must_have_the_same_keys(tmp_path, column, file_format):
    storage = write_run(tmp_path, file_format)
    block, _ = sample_rows(1)
    columns = {name: getattr(block, name) for name in block.__dataclass_fields__}
    columns[column] = np.roll(columns[column], 1)
    if column == "task_ids":
        columns[column][0] = "other"
    other = write_run(tmp_path / "other", file_format, units=0, planned=1)
    record = Committer(other, HOOKS, file_format).commit(2, RowBlock(**columns), [])
    for file in (record.files["layer_12"], record.sidecars.get("layer_12")):
        if file is not None:
            storage.replace(file.file, other.get(file.file))
            revouch(storage, file.file)
    revouch_statistics(storage, record)
    assert verify(storage, 2).exit_status == GOOD
    name = record.files["layer_12"].file
    assert_damaged(storage, 3, name, f"{column} differ from those of layer_6_batch_000002", 2)


def revouch_statistics(storage, record: CommitRecord) -> None:
    statistics = json.loads(record.to_json())["statistics"]
    edit_json(storage, RECORD, lambda d: d["statistics"].update(layer_12=statistics["layer_12"]))


def test_keys_must_be_unique_within_a_batch(tmp_path):
    storage = write_run(tmp_path)

    def twice(columns):
        position = columns["position"].copy()
        position[5] = position[4]
        return {"position": position}

    recommit(storage, twice)
    assert verify(storage, 2).exit_status == GOOD
    assert_damaged(storage, 3, RECORD, "1 keys (task_id, sample_idx, position) of rows occur", 2)
    assert "in batch 2: ('tâsk_1', 6, 3)" in verify(storage, 3).problems[0].problem


def test_keys_must_be_unique_over_the_run(tmp_path):
    storage = write_run(tmp_path, units=2, planned=3)
    Committer(storage, HOOKS).commit(3, *sample_rows(0))
    write_metadata(storage)
    assert verify(storage, 2).exit_status == GOOD
    report = verify(storage, 3)
    assert report.exit_status == DAMAGED
    told = [problem.problem for problem in report.problems]
    assert {problem.file for problem in report.problems[-2:]} == {record_name(3)}
    assert "6 keys (task_id, sample_idx, position) of rows" in told[-2]
    assert "4 samples (task_id, sample_idx) of output lines" in told[-1]
    assert "in batches 1 and 3" in told[-1]


LINES = {
    "a token too many": lambda lines: lines[0]["generated_token_ids"].append(1),
    "a skipped sample with rows": lambda lines: lines[0].update(finish_reason="skipped"),
    "a line too few": lambda lines: lines.pop(1),
    "a sample without rows": lambda lines: lines[3].update(finish_reason="length"),
}


@pytest.mark.parametrize("change", LINES)
def test_rows_must_agree_with_output_lines(tmp_path, change):
    def changed(lines):
        LINES[change](lines)
        return lines

    storage = write_run(tmp_path)
    recommit(storage, lambda columns: {}, changed)
    assert verify(storage, 2).exit_status == GOOD
    assert_damaged(storage, 3, "_run/outputs/000002.jsonl", "rows", 2)


def test_other_selectors_may_have_other_numbers_of_rows(tmp_path):
    storage = write_run(tmp_path, fingerprint={"positions": "all"})

    def changed(lines):
        LINES["a token too many"](lines)
        return lines

    recommit(storage, lambda columns: {}, changed)
    assert verify(storage, 3).exit_status == GOOD


@pytest.mark.parametrize(
    ("text", "words"), [(b"{", "line 1 is not JSON"), (b'{"task_id": 3}', "not an output line")]
)
def test_output_lines_must_parse(tmp_path, text, words):
    storage = write_run(tmp_path)
    name = "_run/outputs/000002.jsonl"
    storage.replace(name, text)
    revouch(storage, name)
    assert verify(storage, 2).exit_status == GOOD
    assert_damaged(storage, 3, name, words, 2)


def test_sequences_must_be_counted_right(tmp_path):
    with make_extractor(tmp_path, save_every=2) as extractor:
        extractor.add(known_block(0, 4))
    storage = LocalStorage(tmp_path)
    edit_json(storage, RECORD, lambda record: record.update(n_sequences=1))
    write_metadata(storage)
    assert verify(storage, 2).exit_status == GOOD
    assert_damaged(storage, 3, "_run/commits/", "4 samples have rows")


def test_a_batch_must_count_its_sequences_right(tmp_path):
    storage = write_run(tmp_path)
    edit_json(storage, RECORD, lambda record: record.update(n_sequences=2))
    write_metadata(storage)
    name = "layer_6_batch_000002.pkl"
    assert_damaged(storage, 3, name, "3 samples, but its record says 2", 2)


# Records.
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff", b'{"batch_id": 2}', b"[" * 100_000]
)
def test_a_record_that_is_none_is_named(tmp_path, data):
    storage = write_run(tmp_path)
    storage.replace(RECORD, data)
    for level in (1, 3):
        assert_damaged(storage, level, RECORD, "no commit record", 2)


def set_in(*path, value):
    def change(record):
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    return change


def drop_layer(record):
    del record["files"]["layer_12"], record["statistics"]["layer_12"]


RECORD_CHANGES = {
    "another number": (set_in("batch_id", value=7), "record of batch 7"),
    "rows as text": (set_in("n_rows", value="6"), "no commit record"),
    "a file outside": (set_in("files", "layer_12", "file", value="../x"), "not a valid name"),
    "a file in another folder": (set_in("files", "layer_12", "file", value="a/x"), "folder"),
    "lines in another folder": (set_in("outputs", "file", value="x.jsonl"), "output lines in"),
    "no checksum": (set_in("files", "layer_12", "crc32c", value=""), "crc32c"),
    "more sequences than rows": (set_in("n_sequences", value=99), "99 sequences with 6 rows"),
    "statistics of other rows": (set_in("n_rows", value=7), "statistics"),
    "statistics of none": (set_in("statistics", value={}), "statistics"),
    "a layer less": (drop_layer, "files of ['layer_6']"),
    "a second file": (
        lambda r: r.update(sidecars={"layer_6": r["files"]["layer_6"]}), "second files"
    ),
    "a file twice": (
        lambda r: r["files"].update(layer_12=r["files"]["layer_6"]), "layer_6_batch_000002"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RECORD_CHANGES)
def test_a_record_that_contradicts_itself_is_named(tmp_path, case):
    change, words = RECORD_CHANGES[case]
    storage = write_run(tmp_path)
    edit_json(storage, RECORD, change)
    report = verify(storage, 1)
    assert report.exit_status == DAMAGED
    told = " ".join(str(problem) for problem in report.problems)
    assert RECORD in told
    assert words in told


def test_two_records_must_not_name_the_same_file(tmp_path):
    storage = write_run(tmp_path)
    edit_json(storage, RECORD, set_in("outputs", "file", value="_run/outputs/000001.jsonl"))
    assert_damaged(storage, 1, RECORD, "named by another record too", 2)


def test_a_missing_record_leaves_a_batch_that_metadata_still_lists(tmp_path):
    storage = write_run(tmp_path)
    storage.remove(RECORD)
    report = verify(storage, 1)
    assert report.exit_status == DAMAGED
    assert {(problem.file, problem.batch_id) for problem in report.problems} == {(METADATA, 2)}
    assert "which no record names" in report.problems[0].problem
    assert report.unfinished == ["1 of 3 batches are missing: 2"]
    assert any(FILE in note for note in report.notes)
    write_metadata(storage)
    assert verify(storage, 3).exit_status == INCOMPLETE


def test_other_files_among_the_records_do_no_harm(tmp_path):
    storage = write_run(tmp_path)
    storage.replace("_run/commits/000002.json~", b"?")
    storage.replace("_run/commits/7.json", b"?")
    report = verify(storage, 1)
    assert report.exit_status == GOOD
    assert len(report.notes) == 2


def test_batches_beyond_the_plan_are_named(tmp_path):
    storage = write_run(tmp_path, units=3, planned=2)
    assert_damaged(storage, 1, record_name(3), "only 2 batches", 3)


def test_a_damaged_closing_is_named(tmp_path):
    with make_extractor(tmp_path) as extractor:
        extractor.add(known_block(0, 2))
    storage = LocalStorage(tmp_path)
    storage.replace("_run/closed.json", b"{}")
    assert_damaged(storage, 1, "_run/closed.json", "damaged")
    storage.remove("_run/closed.json")
    report = verify(storage)
    assert report.exit_status == DAMAGED  # metadata.json knows that it was complete
    assert [problem.file for problem in report.problems] == [METADATA]


def test_a_damaged_self_check_is_named(tmp_path):
    storage = write_run(tmp_path)
    storage.replace("_run/self_check/00000.json", b"{")
    assert_damaged(storage, 1, "_run/self_check/00000.json", "damaged")


# The identity.
@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"{}", b'{"schema_version": "x"}', b"\xff"])
def test_a_damaged_identity_is_named(tmp_path, data):
    storage = write_run(tmp_path)
    storage.replace(RUN_FILE, data)
    assert_damaged(storage, 1, RUN_FILE, "damaged")


@pytest.mark.parametrize(
    "change", [{"file_format": "csv"}, {"hidden_dim": "4"}, {"hook_points": [1]}, {"run": 1}]
)
def test_an_identity_of_nonsense_is_named(tmp_path, change):
    storage = write_run(tmp_path)
    edit_json(storage, RUN_FILE, lambda document: document.update(change))
    assert_damaged(storage, 1, RUN_FILE, "fields")


def test_records_without_an_identity_are_damage(tmp_path):
    storage = write_run(tmp_path)
    storage.remove(RUN_FILE)
    assert_damaged(storage, 1, RUN_FILE, "is missing")


def test_a_newer_run_is_foreign(tmp_path):
    storage = write_run(tmp_path)
    edit_json(storage, RUN_FILE, lambda document: document.update(schema_version=2, more=1))
    report = verify(storage, 3)
    assert (report.exit_status, report.verdict) == (FOREIGN, "foreign")
    assert "newer" in (report.foreign or "")


def test_a_folder_without_a_run_is_foreign(tmp_path):
    assert verify(LocalStorage(tmp_path / "none", writable=False)).exit_status == FOREIGN
    (tmp_path / "photo.jpg").touch()
    report = verify(LocalStorage(tmp_path))
    assert (report.exit_status, report.verdict) == (FOREIGN, "foreign")


@pytest.mark.parametrize("level", [1, 3])
def test_a_copy_is_as_good_as_its_records(tmp_path, level):
    write_run(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere" / "copy")
    shutil.copytree(tmp_path / "run", tmp_path / "without", ignore=shutil.ignore_patterns("_run"))
    assert verify(LocalStorage(tmp_path / "elsewhere" / "copy"), level).exit_status == GOOD
    report = verify(LocalStorage(tmp_path / "without"), level)
    assert (report.exit_status, report.verdict) == (FOREIGN, "unverifiable")
    assert report.problems == []
    # ... and still loads by founding document 004's snippet.
    data = pickle.loads((tmp_path / "without" / FILE).read_bytes())
    assert np.stack([item["activation"] for item in data["activations"]]).shape == (6, WIDTH)


# metadata.json.
METADATA_DAMAGES = {
    "missing": (None, "is missing"),
    "empty": (lambda data: b"", "not JSON"),
    "truncated": (lambda data: data[: len(data) // 2], "not JSON"),
    "not JSON": (lambda data: b"layer: 6", "not JSON"),
    "deep": (lambda data: b"[" * 100_000, "not JSON"),
    "a list": (lambda data: b"[]", "does not describe"),
    "bytes": (lambda data: b"\xff\xfe", "not JSON"),
}


@pytest.mark.parametrize("damage", METADATA_DAMAGES)
@pytest.mark.parametrize("planned", [3, 5])
def test_damaged_metadata_is_named(tmp_path, damage, planned):
    change, words = METADATA_DAMAGES[damage]
    storage = write_run(tmp_path, planned=planned)
    if change is None:
        storage.remove(METADATA)
    else:
        storage.replace(METADATA, change(storage.get(METADATA)))
    if change is None and planned > 3:  # a run that goes on may not have written it yet
        assert verify(storage).exit_status == INCOMPLETE
    else:
        assert_damaged(storage, 1, METADATA, words)


def set_entry(**fields):
    return lambda document: document["batches"][2].update(fields)


METADATA_CHANGES = {
    "a missing file": (set_entry(file="layer_6_batch_000009.pkl"), "which is missing"),
    "a file twice": (lambda d: d["batches"].append(d["batches"][2]), "twice"),
    "a file outside": (set_entry(file="../x"), "not a valid name"),
    "an absolute file": (set_entry(file="/etc/passwd"), "not a valid name"),
    "a wrong n_samples": (set_entry(n_samples=7), "says (2, 'layer_6', 7)"),
    "a wrong layer": (set_entry(layer="layer_12"), "'layer_12'"),
    "a wrong batch": (set_entry(batch_id=1), "says (1,"),
    "no file": (lambda d: d["batches"][2].pop("file"), "not a batch"),
    "an entry of text": (lambda d: d["batches"].append("x"), "not a batch"),
    "a batch less": (lambda d: d["batches"].pop(), "total_samples"),
    "total_samples": (lambda d: d.update(total_samples=19), "total_samples"),
    "total_sequences": (lambda d: d.update(total_sequences=8), "total_sequences"),
    "model_name": (lambda d: d.update(model_name="other"), "model_name"),
    "complete": (lambda d: d.update(complete=None), "complete"),
    "statistics": (lambda d: d["statistics"]["layer_6"].update(mean=1.0), "statistics"),
    "a key more": (lambda d: d.update(more=1), "more"),
    "a key less": (lambda d: d.pop("dtype"), "dtype"),
}


@pytest.mark.parametrize("case", METADATA_CHANGES)
@pytest.mark.parametrize("planned", [3, 5])
def test_metadata_that_tells_otherwise_is_named(tmp_path, case, planned):
    change, words = METADATA_CHANGES[case]
    storage = write_run(tmp_path, planned=planned)

    def changed(document):
        change(document)

    edit_json(storage, METADATA, changed)
    assert_damaged(storage, 1, METADATA, words)


def test_metadata_written_otherwise_says_the_same(tmp_path):
    storage = write_run(tmp_path)
    edit_json(storage, METADATA, lambda document: dict(reversed(document.items())))
    assert verify(storage).exit_status == GOOD


@pytest.mark.parametrize("planned", [3, 5])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_metadata_may_be_older_than_the_run(tmp_path, planned, before):
    storage = write_run(tmp_path, planned=planned, units=before)
    committer = Committer(storage, HOOKS)
    for unit in range(before, 3):
        committer.commit(unit + 1, *sample_rows(unit))
    report = verify(storage, 3)
    assert report.exit_status == INCOMPLETE
    assert "older than the run" in report.unfinished[-1]
    edit_json(storage, METADATA, lambda document: document.update(total_sequences=77))
    assert_damaged(storage, 1, METADATA, "total_sequences")


def test_a_run_whose_batches_are_in_the_cloud_is_no_damage(tmp_path):
    storage = write_run(tmp_path)
    for record in records_of(storage):
        for file in record.all_files():
            storage.remove(file.file)
        storage.remove(record_name(record.batch_id))
    report = verify(storage, 3)
    assert report.exit_status == INCOMPLETE
    assert "bucket" in report.unfinished[-1]


# What no record names.
def test_files_that_no_record_names_are_notes(tmp_path):
    storage = write_run(tmp_path)
    (tmp_path / "layer_6_batch_000009.pkl").write_bytes(b"torn")
    (tmp_path / "_run/outputs/000009.jsonl").write_bytes(b"torn")
    (tmp_path / ".tmp-17-abc").write_bytes(b"torn")
    (tmp_path / "_run/commits/.tmp-17-abd").write_bytes(b"torn")
    (tmp_path / "outputs.jsonl").write_bytes(b"{}\n")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    report = verify(storage, 3)
    assert report.exit_status == GOOD
    assert sorted(note.partition(":")[0] for note in report.notes) == [
        ".tmp-17-abc",
        "_run/commits/.tmp-17-abd",
        "_run/outputs/000009.jsonl",
        "layer_6_batch_000009.pkl",
        "notes.txt",
    ]


def test_nothing_is_written(tmp_path):
    storage = write_run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    verify(storage, 3)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_read_only_folder_can_be_verified(tmp_path, monkeypatch):
    write_run(tmp_path)
    monkeypatch.setattr("os.access", lambda *args, **kwargs: False)
    assert verify(LocalStorage(tmp_path, writable=False), 3).exit_status == GOOD


# In a bucket.
@pytest.fixture
def cloud(fake_gcs):
    return write_run(GcsStorage("gs://bucket/a/run", fake_gcs.client()))


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_run_in_a_bucket_is_good(cloud, level):
    assert verify(cloud, level).exit_status == GOOD


def test_level_1_downloads_no_batches_and_lists_once(cloud, fake_gcs):
    fake_gcs.requests.clear()
    assert verify(cloud, 1).exit_status == GOOD
    media = {r.name for r in fake_gcs.requests if r.name and "alt=media" in r.target}
    assert not {name for name in media if "_batch_" in name or "outputs" in name}
    assert len(fake_gcs.requests) < 20


@pytest.mark.parametrize("damage", DAMAGES)
def test_level_1_finds_every_damage_in_a_bucket(cloud, fake_gcs, damage):
    change, _, _ = DAMAGES[damage]
    fake_gcs.put("bucket", f"a/run/{FILE}", change(cloud.get(FILE)))
    for level in (1, 2, 3):
        report = verify(cloud, level)
        assert report.exit_status == DAMAGED
        assert {problem.file for problem in report.problems} == {FILE}


def test_missing_objects_are_named(cloud):
    cloud.remove(FILE)
    assert_damaged(cloud, 1, FILE, "is missing", 2)
    cloud.remove(METADATA)
    assert {problem.file for problem in verify(cloud).problems} == {FILE, METADATA}


def test_a_bucket_without_a_run_is_foreign(fake_gcs):
    storage = GcsStorage("gs://bucket/none", fake_gcs.client())
    assert verify(storage).exit_status == FOREIGN


# Very many files.
class ListedRun(LocalStorage):
    """A run whose batches are only listed: as of many files, without any of them."""

    def __init__(self, folder: Path, batches: int):
        super().__init__(folder)
        self.listing = {
            f"{hook}_batch_{n:06d}.pkl": FileInfo(bytes=100)
            for n in range(1, batches + 1)
            for hook in HOOKS
        }

    def infos(self, prefix=""):
        return dict(self.listing) if prefix == "" else super().infos(prefix)


def test_level_1_is_quick(tmp_path):
    batches = 1000
    storage = ListedRun(tmp_path, batches)
    identity = RunIdentity.new(
        model_name="m", hook_points=HOOKS, hidden_dim=WIDTH, planned_batches=batches
    )
    begin(storage, identity)
    statistics = RowStatistics.of(np.ones((5, WIDTH), np.float32))
    for number in range(1, batches + 1):
        files = {
            hook: CommittedFile(
                file=f"{hook}_batch_{number:06d}.pkl",
                bytes=100,
                crc32c=f"{number:08x}",
                sha256=f"{number:064x}",
            )
            for hook in HOOKS
        }
        record = CommitRecord(
            batch_id=number,
            n_rows=5,
            n_sequences=5,
            keys_sha256="0" * 64,
            files=files,
            sidecars={},
            outputs=None,
            statistics=dict.fromkeys(HOOKS, statistics),
            written_at="",
        )
        path = tmp_path / record_name(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(record.to_json())
    write_metadata(storage)
    started = time.process_time()
    report = verify(storage, 1)
    seconds = time.process_time() - started
    assert (report.exit_status, report.counts["files"]) == (GOOD, 2000)
    assert seconds < 2000 * 60e-6 * 5  # a million in a minute, on a machine five times as slow


def test_progress_is_told(tmp_path):
    told = []
    verify(write_run(tmp_path), 2, lambda *line: told.append(line))
    assert {what for what, _, _ in told} == {"records checked", "bytes checked"}
    assert told[-1][1] == told[-1][2] > 0


def test_a_run_closed_late_is_good(tmp_path):
    extractor = make_extractor(tmp_path, save_every=1)
    extractor.add(known_block(0, 3))
    storage = LocalStorage(tmp_path)
    close(storage, 3)  # killed before the last metadata.json
    assert verify(storage).exit_status == INCOMPLETE
    write_metadata(storage)
    assert verify(storage).exit_status == GOOD
    assert len(list(CommitLog(storage).records())) == 3
