"""What is derived from `_run/` is a pure function of it."""

import errno
import json
import shutil
import threading

import numpy as np
import pytest

from extraction import StoreError, __version__
from extraction.errors import StorageUnavailableError
from extraction.run.identity import RunIdentity, begin
from extraction.run.records import CommitLog
from extraction.run.totals import RunTotals
from extraction.run_layout import CLOSED_FILE, SELF_CHECKS
from extraction.storage.local import LocalStorage
from extraction.writing import disk_retry
from extraction.writing.committer import Committer
from extraction.writing.finalise import close, output_lines, write_metadata
from tests.extraction.known_rows import bytes_of, known_block, read_metadata

HOOKS = ("layer_12", "layer_6")


def make_run(folder, planned: int | None = None, **changes) -> RunIdentity:
    entry = {"model_name": "größer", "hidden_dim": 4, "run": {"host": "a"}} | changes
    made = RunIdentity.new(
        hook_points=HOOKS, planned_batches=planned, fingerprint={"seed": 7}, **entry
    )
    return begin(LocalStorage(folder), made)


def commit(folder, batch_id: int, rows: int = 3, lines=None):
    block = known_block(10 * batch_id, rows, (6, 12)) if rows else None
    return Committer(LocalStorage(folder), HOOKS).commit(batch_id, block, lines)


def metadata_bytes(folder) -> bytes:
    write_metadata(LocalStorage(folder))
    return (folder / "metadata.json").read_bytes()


def test_metadata_is_a_pure_function_of_the_runs_folder(tmp_path):
    make_run(tmp_path / "one")
    for batch_id in (3, 1, 2):  # as hosts commit them
        commit(tmp_path / "one", batch_id)
    close(LocalStorage(tmp_path / "one"), 3)
    first = metadata_bytes(tmp_path / "one")
    (tmp_path / "one" / "metadata.json").unlink()
    assert metadata_bytes(tmp_path / "one") == first
    (tmp_path / "one" / "metadata.json").write_bytes(b"{ damaged")
    assert metadata_bytes(tmp_path / "one") == first
    # `_run` alone decides, wherever it is.
    shutil.copytree(tmp_path / "one" / "_run", tmp_path / "two" / "_run")
    assert metadata_bytes(tmp_path / "two") == first


def test_metadata_tells_what_the_records_tell(tmp_path):
    made = make_run(tmp_path, planned=9)
    block = known_block(20, 5, (6, 12))
    block.activations["layer_6"][1, 2] = np.nan
    committer = Committer(LocalStorage(tmp_path), HOOKS)
    committer.commit(2, block)
    commit(tmp_path, 7, rows=2)
    commit(tmp_path, 4, rows=0, lines=[{"task_id": "skipped"}])
    totals = write_metadata(LocalStorage(tmp_path))
    assert [batch.batch_id for batch in totals.batches()] == [2, 4, 7]
    found = read_metadata(tmp_path)
    statistics = found.pop("statistics")
    assert found == {
        "model_name": "größer",
        "layers_extracted": [12, 6],
        "hidden_dim": 4,
        "total_samples": 7,
        "batches": [
            {
                "batch_id": batch_id,
                "layer": f"layer_{layer}",
                "file": f"layer_{layer}_batch_{batch_id:06d}.pkl",
                "n_samples": rows,
            }
            for batch_id, rows in ((2, 5), (7, 2))
            for layer in (12, 6)
        ],
        "schema_version": 1,
        "complete": False,
        "total_sequences": 7,
        "format": "pickle",
        "dtype": "float32",
        "run": {"host": "a", "program_version": __version__},
        "run_id": made.run_id,
        "created_at": made.created_at,
        "planned_batches": 9,
        "fingerprint": {"seed": 7},
    }
    rows = np.concatenate([block.activations["layer_6"][[0, 2, 3, 4]],
                           known_block(70, 2, (6,)).activations["layer_6"]])  # fmt: skip
    assert (statistics["layer_6"]["rows"], statistics["layer_6"]["nonfinite_rows"]) == (7, 1)
    assert statistics["layer_6"]["mean"] == pytest.approx(rows.mean(dtype=np.float64))
    assert sum(statistics["layer_6"]["norm_histogram"]["counts"].values()) == 6
    assert (statistics["layer_12"]["rows"], statistics["layer_12"]["nonfinite_rows"]) == (7, 0)


def test_a_planned_run_is_complete_with_its_last_batch(tmp_path):
    make_run(tmp_path, planned=2)
    for batch_id, complete in ((None, False), (2, False), (1, True)):
        if batch_id is not None:
            commit(tmp_path, batch_id)
        metadata_bytes(tmp_path)
        assert read_metadata(tmp_path)["complete"] is complete


def test_a_planned_run_is_not_complete_by_being_closed(tmp_path):
    make_run(tmp_path, planned=2)
    commit(tmp_path, 1)
    close(LocalStorage(tmp_path), 1)
    metadata_bytes(tmp_path)
    assert read_metadata(tmp_path)["complete"] is False


def test_a_run_without_a_plan_is_complete_when_closed_with_all_its_batches(tmp_path):
    make_run(tmp_path)
    commit(tmp_path, 1)
    metadata_bytes(tmp_path)
    assert (read_metadata(tmp_path)["complete"], read_metadata(tmp_path)["planned_batches"]) == (
        False,
        None,
    )
    close(LocalStorage(tmp_path), 2)
    metadata_bytes(tmp_path)
    assert read_metadata(tmp_path)["complete"] is False  # one of them did not arrive
    commit(tmp_path, 2)
    metadata_bytes(tmp_path)
    assert (read_metadata(tmp_path)["complete"], read_metadata(tmp_path)["planned_batches"]) == (
        True,
        2,
    )


