"""The commands as a user runs them: exit statuses, output, and what they need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import extraction
from extraction.__main__ import main
from extraction.storage.local import LocalStorage
from tests.extraction.bucket_environment import bucket  # noqa: F401
from tests.extraction.written_runs import HOOKS, content_of, write_run
from tests.fake_gcs.faults import Fault

ROOT = Path(extraction.__file__).parents[1]
COMMANDS = [
    *("verify", "inspect", "report", "repair", "merge", "convert", "export", "upload", "selftest"),
]


def run(capsys, *arguments) -> tuple[int, str, str]:
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def in_a_process(code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"examples:\n  python -m extraction {command} " in out
    assert all(len(line) <= 100 for line in out.splitlines() if not line.startswith("usage"))


def test_help_lists_the_commands(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(f"python -m extraction {command} " in out for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["verify"],
        ["verify", "x", "--level", "4"],
        ["verify", "x", "--lev", "2"],
        ["merge", "out"],
        ["convert", "a", "b"],
        ["convert", "a", "b", "--format", "csv"],
        ["upload", "a"],
    ],
)
def test_wrong_flags_are_refused_in_one_line(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", ""],
        ["verify", "RUN", "--json", ""],
        ["inspect", " "],
        ["report", "RUN", "--output", ""],
        ["repair", ""],
        ["merge", "", "RUN"],
        ["merge", "OUT", "RUN", ""],
        ["convert", "RUN", "", "--format", "npz"],
        ["export", "RUN", "OUT", "--to", "npz", "--hook_points", ""],
        ["upload", "", "gs://bucket/x"],
        ["selftest", ""],
    ],
    ids=" ".join,
)
def test_empty_arguments_are_refused(capsys, tmp_path, monkeypatch, arguments):
    """The current folder holds a run, which none of them may take for theirs."""
    write_run(tmp_path / "run")
    write_run(tmp_path / "RUN")
    monkeypatch.chdir(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(capsys, *[a.replace("RUN", str(tmp_path / "RUN")) for a in arguments])
    assert (status, out) == (2, "")
    assert "empty" in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_verify_tells_good_damaged_foreign_and_incomplete(capsys, tmp_path):
    storage = write_run(tmp_path / "run", planned=4)
    assert run(capsys, "verify", tmp_path / "run")[0] == 4
    status, out, _ = run(capsys, "verify", write_run(tmp_path / "good").address, "--level", 3)
    assert status == 0
    assert out.splitlines()[-1].startswith("verdict: good")
    storage.remove("layer_6_batch_000001.pkl")
    status, out, _ = run(capsys, "verify", tmp_path / "run")
    assert status == 1
    assert "damaged: layer_6_batch_000001.pkl (batch 1): is missing" in out
    (tmp_path / "empty").mkdir()
    assert run(capsys, "verify", tmp_path / "empty")[0] == 3
    status, _, err = run(capsys, "verify", tmp_path / "run" / "metadata.json")
    assert status == 2
    assert err.startswith("error: ")
    assert "is a file" in err


def test_verify_finds_a_flipped_byte_and_says_its_level(capsys, tmp_path):
    storage = write_run(tmp_path)
    name = "layer_6_batch_000001.pkl"
    flipped = bytearray(storage.get(name))
    flipped[-40] ^= 1
    (tmp_path / name).write_bytes(flipped)
    for flags, status, level in ([], 1, 2), (["--quick"], 0, 1), (["--level", "3"], 1, 3):
        found, out, _ = run(capsys, "verify", tmp_path, *flags)
        assert found == status
        assert f"level {level}" in out.splitlines()[-1]
    assert run(capsys, "verify", tmp_path, "--quick", "--level", "2")[0] == 2


def test_verify_reads_a_buckets_listing(capsys, tmp_path, bucket):  # noqa: F811
    write_run(tmp_path)
    assert run(capsys, "upload", tmp_path, "gs://bucket/run")[0] == 0
    status, out, _ = run(capsys, "verify", "gs://bucket/run")
    assert status == 0
    assert "level 1" in out.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "NONE"],
        ["inspect", "NONE"],
        ["report", "NONE"],
        ["repair", "NONE"],
        ["merge", "out", "NONE"],
        ["convert", "NONE", "out", "--format", "npz"],
        ["export", "NONE", "out", "--to", "npz"],
        ["upload", "NONE", "gs://bucket/run"],
    ],
)
def test_a_path_that_does_not_exist_is_refused_and_not_made(
    capsys, tmp_path, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert "NONE" in err
    assert "no such folder" in err
    assert not list(tmp_path.iterdir())


def test_verify_writes_json(capsys, tmp_path):
    storage = write_run(tmp_path / "run")
    storage.remove("layer_6_batch_000001.pkl")
    report = tmp_path / "report.json"
    _, text, _ = run(capsys, "verify", tmp_path / "run", "--json", report)
    assert "damaged" in text
    status, out, err = run(capsys, "verify", tmp_path / "run", "--json", "-")
    assert (status, err) == (1, "")
    document = json.loads(out)
    assert document == json.loads(report.read_text("utf-8"))
    assert document["verdict"] == "damaged"
    assert document["problems"] == [
        {"file": "layer_6_batch_000001.pkl", "problem": "is missing", "batch_id": 1}
    ]
    assert document["counts"]["batches"] == 3
    assert (document["level"], len(document["run_id"])) == (2, 32)


def test_many_problems_are_cut_short(capsys, tmp_path):
    storage = write_run(tmp_path)
    for number in range(30):
        storage.replace(f"layer_6_batch_{number + 100:06d}.pkl", b"")
    status, out, _ = run(capsys, "verify", tmp_path)
    assert status == 0
    assert "note: 10 more; --json FILE lists all" in out


def test_inspect_shows_a_run(capsys, tmp_path):
    write_run(tmp_path)
    status, out, _ = run(capsys, "inspect", tmp_path, "--rows", 1)
    assert status == 0
    assert out.count("sample_idx") == 1
    status, out, err = run(capsys, "inspect", tmp_path / "none")
    assert (status, out) == (2, "")
    assert (
        err
        == f"error: {tmp_path}/none: no such folder; give a folder or gs://bucket/prefix of a run\n"
    )


def test_repair_mends(capsys, tmp_path):
    storage = write_run(tmp_path)
    storage.remove("metadata.json")
    storage.replace("layer_6_batch_000009.pkl", b"orphan")
    assert run(capsys, "verify", tmp_path)[0] == 1
    status, out, _ = run(capsys, "repair", tmp_path)
    assert (status, out) == (0, "metadata.json lists 3 batches\n")
    status, out, _ = run(capsys, "repair", tmp_path, "--quarantine")
    assert status == 0
    assert "layer_6_batch_000009.pkl moved to _run/quarantine/" in out
    assert run(capsys, "verify", tmp_path, "--level", 3)[0] == 0
    storage.replace("_run/commits/000001.json", b"")
    status, out, _ = run(capsys, "repair", tmp_path)
    assert status == 1
    assert "damaged: _run/commits/000001.json" in out


def test_merge_and_convert(capsys, tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", first=100)
    out = tmp_path / "ab"
    status, text, _ = run(capsys, "merge", out, tmp_path / "a", tmp_path / "b")
    assert status == 0
    assert text == (
        f"2 runs merged: 6 batches (complete), 36 rows for each of 2 hook points, in {out}\n"
    )
    half = tmp_path / "half"
    flags = ["--format", "safetensors", "--store_dtype", "bfloat16"]
    status, text, _ = run(capsys, "convert", out, half, *flags)
    assert (status, text.split(":")[0]) == (0, "converted")
    assert run(capsys, "verify", half, "--level", 3)[0] == 0
    status, _, err = run(capsys, "convert", out, half, "--format", "npz")
    assert status == 2
    assert "other settings" in err


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../run"])
def test_a_run_is_not_written_over_itself(capsys, tmp_path, spelling):
    storage = write_run(tmp_path / "run")
    before = content_of(storage)
    out = spelling.format(tmp_path / "run")
    for arguments in (
        ["convert", tmp_path / "run", out, "--format", "raw"],
        ["merge", out, tmp_path / "run"],
    ):
        status, _, err = run(capsys, *arguments)
        assert status == 2
        assert "give another folder" in err
    assert content_of(storage) == before


def test_upload_finishes_and_repeats(capsys, tmp_path, bucket):  # noqa: F811
    write_run(tmp_path)
    address = "gs://bucket/a/run"
    bucket.faults.add(Fault(kind="403", name_contains="000003", method="POST"), first=True)
    status, out, err = run(capsys, "upload", tmp_path, address)
    assert (status, out) == (74, "")
    assert "permission" in err
    bucket.faults.clear()
    status, out, _ = run(capsys, "upload", tmp_path, address)
    assert status == 0
    assert out.startswith("1 of 3 batches uploaded, the others existed: 3 batches (complete)")
    writes = bucket.writes("bucket")
    status, out, _ = run(capsys, "upload", tmp_path, address)
    assert status == 0
    assert out.startswith("0 of 3 batches uploaded")
    changed = {n for n, count in bucket.writes("bucket").items() if count != writes[n]}
    assert changed <= {"a/run/metadata.json"}
    status, out, _ = run(capsys, "verify", address, "--level", 3)
    assert status == 0
    assert out.splitlines()[-1].startswith("verdict: good")


def test_upload_refuses_what_makes_no_sense(capsys, tmp_path, bucket):  # noqa: F811
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    assert run(capsys, "upload", tmp_path / "a", "gs://bucket/run")[0] == 0
    for arguments, words in (
        ([tmp_path / "b", "gs://bucket/run"], "another run"),
        ([tmp_path / "none", "gs://bucket/x"], "no such folder"),
        ([tmp_path / "a", tmp_path / "c"], "must look like gs://bucket/prefix"),
        ([tmp_path / "a", "gs://none/x"], "bucket does not exist"),
    ):
        status, out, err = run(capsys, "upload", *arguments)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert words in err


def test_selftest(capsys, tmp_path, bucket):  # noqa: F811
    status, out, _ = run(capsys, "selftest", "gs://bucket/a")
    assert status == 0
    assert "passed  a second write under the same name is refused" in out
    assert bucket.objects("bucket") == {}
    bucket.faults.add(Fault(kind="403", method="DELETE"))
    assert run(capsys, "selftest", "gs://bucket/a")[0] == 1


def test_an_unreachable_bucket_is_74(capsys, bucket):  # noqa: F811
    bucket.faults.add(Fault(kind="403"))
    for arguments in (["verify", "gs://bucket/run"], ["selftest", "gs://bucket/run"]):
        status, _, err = run(capsys, *arguments)
        assert status == 74
        assert "no permission" in err
        assert err.count("\n") == 1


def test_a_disk_that_fails_is_74(capsys, tmp_path, monkeypatch):
    write_run(tmp_path)

    def get(self, name):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalStorage, "open_local", get)
    status, _, err = run(capsys, "inspect", tmp_path)
    assert (status, err) == (74, "error: [Errno 5] Input/output error\n")


def test_an_unknown_scheme_is_refused(capsys):
    status, _, err = run(capsys, "verify", "abfss://bucket/run")
    assert status == 2
    assert "abfss:// is not supported" in err


def test_jax_and_the_cloud_are_not_needed(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", first=100)
    code = f"""
