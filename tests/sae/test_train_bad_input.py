"""Runs, records, checkpoints and places that a training cannot use: one message, nothing lost."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from extraction import ActivationWriter
from extraction.checksums import crc32c
from extraction.run.rows import RowBlock
from extraction.storage import open_storage
from extraction.storage.gcs import GcsStorage
from extraction.writing import disk_retry
from sae import load
from sae.__main__ import main
from sae.training import spool
from sae.training.run import Training
from tests.fake_gcs.faults import Fault
from tests.fake_gcs.server import FakeGcs
from tests.faults.failing_operations import QuickClock
from tests.sae.small_run import HOOK, WIDTHS, features, write_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def gcs_server():
    with FakeGcs() as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture
def bucket(gcs_server, monkeypatch, tmp_path) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in gcs_server.environment.items():
        monkeypatch.setenv(name, value)
    return "gs://bucket/out"


def flags(run: Path, out: Path | str, *more: str) -> list[str]:
    return [
        *("train", "--activations_dir", str(run), "--output_dir", str(out), "--hook_points", HOOK),
        *("--d_sae", "3x", "--k", "4", "--batch_size", "50", *more),
    ]


def weights(folder: Path | str) -> bytes:
    return open_storage(f"{folder}/{HOOK}", writable=False).get("sae_weights.safetensors")


def error_of(capsys) -> str:
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    return line


def test_a_run_is_no_place_for_a_training(run_folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    before = sorted(run.rglob("*"))
    assert main(flags(run_folder, run)) == 2
    assert f"{run} holds a run; choose another --output_dir" in error_of(capsys)
    assert sorted(run.rglob("*")) == before


def test_a_damaged_record_of_a_training_is_named(run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(flags(run_folder, out)) == 0
    good = json.loads((out / "training.json").read_text())
    bad_scales = json.loads(json.dumps(good))
    bad_scales["autoencoders"][HOOK]["scales"] = ["1", None]
    damaged = [[], 7, None, {}, {"data": 3, "autoencoders": {}}, good | {"autoencoders": {"a": 3}}]
    for content in [*damaged, bad_scales]:
        (out / "training.json").write_text(json.dumps(content))
        assert main(flags(run_folder, out, "--resume", "True")) == 2
        assert "training.json is damaged" in error_of(capsys)
    (out / "training.json").write_text(json.dumps(good))
    assert main(flags(run_folder, out, "--resume", "True")) == 0


def rewritten(path: Path, change) -> None:
    """Change `progress.json` in a checkpoint, whose record then fits it."""
    folder = path.with_suffix(".folder")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    progress = json.loads((folder / "progress.json").read_text())
    change(progress)
    (folder / "progress.json").write_text(json.dumps(progress))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("state", "progress.json"):
            archive.add(folder / name, name)
    shutil.rmtree(folder)
    recorded(path, stream.getvalue())


def recorded(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    record = {"bytes": len(data), "crc32c": crc32c(data), "step": 12}
    path.with_suffix(".json").write_text(json.dumps(record))


CHANGES = {
    "counters": lambda progress: progress.update(counters=[10**18] * 3),
    "counters of another batch size": lambda progress: progress.update(counters=[12, 1200, 600]),
    "no positions": lambda progress: progress.update(positions=[]),
    "position": lambda progress: progress.update(positions=[7]),
    "rows left out": lambda progress: progress["positions"][0].update(left_out=3),
    "count left out": lambda progress: progress["positions"][0].update(left_out={"a": "b"}),
    "stream": lambda progress: progress["positions"][0].update(stream=3),
    "metrics": lambda progress: progress.update(metrics=[7]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_progress_of_another_training_is_refused(change, run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(flags(run_folder, out)) == 0
    (path,) = (out / "checkpoints").glob("*.tar")
    rewritten(path, change)
    assert main(flags(run_folder, out, "--resume", "True")) == 2
    assert "is no checkpoint of this training" in error_of(capsys)


def test_an_archive_that_claims_more_than_it_has_is_not_unpacked(run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(flags(run_folder, out)) == 0
    (path,) = (out / "checkpoints").glob("*.tar")
    entry = tarfile.TarInfo("progress.json")
    entry.size, entry.pax_headers = 4096, {}
    holes = {"GNU.sparse.major": "0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,1"}
    entry.pax_headers = holes | {"GNU.sparse.numblocks": "1"}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(entry, io.BytesIO(bytes(4096)))
    recorded(path, stream.getvalue())
    assert main(flags(run_folder, out, "--resume", "True")) == 2
    assert "claim to be larger" in error_of(capsys)


def block(rows: int, seed: int, scale: float = 1.0, bad: int = 0) -> RowBlock:
    values = {
        hook: features(rows, seed + number, width) * np.float32(scale)
        for number, (hook, width) in enumerate(WIDTHS.items())
    }
    values[HOOK][:bad, 0] = np.nan
    return RowBlock.of(values, ["t"] * rows, position=np.arange(rows), token_id=np.arange(rows))


@pytest.mark.parametrize("more", [[], ["--max_norm_multiple", "1.5"]])
def test_a_run_that_grew_between_stop_and_resume(more, tmp_path, monkeypatch, capsys):
    """The training goes on with the rows, the order and the scale that it began with."""
    run, out = tmp_path / "run", tmp_path / "out"
    with ActivationWriter(
        run, WIDTHS, store_format="safetensors", rows_per_file=10, model_name="m"
    ) as writer:
        writer.add(block(600, 0))
        assert main(flags(run, tmp_path / "whole", *more)) == 0
        real = Training.advance

        def advance(self):
            real(self)
            if self.step == 5:
                raise KeyboardInterrupt

        monkeypatch.setattr(Training, "advance", advance)
        assert main(flags(run, out, *more, "--checkpoint_seconds", "0")) == 130
        monkeypatch.setattr(Training, "advance", real)
        writer.add(block(600, 50, scale=9, bad=1))
    assert main(flags(run, out, *more, "--resume", "True")) == 0
    assert weights(out) == weights(tmp_path / "whole")
    assert (
        load(out / HOOK).metadata["rows_trained_on"]
        == load(tmp_path / "whole" / HOOK).metadata["rows_trained_on"]
    )


def test_of_two_trainings_in_a_bucket_the_later_goes_on(
    bucket, run_folder, tmp_path, monkeypatch, capsys
):
    assert main(flags(run_folder, tmp_path / "whole")) == 0
    real, later = Training.advance, []

    def advance(self):
        real(self)
        if self.step == 5 and not later:
            later.append(None)  # the one that begins in between is not disturbed
            later[0] = main(flags(run_folder, bucket, "--resume", "True"))

    monkeypatch.setattr(Training, "advance", advance)
    assert main(flags(run_folder, bucket)) == 2
    assert later == [0]
    assert "another process began to go on with the training in gs://" in error_of(capsys)
    assert weights(bucket) == weights(tmp_path / "whole")
    assert main(flags(run_folder, bucket)) == 2
    assert "holds a training already" in error_of(capsys)
    assert main(flags(run_folder, bucket, "--resume", "True")) == 0


class Disk(NamedTuple):
    """What `os.statvfs` tells of a disk with much room."""

    f_bavail: int = 1 << 40
    f_frsize: int = 1
    f_files: int = 1 << 30
    f_favail: int = 1 << 20


@pytest.mark.parametrize("room", [{"f_bavail": 1000}, {"f_favail": 3}], ids=["bytes", "files"])
def test_no_room_for_checkpoints_on_their_way_to_a_bucket(
    room, bucket, run_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(disk_retry, "time", QuickClock())
    monkeypatch.setattr(spool.os, "statvfs", lambda _: Disk(**room))
    assert main(flags(run_folder, bucket)) == 74
    error = error_of(capsys)
    assert f"No space left on device in {tmp_path / 'cache'}" in error
    assert "--resume True" in error


def test_a_folder_for_temporary_files_serves_where_the_cache_cannot(
    bucket, run_folder, tmp_path, monkeypatch
):
    (tmp_path / "cache").write_text("a file")
    assert main(flags(run_folder, bucket)) == 0
    assert weights(bucket)


def test_a_bucket_that_goes_away(
    bucket, run_folder, tmp_path, monkeypatch, capsys, caplog, gcs_server
):
    caplog.set_level("INFO")
    assert main(flags(run_folder, tmp_path / "whole")) == 0
    monkeypatch.setitem(GcsStorage.__init__.__kwdefaults__, "deadline", 1.0)
    real = Training.advance

    def advance(self):
        real(self)
        if self.step == 5:
            self.checkpoints.wait()
            gcs_server.faults.add(Fault(kind="503"))

    monkeypatch.setattr(Training, "advance", advance)
    assert main(flags(run_folder, bucket, "--checkpoint_seconds", "0")) == 74
    assert "gs://bucket/out could not be used" in error_of(capsys)
    assert main(flags(run_folder, bucket, "--resume", "True")) == 74
    gcs_server.faults.clear()
    monkeypatch.setattr(Training, "advance", real)
    assert main(flags(run_folder, bucket, "--resume", "True")) == 0
    assert "going on after 200 rows" in caplog.text
    assert weights(bucket) == weights(tmp_path / "whole")
