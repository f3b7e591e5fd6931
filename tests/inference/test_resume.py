"""Runs that were killed, stopped or moved to other machines end up with the rows of one that was
not."""

import json
import signal

import numpy as np
import pytest

from extraction import verify
from extraction.writing.places import spool_folder
from inference import distributed_inference_with_activations as distributed
from inference import simple_extraction_inference as simple
from tests.fake_gcs.fixture import fake_gcs  # noqa: F401
from tests.inference.whole_runs import (
    SMALL_BATCHES,
    arguments,
    assert_same,
    read_run,
    run_processes,
)

KILLED = "tests.inference.killed_command"


def resumed(folder, checkpoint, tasks, *flags):
    return arguments(folder, checkpoint, tasks, *SMALL_BATCHES, "--resume", "True", *flags)


def commits(folder):
    return {path.name for path in (folder / "act" / "_run" / "commits").glob("0*.json")}


def test_killed_and_resumed_is_bit_equal(run_checkpoint, run_tasks, reference, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--mesh_shape", "2,1", *SMALL_BATCHES]
    command = arguments(whole, run_checkpoint, run_tasks, *flags)
    assert run_processes(1, 2, command)[0] == [0]
    command = arguments(killed, run_checkpoint, run_tasks, *flags)
    (status,), _ = run_processes(1, 2, ["SIGKILL", "4", "0", *command], module=KILLED)
    assert status == -signal.SIGKILL
    assert len(commits(killed)) == 4
    left = killed / "act" / "_run" / "commits" / "000001.json"
    before = {path.name: path.read_bytes() for path in left.parent.glob("0*.json")}

    assert run_processes(1, 2, [*command, "--resume", "True"])[0] == [0]
    assert all((left.parent / name).read_bytes() == text for name, text in before.items())
    ours, theirs = read_run(killed), read_run(whole)
    assert_same(ours, reference)
    assert ours[0] == theirs[0]
    assert ours[2].keys() == theirs[2].keys()
    for key, (step, token, row) in ours[2].items():
        assert (step, token) == theirs[2][key][:2]
        np.testing.assert_array_equal(row, theirs[2][key][2])


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 3)])
def test_resumed_on_another_number_of_processes(
    before, after, run_checkpoint, run_tasks, reference, tmp_path
):
    command = arguments(tmp_path, run_checkpoint, run_tasks, *SMALL_BATCHES)
    statuses, outputs = run_processes(
        before, 1, ["SIGKILL", "2", "0", *command], module=KILLED, killed=[0]
    )
    assert statuses[0] == -signal.SIGKILL, outputs
    assert commits(tmp_path)
    statuses, outputs = run_processes(after, 1, [*command, "--resume", "True"])
    assert statuses == [0] * after, "\n".join(outputs)
    assert_same(read_run(tmp_path), reference)


