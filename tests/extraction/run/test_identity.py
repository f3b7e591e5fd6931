import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import extraction
from extraction import ExistingRunError, StoreError
from extraction.run.identity import RunIdentity, RunLock, begin, check_identity, read_identity
from extraction.run_layout import RUN_FILE
from extraction.storage.local import LocalStorage
from tests.extraction.known_rows import bytes_of

SETTINGS = {
    "model_name": "Qwen/Qwen2.5-0.5B",
    "hook_points": ["layer_6", "layer_12"],
    "hidden_dim": 896,
    "file_format": "pickle",
    "dtype": "float32",
    "planned_batches": 12,
    "fingerprint": {"seed": 7, "layers": (6, 12), "nested": {"pair": (1, 2)}, "revision": None},
    "run": {"host": "größer"},
}


def identity(**changes) -> RunIdentity:
    return RunIdentity.new(**{**SETTINGS, **changes})


def write(folder: Path, name: str, data: bytes = b"x"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def write_changed(folder: Path, **changes):
    write(folder, RUN_FILE, json.dumps(json.loads(identity().to_json()) | changes).encode())


def test_an_identity_comes_back_as_it_was(tmp_path):
    storage, made = LocalStorage(tmp_path), identity(fingerprint={"seed": 7, "list": [1, 2]})
    assert read_identity(storage) is None
    assert begin(storage, made) == made
    assert read_identity(LocalStorage(tmp_path)) == made
    assert made.hook_points == ("layer_6", "layer_12")
    assert len(made.run_id) == 32
    assert identity().run_id != made.run_id


def test_a_run_may_begin_where_there_is_none(tmp_path):
    for name in ("notes.txt", "_run/lock.00000", ".tmp-12-abc", "_run/.tmp-12-abc"):
        write(tmp_path, name)
    for resume in (False, True):
        check_identity(LocalStorage(tmp_path), identity(), resume=resume)
        check_identity(LocalStorage(tmp_path / "new"), identity(), resume=resume)
    assert not (tmp_path / "new").exists()


def test_the_same_run_goes_on_only_when_told_to(tmp_path):
    first = begin(LocalStorage(tmp_path), identity())
    before = bytes_of(tmp_path)
    with pytest.raises(ExistingRunError, match=rf"begun {first.created_at[:10]}.*resume=True"):
        check_identity(LocalStorage(tmp_path), identity(), resume=False)
    check_identity(LocalStorage(tmp_path), identity(), resume=True)
    assert begin(LocalStorage(tmp_path), identity()).run_id == first.run_id
    assert bytes_of(tmp_path) == before


def test_lists_and_tuples_are_the_same_setting(tmp_path):
    begin(LocalStorage(tmp_path), identity())
    lists = {"seed": 7, "layers": [6, 12], "nested": {"pair": [1, 2]}, "revision": None}
    check_identity(LocalStorage(tmp_path), identity(fingerprint=lists), resume=True)
    other = identity(fingerprint=lists | {"layers": (12, 6)})
    with pytest.raises(ExistingRunError, match="layers"):
        check_identity(LocalStorage(tmp_path), other, resume=True)


DIFFERING = {
    "hook_points": (["layer_12", "layer_6"], r"hook_points: \('layer_6', 'layer_12'\) there, "),
    "hidden_dim": (1024, "hidden_dim: 896 there, 1024 now"),
    "file_format": ("raw", "file_format: 'pickle' there, 'raw' now"),
    "dtype": ("bfloat16", "dtype: 'float32' there, 'bfloat16' now"),
    "planned_batches": (None, "planned_batches: 12 there, None now"),
}


@pytest.mark.parametrize("setting", DIFFERING)
def test_each_setting_that_differs_is_named(tmp_path, setting):
    value, message = DIFFERING[setting]
    begin(LocalStorage(tmp_path), identity())
    before = bytes_of(tmp_path)
    with pytest.raises(ExistingRunError, match=message) as told:
        check_identity(LocalStorage(tmp_path), identity(**{setting: value}), resume=True)
    assert str(told.value).count(" there, ") == 1
    assert bytes_of(tmp_path) == before


def test_all_settings_that_differ_are_named_together(tmp_path):
    begin(LocalStorage(tmp_path), identity())
    fingerprint = {"seed": 8, "layers": (6, 12), "nested": {"pair": (1, 3)}, "more": True}
    wanted = identity(dtype="bfloat16", fingerprint=fingerprint)
    with pytest.raises(ExistingRunError, match="other settings") as told:
        check_identity(LocalStorage(tmp_path), wanted, resume=True)
    named = [line.split(":")[0].strip() for line in str(told.value).splitlines()[1:]]
    assert named == ["dtype", "more", "nested", "seed"]


def test_what_does_not_decide_the_rows_may_differ(tmp_path):
    begin(LocalStorage(tmp_path), identity())
    other = identity(model_name="/local/copy", run={"host": "b", "mesh": [8, 8]})
    check_identity(LocalStorage(tmp_path), other, resume=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "name", ["metadata.json", "layer_6_batch_000001.pkl", "_run/commits/000001.json"]
)
def test_a_run_without_its_identity_is_never_touched(tmp_path, name, resume):
    write(tmp_path, name)
    before = bytes_of(tmp_path)
    with pytest.raises(ExistingRunError, match=rf"{name}.*without _run/run\.json"):
        check_identity(LocalStorage(tmp_path), identity(), resume=resume)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_begins_while_one_looks_is_seen(tmp_path, monkeypatch, resume):
    storage, other = LocalStorage(tmp_path), identity()
    names = LocalStorage.names

    def names_of_a_moment_later(self, prefix=""):
        monkeypatch.undo()
        begin(storage, other)
        (tmp_path / "layer_6_batch_000001.pkl").write_bytes(b"")
        return names(self, prefix)

    monkeypatch.setattr(LocalStorage, "names", names_of_a_moment_later)
    if resume:
        check_identity(storage, identity(), resume=True)
    else:
        with pytest.raises(ExistingRunError, match="resume=True goes on with it"):
            check_identity(storage, identity(), resume=False)
    found = read_identity(storage)
    assert found is not None
    assert found.run_id == other.run_id


def test_a_run_that_never_committed_need_not_be_heeded_by_who_holds_the_lock(tmp_path):
    storage = LocalStorage(tmp_path)
    first = begin(storage, identity(dtype="bfloat16"))
    with pytest.raises(ExistingRunError):
        check_identity(storage, identity(), resume=False)
    check_identity(storage, identity(), resume=False, exclusive=True)
    found = begin(storage, identity(), exclusive=True)
    assert (found.dtype, read_identity(storage)) == ("float32", found)
    assert found.run_id != first.run_id
    write(tmp_path, "_run/commits/000001.json")
    with pytest.raises(ExistingRunError):
        check_identity(storage, identity(), resume=False, exclusive=True)
    assert begin(storage, identity(), exclusive=True) == found


NO_JSON = identity().to_json()
DAMAGED = {
    "empty": b"",
    "half": NO_JSON[: len(NO_JSON) // 2],
    "zeros": bytes(len(NO_JSON)),
    "a list": b"[]",
    "a number": b"1",
    "not UTF-8": NO_JSON.replace("größer".encode(), b"\xff"),
    "no version": b"{}",
    "too deep": b"[" * 100_000,
    **{
        f"no {field.name}": json.dumps(
            {k: v for k, v in json.loads(NO_JSON).items() if k != field.name}
        ).encode()
        for field in dataclasses.fields(RunIdentity)
    },
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_identity_is_told(tmp_path, damage):
    write(tmp_path, RUN_FILE, DAMAGED[damage])
    for use in (read_identity, lambda s: check_identity(s, identity(), resume=True)):
        with pytest.raises(StoreError, match=r"^_run/run\.json is damaged"):
            use(LocalStorage(tmp_path))
    assert bytes_of(tmp_path) == {RUN_FILE: DAMAGED[damage]}


def test_a_run_of_a_later_version_is_told(tmp_path):
    write_changed(tmp_path, schema_version=2, unknown_yet=1)
    with pytest.raises(StoreError, match="version 2, newer than this program"):
        check_identity(LocalStorage(tmp_path), identity(), resume=True)


@pytest.mark.parametrize(
    "run", [{"path": Path("x")}, {"set": {1}}, {"name": "\udcff.bin"}], ids=["path", "set", "bytes"]
)
def test_what_json_cannot_hold_is_refused(run):
    with pytest.raises(StoreError, match="JSON"):
        identity(run=run).to_json()


def test_of_processes_that_begin_at_once_one_makes_the_run(tmp_path):
    start, found = threading.Barrier(8), []

    def one():
        storage, mine = LocalStorage(tmp_path), identity()
        start.wait()
        found.append(begin(storage, mine).run_id)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {json.loads((tmp_path / RUN_FILE).read_bytes())["run_id"]}


def test_of_runs_that_begin_at_once_the_other_one_is_refused(tmp_path):
    begin(LocalStorage(tmp_path), identity())
    with pytest.raises(ExistingRunError, match="dtype"):
        begin(LocalStorage(tmp_path), identity(dtype="bfloat16"))


HOLD = """
import sys, time
from pathlib import Path
from extraction.run.identity import RunLock
lock = RunLock(Path(sys.argv[1]), int(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def another_process_holds(folder: Path, process: int = 0):
    """A real process with the lock; ended at the end if it still lives."""
    root = str(Path(extraction.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(process)],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


def test_a_lock_of_another_process_goes_with_it(tmp_path):
    with another_process_holds(tmp_path / "run") as holder:
        with pytest.raises(ExistingRunError, match="another process is writing to"):
            RunLock(tmp_path / "run")
        other = RunLock(tmp_path / "run", process=1)  # another of the same run
        other.release()
        holder.send_signal(signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL
        RunLock(tmp_path / "run").release()
    assert sorted(bytes_of(tmp_path / "run")) == ["_run/lock.00000", "_run/lock.00001"]


def test_a_lock_is_held_until_it_is_released(tmp_path):
    lock = RunLock(tmp_path)
    with pytest.raises(ExistingRunError):
        RunLock(tmp_path)
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(ExistingRunError):
            RunLock(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    lock.release()
    lock.release()
    RunLock(tmp_path).release()


def test_a_file_system_without_locks_is_told_as_what_it_is(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match=r"cannot lock .*lock\.00000: Operation not") as told:
        RunLock(tmp_path)
    assert not isinstance(told.value, ExistingRunError)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot lock"):
        RunLock(tmp_path / "file")
