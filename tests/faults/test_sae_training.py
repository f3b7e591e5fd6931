"""SIGKILL at random moments of `python -m sae train`: it goes on to the same bytes.

A checkpoint is written after every step, so that many kills come while one is written; into a
folder, and into a bucket that fails at random. A share here, 50 kills of each with FAULTS=all.
"""

import json
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extraction.storage import Storage, open_storage
from tests.fake_gcs.faults import Fault
from tests.fake_gcs.server import FakeGcs
from tests.faults.conftest import EVERYTHING, ROOT, in_namespace
from tests.sae.small_run import HOOK, write_run

KILLS = 50 if EVERYTHING else 4
STEPS, BATCH = 120, 50
FILES = ("sae_weights.safetensors", "sparsity.safetensors", "cfg.json")

FAULTS = (
    Fault(kind="503", probability=0.05, seed=1),
    Fault(kind="reset_after_commit", method="POST", probability=0.05, seed=2),
    Fault(kind="reset_before_commit", method="POST", probability=0.05, seed=3),
    Fault(kind="corrupt_upload", probability=0.03, seed=4),
    Fault(kind="truncate", method="GET", after_bytes=200, probability=0.03, seed=5),
)


def command(run: Path, out: str, seed: int, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "sae", "train", "--activations_dir", str(run)),
        *("--output_dir", out, "--hook_points", HOOK, "--d_sae", "3x", "--k", "4"),
        *("--batch_size", str(BATCH), "--train_rows", str(STEPS * BATCH)),
        *("--random_seed", str(seed), "--max_norm_multiple", "1.5", "--log_steps", "7", *more),
    ]


def result(storage: Storage, of: Storage) -> dict[str, object]:
    """Return the bytes of the files, and the metrics without speeds."""
    lines = [json.loads(line) for line in storage.get("metrics.jsonl").splitlines()]
    for line in lines:
        del line["rows_per_second"]
    return {name: of.get(name) for name in FILES} | {"metrics": lines}


def opened(address: str) -> dict[str, object]:
    return result(
        open_storage(address, writable=False), open_storage(f"{address}/{HOOK}", writable=False)
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("scheme", ["folder", "gs"])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    scheme, run_folder, tmp_path, monkeypatch, record_property
):
    random_ = random.Random(7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kills = in_checkpoint = trainings = faults = 0
    with FakeGcs() as server:
        server.create_bucket("bucket")
        for name, value in server.environment.items() if scheme == "gs" else ():
            monkeypatch.setenv(name, value)
        while kills < KILLS:
            trainings += 1
            whole = tmp_path / f"whole_{trainings}"
            subprocess.run(command(run_folder, str(whole), trainings), cwd=ROOT, check=True)
            out = f"gs://bucket/out_{trainings}" if scheme == "gs" else str(tmp_path / "out")
            if scheme == "folder":
                out += f"_{trainings}"
            for fault in FAULTS if scheme == "gs" else ():
                server.faults.add(fault)
            words = command(run_folder, out, trainings, "--checkpoint_seconds", "0")
            words += ["--resume", "True"]
            while True:
                child = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
                wait = random_.uniform(1.0, 7.0) if kills < KILLS else 300
                try:
                    assert child.wait(timeout=wait) == 0, child.communicate()[1][-2000:]
                    child.communicate()
                    break
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.communicate()
                    kills += 1
                    in_checkpoint += _spooled(tmp_path, out)
            faults += sum(server.faults.hits(fault) for fault in FAULTS if scheme == "gs")
            server.faults.clear()
            assert opened(out) == opened(str(whole))
            assert not _spooled(tmp_path, out)
    assert faults or scheme == "folder"
    if EVERYTHING:
        assert in_checkpoint > 5
    record_property(
        "faults",
        [
            {
                "fault": f"sae train, {scheme}: SIGKILL",
                "tried": kills,
                "rows_expected": trainings * STEPS * BATCH,
                "rows_lost": 0,
                "rows_twice": 0,
                "verify_bad": 0,
                "failures": [],
                "notes": {"while a checkpoint was written": in_checkpoint, "bucket faults": faults},
            }
        ],
    )


def _spooled(tmp_path: Path, out: str) -> bool:
    """Return whether a process left a checkpoint that it was writing."""
    places = [tmp_path / "cache"] if out.startswith("gs") else [Path(out) / "_run/spool"]
    return any(path.is_file() for place in places if place.exists() for path in place.rglob("*"))


def test_sigterm_leaves_a_checkpoint(run_folder, tmp_path):
    out = tmp_path / "out"
    words = command(run_folder, str(out), 1, "--checkpoint_seconds", "1000")
    words[words.index("--train_rows") + 1] = "1e9"
    child = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "training.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    child.terminate()
    told = child.communicate(timeout=60)[1]
    assert child.returncode == 143
    assert "the same command with --resume True goes on" in told.splitlines()[-1]
    assert [path.suffix for path in sorted((out / "checkpoints").iterdir())] == [".json", ".tar"]
    assert not os.path.exists(out / HOOK)


QUICKLY = """
import sys
from extraction.writing import disk_retry
from tests.faults.failing_operations import QuickClock
disk_retry.time = QuickClock()
from sae.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A command that need not wait for the clock while a disk is full."""


def quickly(words: list[str]) -> str:
    return shlex.join([sys.executable, "-c", QUICKLY, *words[3:]])


def told(done: subprocess.CompletedProcess) -> list[str]:
    """Return what a command said, without its progress."""
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if not line.startswith("rows trained on")]


@pytest.mark.skipif(not in_namespace(), reason="mounting is not permitted here")
@pytest.mark.parametrize("room", ["12k", "20k", "200k", "300k", "600k", "64m,nr_inodes=12"])
def test_on_a_full_disk_it_ends_with_one_message_and_goes_on(room, run_folder, tmp_path):
    whole, disk = tmp_path / "whole", tmp_path / "disk"
    subprocess.run(command(run_folder, str(whole), 1), cwd=ROOT, check=True)
    disk.mkdir()
    words = quickly(command(run_folder, str(disk / "out"), 1, "--checkpoint_seconds", "0"))
    script = f"""
        mount -t tmpfs -o size={room} tmpfs {disk} || exit 99
        {words} && exit 98
        test $? = 74 || exit 97
        mount -t tmpfs -o remount,size=64m,nr_inodes=9999 tmpfs {disk} || exit 96
        {words} --resume True || exit 95
        cp -r {disk}/out {tmp_path}/out
    """
    done = subprocess.run(
        [*in_namespace(), "sh", "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stderr
    (error,) = [line for line in told(done) if line.startswith("error:")]
    assert "No space left on device" in error
    assert "--resume True" in error
    assert all("trying again" in line or "going on" in line for line in told(done) if line != error)
    assert opened(str(tmp_path / "out")) == opened(str(whole))


@pytest.mark.skipif(not in_namespace(), reason="mounting is not permitted here")
def test_checkpoints_for_a_bucket_wait_where_there_is_room(run_folder, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    with FakeGcs() as server:
        server.create_bucket("bucket")
        environment = os.environ | server.environment | {"XDG_CACHE_HOME": str(cache)}
        words = quickly(command(run_folder, "gs://bucket/out", 1))
        done = subprocess.run(
            [*in_namespace(), "sh", "-c", f"mount -t tmpfs -o size=16k tmpfs {cache} && {words}"],
            env=environment,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert (done.returncode, told(done)) == (0, [])
