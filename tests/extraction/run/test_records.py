import dataclasses
import json

import pytest

from extraction import StoreError
from extraction.run.records import CommitLog, CommitRecord, CommittedFile
from extraction.run.statistics import RowStatistics
from extraction.run_layout import record_name
from extraction.storage.local import LocalStorage


def file_of(name: str, **changes) -> CommittedFile:
    entry = {"file": name, "bytes": 1234, "crc32c": "00c0ffee", "sha256": "5e" * 32}
    return CommittedFile(**{**entry, **changes})


def make_record(batch_id: int = 7, **changes) -> CommitRecord:
    statistics = RowStatistics(
        rows=5,
        nonfinite_rows=1,
        values=16,
        total=0.1 + 0.2,  # needs all its digits
        total_squares=1e300,
        norms={"zero": 1, "-3": 2, "12": 1},
    )
    entry = {
        "batch_id": batch_id,
        "n_rows": 5,
        "n_sequences": 3,
        "keys_sha256": "ab" * 32,
        "files": {
            hook: file_of(f"{hook}_batch_{batch_id:06d}.bin") for hook in ("layer_6", "größe")
        },
        "sidecars": {"layer_6": file_of(f"layer_6_batch_{batch_id:06d}.keys.npz")},
        "outputs": file_of(f"_run/outputs/{batch_id:06d}.jsonl"),
        "statistics": {"layer_6": statistics},
        "written_at": "2025-01-15T10:30:00+00:00",
    }
    return CommitRecord(**{**entry, **changes})


EMPTY = {"files": {}, "sidecars": {}, "statistics": {}, "n_rows": 0, "n_sequences": 0}


@pytest.mark.parametrize(
    "changes", [{}, {"outputs": None}, EMPTY, {"vocabulary": {3: b"\xff", 4: b" a"}}], ids=str
)
def test_a_record_comes_back_as_it_was(tmp_path, changes):
    log, record = CommitLog(LocalStorage(tmp_path)), make_record(**changes)
    assert log.put(record) is True
    assert CommitRecord.from_json(record.to_json(), "x") == record
    assert CommitLog(LocalStorage(tmp_path)).read(7) == record


def test_all_files_are_those_of_every_kind():
    names = ["größe_batch_000007.bin", "layer_6_batch_000007.bin", "layer_6_batch_000007.keys.npz"]
    lines = "_run/outputs/000007.jsonl"
    assert sorted(f.file for f in make_record().all_files()) == sorted([*names, lines])
    assert sorted(f.file for f in make_record(outputs=None).all_files()) == sorted(names)
    assert [f.file for f in make_record(**EMPTY).all_files()] == [lines]


def test_a_batch_exists_once(tmp_path):
    log = CommitLog(LocalStorage(tmp_path))
    assert log.put(make_record()) is True
    before = (tmp_path / "_run/commits/000007.json").read_bytes()
    assert log.put(make_record(n_rows=4)) is False
    assert (tmp_path / "_run/commits/000007.json").read_bytes() == before
    assert CommitLog(LocalStorage(tmp_path)).read(7).n_rows == 5


def test_records_come_by_number_and_not_by_name(tmp_path):
    log = CommitLog(LocalStorage(tmp_path))
    for batch_id in (1_000_000, 2, 10, 999_999, 1):
        log.put(make_record(batch_id))
    assert [record.batch_id for record in log.records()] == [1, 2, 10, 999_999, 1_000_000]
    assert log.batch_ids() == {1, 2, 10, 999_999, 1_000_000}
    assert record_name(1_000_000) == "_run/commits/1000000.json"


def test_a_record_put_by_another_process_is_seen(tmp_path):
    log, other = CommitLog(LocalStorage(tmp_path)), CommitLog(LocalStorage(tmp_path))
    log.put(make_record(1))
    assert [record.batch_id for record in log.records()] == [1]
    other.put(make_record(2))
    assert [record.batch_id for record in log.records()] == [1, 2]


def test_an_empty_folder_has_no_records(tmp_path):
    assert list(CommitLog(LocalStorage(tmp_path / "none")).records()) == []
    with pytest.raises(FileNotFoundError):
        CommitLog(LocalStorage(tmp_path)).read(1)