@pytest.mark.parametrize(("name", "wanted"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_commits_what_is_whole_and_says_so(
    name, wanted, run_checkpoint, run_tasks, reference, tmp_path
):
    # A sample a batch, so that most of them are not yet on their way when the signal comes.
    command = arguments(tmp_path, run_checkpoint, run_tasks, *SMALL_BATCHES, "--batch_size", "1")
    killed = [name, "2", "0", *command, "--mesh_shape", "1,1"]
    (status,), (output,) = run_processes(1, 1, killed, module=KILLED)
    assert status == wanted, output
    (told,) = [line for line in output.splitlines() if line.startswith("stopped")]
    assert "--resume" in told
    metadata = json.loads((tmp_path / "act" / "metadata.json").read_text())
    assert metadata["complete"] is False
    listed = {f"{batch['batch_id']:06d}.json" for batch in metadata["batches"]}
    assert listed
    assert listed <= commits(tmp_path)  # a unit of skipped samples has no files to list
    assert 2 <= len(commits(tmp_path)) < 10
    assert not (tmp_path / "out" / "outputs.jsonl").exists()
    assert distributed.main([*command, "--resume", "True"]) == 0
    assert_same(read_run(tmp_path), reference)


@pytest.mark.parametrize("command", [simple, distributed])
def test_a_run_is_not_written_over_nor_mixed(command, run_checkpoint, tmp_path, capsys):
    tasks = tmp_path / "tasks.json"
    tasks.write_text(json.dumps([{"task_id": "a", "token_ids": [1, 2, 3]}]))
    flags = arguments(tmp_path, run_checkpoint, tasks)
    assert command.main([*flags, "--resume", "True"]) == 0  # an empty folder begins a run
    made = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert command.main(flags) == 2
    assert "--resume" in capsys.readouterr().err
    for flag, value, named in (
        ("--max_new_tokens", "3", "max_new_tokens: 7 there, 3 now"),
        ("--layers_to_extract", "1", "hook_points"),
        ("--format", "safetensors", "file_format"),
    ):
        assert command.main([*flags, "--resume", "True", flag, value]) == 2
        assert named in capsys.readouterr().err
    tasks.write_text(json.dumps([{"task_id": "a", "token_ids": [1, 2, 4]}]))
    assert command.main([*flags, "--resume", "True"]) == 2
    assert "samples_sha256" in capsys.readouterr().err
    tasks.write_text(json.dumps([{"task_id": "a", "token_ids": [1, 2, 3]}]))
    now = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert now == made
    assert command.main([*flags, "--resume", "True"]) == 0  # nothing left to do


def test_other_samples_are_explained_by_the_flags_that_differ(demo_checkpoint, tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("one two three four five\nsix seven\n")
    flags = ["--model_path", str(demo_checkpoint), "--dataset", str(tmp_path / "corpus.txt"),
             "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"),
             "--max_new_tokens", "0", "--context_length"]  # fmt: skip
    assert simple.main([*flags, "3"]) == 0
    capsys.readouterr()
    assert simple.main([*flags, "4", "--resume", "True"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert any(line.startswith("  samples_sha256: ") for line in told)
    assert told[-1] == "  (context_length: 3 there, 4 now)"


@pytest.fixture
def cloud(fake_gcs, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where no test left anything
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    return fake_gcs


def downloaded(server, prefix, folder):
    """The objects of a run as files."""
    for name, stored in server.objects("bucket").items():
        path = folder / name.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored.data)
    return folder


@pytest.mark.parametrize("command", [simple, distributed])
def test_a_run_into_a_bucket(command, cloud, run_checkpoint, run_tasks, reference, tmp_path):
    flags = ["--gcs_bucket", "gs://bucket/run"]
    if command is distributed:
        flags += SMALL_BATCHES
    assert command.main(arguments(tmp_path, run_checkpoint, run_tasks, *flags)) == 0
    assert not list((tmp_path / "act").glob("*.pkl")), "the spool is emptied behind the uploads"
    assert not commits(tmp_path)
    copy = downloaded(cloud, "run/", tmp_path / "copy" / "act")
    assert (tmp_path / "act" / "metadata.json").read_bytes() == (
        copy / "metadata.json"
    ).read_bytes()
    assert (copy / "outputs.jsonl").read_bytes() == (
        tmp_path / "out" / "outputs.jsonl"
    ).read_bytes()
    (tmp_path / "copy" / "out").mkdir()
    (copy / "outputs.jsonl").rename(tmp_path / "copy" / "out" / "outputs.jsonl")
    assert_same(read_run(tmp_path / "copy"), reference)
    writes = cloud.writes("bucket")
    assert {n for name, n in writes.items() if "_batch_" in name or "commits/" in name} == {1}


def test_a_run_straight_into_a_bucket(cloud, run_checkpoint, run_tasks, reference, tmp_path):
    """The files wait in the user's cache, where nothing is left of them."""
    flags = arguments(tmp_path, run_checkpoint, run_tasks, *SMALL_BATCHES)
    flags[flags.index("--activations_dir") + 1] = "gs://bucket/run"
    assert distributed.main(flags) == 0
    spool = spool_folder("gs://bucket/run")
    assert {path.name for path in spool.rglob("*.*")} == {"run.json", "lock.00000", "metadata.json"}
    copy = downloaded(cloud, "run/", tmp_path / "copy" / "act")
    (tmp_path / "copy" / "out").mkdir()
    (copy / "outputs.jsonl").rename(tmp_path / "copy" / "out" / "outputs.jsonl")
    assert_same(read_run(tmp_path / "copy"), reference)
    assert distributed.main(flags) == 2  # there is a run
    assert distributed.main([*flags, "--resume", "True"]) == 0  # which is complete


def test_a_run_straight_into_s3(moto_s3, run_checkpoint, run_tasks, reference, tmp_path):
    flags = arguments(tmp_path, run_checkpoint, run_tasks, *SMALL_BATCHES)
    flags[flags.index("--activations_dir") + 1] = "s3://bucket/run"
    assert distributed.main(flags) == 0
    for name, content in moto_s3.objects().items():
        path = tmp_path / "copy" / "act" / name.removeprefix("run/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "copy" / "out").mkdir()
    (tmp_path / "copy/act/outputs.jsonl").rename(tmp_path / "copy/out/outputs.jsonl")
    assert_same(read_run(tmp_path / "copy"), reference)
    assert verify("s3://bucket/run", 3).verdict == "good"
    assert distributed.main([*flags, "--resume", "True"]) == 0


def test_a_machine_that_is_lost_with_its_spool(
    cloud, run_checkpoint, run_tasks, reference, tmp_path
):
    """A spot machine: what the bucket holds is all there is to go on from."""
    flags = [*SMALL_BATCHES, "--gcs_bucket", "gs://bucket/run", "--mesh_shape", "1,1"]
    command = arguments(tmp_path / "a", run_checkpoint, run_tasks, *flags)
    (status,), (output,) = run_processes(1, 1, ["SIGKILL", "6", "0", *command], module=KILLED)
    assert status == -signal.SIGKILL, output
    flags += ["--resume", "True"]
    command = arguments(tmp_path / "b", run_checkpoint, run_tasks, *flags)
    (status,), (output,) = run_processes(1, 1, command)
    assert status == 0, output
    downloaded(cloud, "run/", tmp_path / "c" / "act")
    (tmp_path / "c" / "out").mkdir()
    (tmp_path / "c" / "act" / "outputs.jsonl").rename(tmp_path / "c" / "out" / "outputs.jsonl")
    assert_same(read_run(tmp_path / "c"), reference)
    writes = cloud.writes("bucket")
    assert {n for name, n in writes.items() if "_batch_" in name or "commits/" in name} == {1}


def test_what_is_wrong_with_a_bucket_is_said_before_the_model_loads(
    cloud, run_checkpoint, run_tasks, tmp_path, capsys
):
    for flags, words in (
        (["--gcs_bucket", "gs://none/run"], "the bucket does not exist"),
        (["--gcs_bucket", "bucket/run"], "must look like gs://bucket/prefix"),
        (["--upload_to_cloud", "True"], "needs --gcs_bucket"),
    ):
        assert distributed.main(arguments(tmp_path, run_checkpoint, run_tasks, *flags)) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "act").exists()


@pytest.mark.parametrize(
    ("kind", "dtype"), [("safetensors", "bfloat16"), ("safetensors", "float32")]
)
def test_other_formats(kind, dtype, run_checkpoint, run_tasks, tmp_path):
    from extraction.reading.dataset import ActivationDataset

    flags = [*SMALL_BATCHES, "--max_new_tokens", "1"]
    for name, more in (("pickle", []), (kind, ["--format", kind, "--store_dtype", dtype])):
        command = arguments(tmp_path / name, run_checkpoint, run_tasks, *flags, *more)
        assert distributed.main(command) == 0
    _, _, rows = read_run(tmp_path / "pickle")
    dataset = ActivationDataset(tmp_path / kind / "act", layer=2)
    keys, values = dataset.keys(slice(None)), dataset[:]
    assert len(dataset) == len(rows) // 3
    tolerance = 2**-8 if dtype == "bfloat16" else 0
    for i, task in enumerate(keys.task_ids):
        wanted = rows[2, task, int(keys.sample_idx[i]), int(keys.position[i])][2]
        assert np.abs(values[i] - wanted).max() <= tolerance * np.abs(wanted).max()
