import json
import shutil

import pytest

from extraction.checksums import crc32c
from extraction.errors import StoreError
from extraction.maintenance.repair import repair
from extraction.maintenance.verify import verify
from extraction.run.identity import RunLock
from extraction.run_layout import KEPT_METADATA, METADATA_FILE, QUARANTINE
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata
from tests.extraction.known_runs import FORMS
from tests.extraction.written_runs import (
    HOOKS,
    content_of,
    records_of,
    sample_rows,
    write_run,
)

GOOD, DAMAGED, INCOMPLETE = 0, 1, 4
RECORD = "_run/commits/000002.json"


def read(storage, name=METADATA_FILE):
    return json.loads(storage.get(name))


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'{"batches": [{"file": "../x"}]}'])
def test_metadata_comes_back_as_it_was(tmp_path, damage):
    storage = write_run(tmp_path)
    before = content_of(storage)
    if damage is None:
        storage.remove(METADATA_FILE)
    else:
        storage.replace(METADATA_FILE, damage)
    assert verify(storage).exit_status == DAMAGED
    result = repair(storage)
    assert (result.done, result.damage) == (["metadata.json lists 3 batches"], [])
    assert content_of(storage) == before
    assert verify(storage, 3).exit_status == GOOD


def test_older_metadata_is_brought_up_to_date(tmp_path):
    storage = write_run(tmp_path, units=1, planned=3)
    Committer(storage, HOOKS).commit(2, *sample_rows(1))
    repair(storage)
    assert len(read(storage)["batches"]) == 4
    assert verify(storage).unfinished == ["1 of 3 batches are missing: 3"]


def test_nothing_is_deleted(tmp_path):
    storage = write_run(tmp_path)
    storage.replace("layer_6_batch_000009.pkl", b"orphan")
    storage.replace("mine.txt", b"mine")
    storage.replace(METADATA_FILE, b"{")
    storage.replace(RECORD, b"{")
    before = content_of(storage)
    repair(storage)
    after = content_of(storage)
    assert {**before, METADATA_FILE: after[METADATA_FILE]} == after


def test_batches_with_a_damaged_record_are_left_out(tmp_path):
    storage = write_run(tmp_path)
    storage.replace(RECORD, b"{")
    result = repair(storage)
    assert RECORD in result.damage[0]
    assert "quarantine" in result.damage[1]
    document = read(storage)
    assert {entry["batch_id"] for entry in document["batches"]} == {1, 3}
    assert document["complete"] is False
    assert verify(storage).exit_status == DAMAGED


def test_quarantine_takes_what_no_record_names_and_the_run_goes_on(tmp_path):
    storage = write_run(tmp_path, "raw")
    lost = records_of(storage)[1]
    storage.replace(RECORD, b"{")
    storage.replace("layer_6_batch_000009.bin", b"orphan")
    storage.replace("_run/outputs/000009.jsonl", b"orphan")
    storage.replace("mine.txt", b"mine")
    storage.replace("my_batch_000001.txt", b"mine")
    before = content_of(storage)
    result = repair(storage, quarantine=True)
    assert result.damage == []
    moved = {
        RECORD,
        "layer_6_batch_000009.bin",
        "_run/outputs/000009.jsonl",
        *(file.file for file in lost.all_files()),
    }
    assert sorted(line.split()[0] for line in result.done[:-1]) == sorted(moved)
    after = content_of(storage)
    for name in moved:
        assert name not in after
        assert after[QUARANTINE + name.rpartition("/")[2]] == before[name]
    kept = before.keys() - moved - {METADATA_FILE}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert verify(storage, 3).exit_status == INCOMPLETE
    Committer(storage, HOOKS, "raw").commit(2, *sample_rows(1))
    write_metadata(storage)
    assert verify(storage, 3).exit_status == GOOD


def test_quarantine_keeps_both_of_one_name(tmp_path):
    storage = write_run(tmp_path)
    name = "layer_6_batch_000009.pkl"
    for content in (b"one", b"two", b"two"):
        storage.replace(name, content)
        repair(storage, quarantine=True)
    found = {n: storage.get(n) for n in storage.names(QUARANTINE)}
    assert found == {QUARANTINE + name: b"one", f"{QUARANTINE}{name}.1": b"two"}


@pytest.mark.parametrize("process", [0, 3])
def test_quarantine_waits_for_no_run_that_writes(tmp_path, process):
    storage = write_run(tmp_path)
    storage.replace("layer_6_batch_000009.pkl", b"about to be recorded")
    lock = RunLock(tmp_path, process)
    before = content_of(storage)
    before.pop("_run/lock.00000", None)
    with pytest.raises(StoreError, match="writing"):
        repair(storage, quarantine=True)
    assert content_of(storage).items() - {("_run/lock.00000", b"")} == before.items()
    lock.release()
    repair(storage, quarantine=True)
    assert storage.names(QUARANTINE)