def test_other_files_in_the_folder_are_no_records(tmp_path):
    log = CommitLog(LocalStorage(tmp_path))
    log.put(make_record())
    data = (tmp_path / "_run/commits/000007.json").read_bytes()
    others = [".tmp-12-abcdef", "notes.txt", "000008", "000008.json.gz", "9.json", "0000009.json",
              "-00009.json", "٠٠٠٠٠٩.json", "00009a.json", ".DS_Store", "000007.json~"]  # fmt: skip
    for name in others:
        (tmp_path / "_run/commits" / name).write_bytes(data)
    (tmp_path / "_run/commits/000010.json").mkdir()
    assert log.batch_ids() == {7}
    assert len(list(log.records())) == 1


def test_the_record_of_another_batch_is_refused(tmp_path):
    CommitLog(LocalStorage(tmp_path)).put(make_record())
    (tmp_path / "_run/commits/000007.json").rename(tmp_path / "_run/commits/000008.json")
    with pytest.raises(StoreError, match=r"000008\.json holds the commit record of batch 7"):
        list(CommitLog(LocalStorage(tmp_path)).records())


def changed(change) -> bytes:
    document = json.loads(make_record().to_json())
    change(document)
    return json.dumps(document).encode()


def without(key: str) -> bytes:
    return changed(lambda document: document.pop(key))


WHOLE = make_record().to_json()
DAMAGED = {
    "empty": b"",
    "half": WHOLE[: len(WHOLE) // 2],
    "zeros": bytes(len(WHOLE)),
    "zero tail": WHOLE[:200] + bytes(len(WHOLE) - 200),
    "twice": WHOLE + WHOLE,
    "not UTF-8": WHOLE.replace(b'"5e', b'"\xff\xfe', 1),
    "a number": b"7",
    "a list": b"[]",
    "null": b"null",
    "too deep": b"[" * 100_000,
    "files is a list": changed(lambda d: d.update(files=[])),
    "a file is null": changed(lambda d: d["files"].update(layer_6=None)),
    "outputs is a name": changed(lambda d: d.update(outputs="_run/outputs/000007.jsonl")),
    "a name is a number": changed(lambda d: d["files"]["layer_6"].update(file=7)),
    "a key more": changed(lambda d: d.update(more=1)),
    "a key less in a file": changed(lambda d: d["files"]["layer_6"].pop("crc32c")),
    "a key more in statistics": changed(lambda d: d["statistics"]["layer_6"].update(more=1)),
    "rows are text": changed(lambda d: d.update(n_rows="5")),
    "rows are negative": changed(lambda d: d.update(n_rows=-5)),
    "sequences are true": changed(lambda d: d.update(n_sequences=True)),
    "bytes are no whole number": changed(lambda d: d["outputs"].update(bytes=12.5)),
    **{
        f"no {field.name}": without(field.name)
        for field in dataclasses.fields(CommitRecord)
        if field.name != "vocabulary"  # version 0.1.0 wrote none
    },
    "a vocabulary of numbers": changed(lambda d: d.update(vocabulary={"1": 2})),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_named(tmp_path, damage):
    storage = LocalStorage(tmp_path)
    for batch_id in (6, 8):
        CommitLog(storage).put(make_record(batch_id))
    storage.put_new(record_name(7), DAMAGED[damage])
    with pytest.raises(StoreError, match=r"^_run/commits/000007\.json is no commit record"):
        list(CommitLog(storage).records())
    assert CommitLog(storage).read(8).n_rows == 5


OUTSIDE = ["/etc/passwd", "../x", "..", "a/../../x", "_run/..", "a\\..\\x", "x\0", "", ".", "./x",
           "_run//x", "_run/"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("place", ["files", "sidecars", "outputs"])
def test_names_outside_of_the_folder_are_refused(name, place):
    entry = file_of(name) if place == "outputs" else {"layer_6": file_of(name)}
    data = make_record(**{place: entry}).to_json()
    with pytest.raises(StoreError, match="x is no commit record"):
        CommitRecord.from_json(data, "x")


@pytest.mark.parametrize("name", ["..x", "a..b", "_run/outputs/000001.jsonl", "größe %2F.bin"])
def test_names_that_only_look_so_are_taken(name):
    record = make_record(files={"layer_6": file_of(name)})
    assert CommitRecord.from_json(record.to_json(), "x") == record
