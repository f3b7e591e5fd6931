"""Units to upload, and what a fake bucket must hold afterwards."""

import base64
import dataclasses

import google_crc32c

from extraction.run.identity import RunIdentity, begin
from extraction.run.records import CommitLog, CommitRecord
from extraction.run.rows import text_column
from extraction.run_layout import record_name
from extraction.storage.gcs import GcsStorage
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from tests.extraction.known_rows import WIDTH, bytes_of, known_block
from tests.fake_gcs.server import FakeGcs

HOOKS = ("layer_6", "layer_12")
FILES = [f"{hook}_batch_{{:06d}}.pkl" for hook in HOOKS] + ["_run/outputs/{:06d}.jsonl"]


def cloud_of(server: FakeGcs) -> GcsStorage:
    return GcsStorage("gs://bucket/run", server.client(), deadline=60)


def identity(**changes) -> RunIdentity:
    entry = {"model_name": "m", "hook_points": HOOKS, "hidden_dim": WIDTH, "planned_batches": 3}
    return RunIdentity.new(**{**entry, **changes})


def commit(folder, batch_id: int, rows: int = 3, taken: str = "2025-01-15T10:30:00"):
    """Commits a unit whose bytes, but not its keys, depend on when it was taken."""
    block = dataclasses.replace(
        known_block(10 * batch_id, rows, (6, 12)), timestamps=text_column([taken] * rows)
    )
    lines = [{"task_id": "t", "sample_idx": batch_id, "generated_token_ids": [1], "at": taken}]
    return Committer(LocalStorage(folder), HOOKS).commit(batch_id, block, lines)


def make_folder(folder, batches: int = 3, **changes) -> RunIdentity:
    """A folder with a run of so many units."""
    made = begin(LocalStorage(folder), identity(**changes))
    for batch_id in range(1, batches + 1):
        commit(folder, batch_id)
    return made


def objects(server: FakeGcs) -> dict:
    """The run's objects by their names in it."""
    return {name.removeprefix("run/"): found for name, found in server.objects("bucket").items()}


def assert_cloud_is_whole(server: FakeGcs, batches) -> list[CommitRecord]:
    """Exactly these batches exist, and their records vouch for objects written once each."""
    found, records = objects(server), list(CommitLog(cloud_of(server)).records())
    assert [record.batch_id for record in records] == sorted(batches)
    for record in records:
        assert found[record_name(record.batch_id)].writes == 1
        for file in record.all_files():
            stored = found[file.file]
            assert stored.writes == 1
            assert base64.b64decode(stored.crc32c).hex() == file.crc32c
            assert google_crc32c.value(stored.data) == int(file.crc32c, 16)
            assert len(stored.data) == file.bytes
            assert stored.metadata["sha256"] == file.sha256
            assert stored.metadata["keys_sha256"] == record.keys_sha256
    return records


def batch_files(folder) -> set[str]:
    """What is in a folder of its batches."""
    return {
        name
        for name in bytes_of(folder)
        if "_batch_" in name or name.startswith(("_run/commits", "_run/outputs"))
    }