def test_quarantine_in_a_bucket_needs_a_finished_run(fake_gcs):
    storage = write_run(GcsStorage("gs://bucket/run", fake_gcs.client()), planned=4)
    storage.put_new("layer_6_batch_000009.pkl", b"about to be recorded")
    with pytest.raises(StoreError, match="not finished"):
        repair(storage, quarantine=True)
    assert storage.names(QUARANTINE) == []
    Committer(storage, HOOKS).commit(4, *sample_rows(3))
    repair(storage, quarantine=True)
    assert storage.names(QUARANTINE) == [QUARANTINE + "layer_6_batch_000009.pkl"]
    assert verify(storage, 3).exit_status == GOOD


@pytest.mark.parametrize("there", [b"", b"torn", None])
def test_output_lines_are_refreshed_where_they_stand(tmp_path, there):
    storage = write_run(tmp_path)
    lines = b"".join(storage.get(f"_run/outputs/{n:06d}.jsonl") for n in (1, 2, 3))
    if there is None:
        repair(storage)
        assert "outputs.jsonl" not in storage.names()
        return
    storage.replace("outputs.jsonl", there)
    repair(storage)
    assert storage.get("outputs.jsonl") == lines
    # The order of the samples is the run's own business.
    other = b"".join(sorted(lines.splitlines(keepends=True), reverse=True))
    storage.replace("outputs.jsonl", other)
    repair(storage)
    assert storage.get("outputs.jsonl") == other


def test_damaged_output_lines_are_not_spread(tmp_path):
    storage = write_run(tmp_path)
    storage.replace("outputs.jsonl", b"old")
    storage.replace("_run/outputs/000002.jsonl", b"torn")
    result = repair(storage)
    assert "_run/outputs/000002.jsonl" in result.damage[0]
    assert storage.get("outputs.jsonl") == b"old"


def without_run(folder):
    write_run(folder / "whole")
    shutil.copytree(folder / "whole", folder / "copy", ignore=shutil.ignore_patterns("_run"))
    return LocalStorage(folder / "whole"), LocalStorage(folder / "copy")


@pytest.mark.parametrize("file_format", [name for name, dtype in FORMS if dtype == "float32"])
def test_metadata_is_rebuilt_from_the_files_themselves(tmp_path, file_format):
    write_run(tmp_path / "whole", file_format)
    shutil.copytree(tmp_path / "whole", tmp_path / "copy", ignore=shutil.ignore_patterns("_run"))
    whole, copy = LocalStorage(tmp_path / "whole"), LocalStorage(tmp_path / "copy")
    old, result = read(whole), repair(copy)
    assert result.damage == []
    new = read(copy)
    assert (new.pop("complete"), new.pop("rebuilt_from_files")) == (False, True)
    unknown = {"complete", "planned_batches", "fingerprint", "created_at"}
    assert new == {key: value for key, value in old.items() if key not in unknown}


def test_what_only_metadata_knew_is_unknown_without_it(tmp_path):
    _, copy = without_run(tmp_path)
    copy.replace(METADATA_FILE, b"{ torn")
    repair(copy)
    document = read(copy)
    assert (document["model_name"], document["run"], document["run_id"]) == ("unknown", {}, None)
    assert document["total_samples"] == 18
    assert copy.get(KEPT_METADATA) == b"{ torn"


def test_only_whole_batches_are_listed(tmp_path):
    _, copy = without_run(tmp_path)
    copy.remove("layer_12_batch_000001.pkl")
    name = "layer_6_batch_000003.pkl"
    copy.replace(name, copy.get(name)[:-9])
    result = repair(copy)
    assert "batch 1 is left out: it has no file of layer_12" in result.damage[0]
    assert f"batch 3 is left out: {name}" in result.damage[1]
    assert {entry["batch_id"] for entry in read(copy)["batches"]} == {2}


def test_files_of_another_layer_are_not_listed(tmp_path):
    _, copy = without_run(tmp_path)
    copy.replace("layer_6_batch_000002.pkl", copy.get("layer_12_batch_000002.pkl"))
    copy.replace("layer_6_batch_000003.pkl", copy.get("layer_6_batch_000001.pkl"))
    result = repair(copy)
    assert "holds rows of layer_12" in result.damage[0]
    assert "has other task_ids" in result.damage[1]


def test_there_must_be_a_run(tmp_path):
    with pytest.raises(StoreError, match="no run"):
        repair(LocalStorage(tmp_path))
    _, copy = without_run(tmp_path)
    with pytest.raises(StoreError, match="quarantine"):
        repair(copy, quarantine=True)
    copy.put_new("layer_6_batch_000001.npz", b"")
    with pytest.raises(StoreError, match=r"several formats: \['npz', 'pickle'\]"):
        repair(copy)


def test_a_run_in_a_bucket_is_repaired(fake_gcs):
    storage = write_run(GcsStorage("gs://bucket/run", fake_gcs.client()))
    whole = crc32c(storage.get(METADATA_FILE))
    storage.replace(METADATA_FILE, b"{")
    repair(storage)
    assert crc32c(storage.get(METADATA_FILE)) == whole