import json, sys
allowed = {{"numpy", "google_crc32c"}}
for name in ("jax", "jaxlib", "flax", "torch", "transformers", "ml_dtypes", "google.cloud",
             "safetensors", "tqdm", "requests", "qwen_hooks.model", "inference"):
    sys.modules[name] = None
from extraction.__main__ import main
folder = {str(tmp_path)!r}
statuses = [main(arguments) for arguments in (
    ["verify", folder + "/a", "--level", "3"],
    ["inspect", folder + "/a"],
    ["report", folder + "/a", "--output", folder + "/a.html"],
    ["repair", folder + "/a"],
    ["merge", folder + "/ab", folder + "/a", folder + "/b"],
    ["convert", folder + "/ab", folder + "/c", "--format", "safetensors",
     "--store_dtype", "bfloat16"],
    ["verify", folder + "/c", "--level", "3"],
    ["selftest", folder],
    ["verify", "gs://bucket/run"],
    ["selftest", "gs://bucket/run"],
    ["upload", folder + "/a", "gs://bucket/run"],
)]
print(json.dumps(statuses))
"""
    done = in_a_process(code)
    assert done.stdout.splitlines()[-1:] == [json.dumps([0] * 8 + [2] * 3)], done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 3
    assert all("pip install google-cloud-storage" in line for line in errors)


def test_no_command_imports_jax(tmp_path, fake_gcs):
    write_run(tmp_path / "a")
    code = f"""
import sys
from extraction.__main__ import main
folder = {str(tmp_path)!r}
assert main(["upload", folder + "/a", "gs://bucket/run"]) == 0
assert main(["verify", "gs://bucket/run", "--level", "3"]) == 0
print(sorted({{"jax", "jaxlib", "flax", "torch", "transformers"}} & set(sys.modules)))
"""
    done = in_a_process(code, **fake_gcs.environment)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_it_runs_as_a_module(tmp_path):
    write_run(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "extraction", "verify", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "verdict: good" in done.stdout


def test_a_pipe_that_is_closed_early_is_no_error(tmp_path):
    write_run(tmp_path)
    done = subprocess.run(
        f"{sys.executable} -m extraction inspect {tmp_path} | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_ctrl_c_ends_a_command_in_one_line(capsys, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("extraction.__main__.verify", interrupted)
    status, _, err = run(capsys, "verify", tmp_path)
    assert (status, err) == (130, "stopped; the command can be repeated\n")


def test_hook_points_are_in_the_order_of_the_run(capsys, tmp_path):
    write_run(tmp_path)
    out = run(capsys, "inspect", tmp_path)[1]
    assert ", ".join(HOOKS) in out
