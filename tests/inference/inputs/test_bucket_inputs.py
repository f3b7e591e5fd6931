"""Model and tasks from a bucket: the same run as from a disk."""

import io
import json

import pytest

from extraction.errors import StoreError
from extraction.storage import open_storage
from inference import simple_extraction_inference
from inference.engine.bucket_checkpoint import BucketFile, open_bucket_checkpoint
from inference.errors import InputError
from inference.inputs.tasks import read_tasks, tasks_digest
from qwen_hooks import Checkpoint
from qwen_hooks.errors import ModelError
from tests.extraction.bucket_environment import REFUSED_DOWNLOADS, bucket, collected
from tests.fake_gcs.faults import Fault
from tests.fake_gcs.fixture import fake_gcs
from tests.inference.whole_runs import arguments, read_run

__all__ = ["bucket", "collected", "fake_gcs"]

MODEL, TASKS = "gs://bucket/models/demo", "gs://bucket/data/tasks.json"
SOME = [{"task_id": "a", "prompt": "größer"}, {"task_id": "b", "token_ids": [5, 6, 7]}]


pytestmark = REFUSED_DOWNLOADS


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Where small files of a checkpoint are kept."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("inference.engine.bucket_checkpoint.CACHE", str(folder))
    return folder


@pytest.fixture
def filled(bucket, demo_checkpoint):
    """A bucket with the demo model and some tasks."""
    for path in demo_checkpoint.iterdir():
        bucket.put("bucket", f"models/demo/{path.name}", path.read_bytes())
    bucket.put("bucket", "data/tasks.json", json.dumps(SOME).encode())
    return bucket


def without_times(rows):
    return {key: (step, token, row.tobytes()) for key, (step, token, row) in rows.items()}


def test_a_run_is_the_same_from_a_bucket(filled, demo_checkpoint, tmp_path):
    local = tmp_path / "tasks.json"
    local.write_text(json.dumps(SOME))
    here, there = tmp_path / "here", tmp_path / "there"
    assert simple_extraction_inference.main(arguments(here, demo_checkpoint, local)) == 0
    assert simple_extraction_inference.main(arguments(there, MODEL, TASKS)) == 0
    lines, metadata, rows = read_run(here)
    lines_there, metadata_there, rows_there = read_run(there)
    assert lines == lines_there
    assert without_times(rows) == without_times(rows_there)
    for key in ("weights_sha256", "tokenizer_sha256", "tasks_file_sha256"):
        assert metadata["run"][key] == metadata_there["run"][key]
    assert metadata["fingerprint"] == metadata_there["fingerprint"]


def test_of_the_weights_only_parts_are_read(filled, demo_checkpoint):
    checkpoint = open_bucket_checkpoint(MODEL)
    assert checkpoint.weights_digest() == Checkpoint.open(demo_checkpoint).weights_digest()
    tensor = checkpoint.tensors["model.embed_tokens.weight"]
    filled.requests.clear()
    with tensor.file.open("rb", buffering=0) as stream:
        stream.seek(tensor.offset)
        part = bytearray(64)
        assert stream.readinto(part) == 64
    whole = filled.objects("bucket")["models/demo/model.safetensors"].data
    assert part == whole[tensor.offset : tensor.offset + 64]
    assert [exchange.status for exchange in filled.requests] == [206]


def test_a_file_in_a_bucket_is_read_as_a_file_is(filled):
    storage = open_storage("gs://bucket/data")
    data = storage.get("tasks.json")
    file = BucketFile(storage, "tasks.json", storage.infos()["tasks.json"])
    assert str(file) == TASKS
    assert file.stat().st_size == len(data)
    for buffering in (0, 16, 1 << 20):
        with file.open("rb", buffering=buffering) as stream:
            assert stream.read(5) == data[:5]
            assert stream.read() == data[5:]
            assert stream.read() == b""
            assert stream.seek(-4, io.SEEK_END) == len(data) - 4
            assert stream.read(100) == data[-4:]
            stream.seek(3)
            stream.seek(2, io.SEEK_CUR)
            assert stream.tell() == 5


def test_small_files_follow_the_bucket(filled, cache):
    open_bucket_checkpoint(MODEL)
    (folder,) = cache.iterdir()
    names = {path.name for path in folder.iterdir()}
    assert "config.json" in names
    assert not any(name.endswith(".safetensors") for name in names)
    (folder / "merges.txt").write_text("of an earlier version")
    config = json.loads(filled.objects("bucket")["models/demo/config.json"].data)
    changed = json.dumps(config | {"eos_token_id": 7}).encode()
    filled.put("bucket", "models/demo/config.json", changed)
    assert open_bucket_checkpoint(MODEL + "/").stop_token_ids == (7,)
    assert {path.name for path in folder.iterdir()} == names


def test_tasks_of_a_folder(filled, tmp_path):
    for number in (2, 1):
        task = [{"task_id": f"t{number}", "prompt": "x"}]
        filled.put("bucket", f"data/more/{number}.json", json.dumps(task).encode())
        (tmp_path / f"{number}.json").write_text(json.dumps(task))
    filled.put("bucket", "data/more/notes.txt", b"no task")
    for address in ("gs://bucket/data/more", "gs://bucket/data/more/"):
        assert [task.task_id for task in read_tasks(address)] == ["t1", "t2"]
    assert tasks_digest("gs://bucket/data/more") == tasks_digest(str(tmp_path))
    assert tasks_digest("gs://bucket/data/more") != tasks_digest(TASKS)


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("gs://bucket/data/none.json", InputError, "there is no such file or folder"),
        ("gs://bucket/empty/", InputError, "there is no such file or folder"),
        ("gs://nobody/tasks.json", StoreError, "the bucket does not exist"),
        ("abfss://bucket/tasks.json", StoreError, "abfss:// is not supported"),
    ],
)
def test_what_is_no_tasks_file_there_is_refused(filled, address, kind, message):
    with pytest.raises(kind, match=message):
        read_tasks(address)


def test_a_folder_without_tasks_is_refused(filled):
    filled.put("bucket", "data/texts/a.txt", b"x")
    with pytest.raises(InputError, match=r"the folder holds no \.json file"):
        read_tasks("gs://bucket/data/texts")


def test_a_fault_in_the_tasks_is_told_with_their_address(filled):
    filled.put("bucket", "data/bad.json", b"[{]")
    with pytest.raises(InputError, match=r"gs://bucket/data/bad\.json is not JSON"):
        read_tasks("gs://bucket/data/bad.json")


def test_a_checkpoint_that_does_not_fit_is_named_by_its_address(filled):
    filled.put("bucket", "models/demo/config.json", b"{}")
    with pytest.raises(ModelError, match=MODEL):
        open_bucket_checkpoint(MODEL)


def test_what_is_no_checkpoint_there_is_refused(filled, tmp_path, capsys):
    with pytest.raises(ModelError, match="holds no checkpoint"):
        open_bucket_checkpoint("gs://bucket/nothing")
    command = arguments(tmp_path / "run", MODEL, TASKS, "--revision", "main")
    assert simple_extraction_inference.main(command) == 2
    assert "has no revision 'main'" in capsys.readouterr().err
    filled.faults.add(Fault(kind="403"))
    assert simple_extraction_inference.main(arguments(tmp_path / "run", MODEL, TASKS)) == 74
    assert "no permission" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