def test_a_run_of_no_batches_can_be_complete(tmp_path):
    make_run(tmp_path)
    close(LocalStorage(tmp_path), 0)
    metadata_bytes(tmp_path)
    found = read_metadata(tmp_path)
    assert (found["complete"], found["total_samples"]) == (True, 0)
    assert found["statistics"]["layer_6"]["mean"] is None


class CommittedMeanwhile(LocalStorage):
    """While `metadata.json` is written, another process commits, so many times."""

    times = 2

    def replace(self, name, data):
        super().replace(name, data)
        if name == "metadata.json" and self.times:
            self.times -= 1
            commit(self.folder, 9 - self.times)


def test_what_is_committed_between_listing_and_writing_is_included(tmp_path):
    make_run(tmp_path)
    commit(tmp_path, 1)
    totals = write_metadata(CommittedMeanwhile(tmp_path))
    assert [batch.batch_id for batch in totals.batches()] == [1, 8, 9]
    assert {batch["batch_id"] for batch in read_metadata(tmp_path)["batches"]} == {1, 8, 9}


def test_of_processes_that_write_at_once_the_last_writes_everything(tmp_path):
    make_run(tmp_path, planned=12)
    start = threading.Barrier(4)

    def host(number: int):
        storage = LocalStorage(tmp_path)
        start.wait()
        for batch_id in range(number + 1, 13, 4):
            commit(tmp_path, batch_id, rows=1)
            storage.replace(f"{SELF_CHECKS}{number:05d}.json", b'{"samples": %d}' % batch_id)
            write_metadata(storage)

    threads = [threading.Thread(target=host, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_metadata(tmp_path)
    assert found["complete"] is True
    assert found["total_samples"] == 12
    assert len(found["run"]["self_check"]) == 4


def test_totals_that_are_kept_give_the_same(tmp_path):
    make_run(tmp_path)
    totals = RunTotals()
    for batch_id in (2, 1):
        commit(tmp_path, batch_id)
        assert write_metadata(LocalStorage(tmp_path), totals) is totals
    assert (tmp_path / "metadata.json").read_bytes() == metadata_bytes(tmp_path)


def test_copies_are_the_same_document(tmp_path):
    make_run(tmp_path / "run")
    commit(tmp_path / "run", 1)
    write_metadata(LocalStorage(tmp_path / "run"), copies=[LocalStorage(tmp_path / "copy")])
    written = (tmp_path / "run" / "metadata.json").read_bytes()
    assert bytes_of(tmp_path / "copy") == {"metadata.json": written}


def test_self_checks_stand_in_the_order_of_the_processes(tmp_path):
    make_run(tmp_path)
    storage = LocalStorage(tmp_path)
    for number in (10, 2):
        document = json.dumps({"samples": number}).encode()
        storage.replace(f"{SELF_CHECKS}{number:05d}.json", document)
    write_metadata(storage)
    assert read_metadata(tmp_path)["run"]["self_check"] == [{"samples": 2}, {"samples": 10}]
    storage.replace(f"{SELF_CHECKS}00003.json", b'{"samples"')
    with pytest.raises(StoreError, match=r"_run/self_check/00003\.json is damaged"):
        write_metadata(storage)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"3", b'{"batches": null}', b'{"batches": "x"}']
)
def test_a_damaged_end_is_told(tmp_path, data):
    make_run(tmp_path)
    LocalStorage(tmp_path).replace(CLOSED_FILE, data)
    with pytest.raises(StoreError, match=r"_run/closed\.json is damaged"):
        write_metadata(LocalStorage(tmp_path))


def test_a_folder_without_a_run_gets_no_metadata(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        write_metadata(LocalStorage(tmp_path))
    assert bytes_of(tmp_path) == {}


class FullFor(LocalStorage):
    """A disk that is full for so many writes."""

    left = 3

    def replace(self, name, data):
        self.left -= 1
        if self.left >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().replace(name, data)


def test_a_full_disk_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_retry, "FIRST_WAIT", 0.001)
    make_run(tmp_path)
    commit(tmp_path, 1)
    close(FullFor(tmp_path), 1)
    write_metadata(FullFor(tmp_path))
    assert read_metadata(tmp_path)["complete"] is True
    with pytest.raises(StorageUnavailableError, match="No space left"):
        write_metadata(FullFor(tmp_path), stall_timeout=0)


def test_output_lines_come_batch_by_batch(tmp_path):
    make_run(tmp_path)
    texts = ["größer\u2028\u0085\r\nals\x00", "", "🧩"]  # line ends to some, but not here
    for batch_id in (2, 1):
        commit(tmp_path, batch_id, lines=[{"batch": batch_id, "text": text} for text in texts])
    commit(tmp_path, 3, lines=[])
    commit(tmp_path, 4, lines=None)
    storage = LocalStorage(tmp_path)
    found = list(output_lines(storage, list(CommitLog(storage).records())))
    assert found == [{"batch": batch_id, "text": text} for batch_id in (1, 2) for text in texts]


def test_the_run_may_say_anything(tmp_path):
    """Texts in the run's description do not disturb the lines of the batches."""
    tricky = '\n  "batches": []'
    made = make_run(tmp_path, model_name=tricky, run={"batches": [], tricky: tricky})
    commit(tmp_path, 1)
    metadata_bytes(tmp_path)
    found = read_metadata(tmp_path)
    assert found["model_name"] == made.model_name == tricky
    assert found["run"] == made.run
    assert found["run"][tricky] == tricky
    assert len(found["batches"]) == 2
