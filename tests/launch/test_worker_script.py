"""The start-up script, run by bash with stand-ins for the machine's programs."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from launch.package import Archive, pack
from launch.settings import extraction_flags, read_settings
from launch.worker_script import MODULE, worker_script
from tests.launch.conftest import executable

HOSTILE = {
    "spaces": "a b  c",
    "quotes": 'it\'s "so"',
    "substitution": "$(touch canary) `touch canary` ${IFS}",
    "operators": "a; touch canary & touch canary | touch canary > canary",
    "backslashes": "a\\' touch canary \\",
    "dashes": "--version",
    "unicode": "ü 漢字 ‮ 🙂",
    "history": "!! ~ {a,b}",
    "percent": "%s%n%d",
}


class Worker:
    """A TPU worker: a folder, and programs that record what they are asked."""

    def __init__(self, cloud, folder, number=0):
        self.cloud, self.folder, self.number = cloud, folder / "lib", number
        self.bin = cloud.bin
        executable(self.bin / "systemctl", "#!/bin/sh\nexit 3\n")
        executable(
            self.bin / "systemd-run",
            '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
        )
        executable(
            self.bin / "curl",
            '#!/bin/bash\nwhile [[ $1 != --output ]]; do shift; done\n'
            f'printf %s {number} >"$2"\n',
        )  # fmt: skip
        self.installs("exit 0")
        self.works("exit 0")

    def installs(self, text):
        """What `uv pip install` does."""
        stub = f"""#!/bin/bash
            for word in "$@"; do
              [[ $word != --target=* ]] || tools="${{word#--target=}}"
            done
            mkdir -p "$tools/bin"
            cp "{self.bin}/uv" "$tools/bin/uv"
        """
        executable(self.bin / "python3", stub)
        uv = f"""#!/bin/bash
            if [[ $1 == venv ]]; then
              mkdir -p venv/bin
              cp "{self.bin}/job-python" venv/bin/python
            else
              {text}
            fi
        """
        executable(self.bin / "uv", uv)

    def works(self, text):
        """What the command does; its arguments and token are kept."""
        record = self.folder.parent / "job.jsonl"
        stub = f"""#!/bin/bash
            "{sys.executable}" -S -E -c 'import json, os, sys
print(json.dumps([sys.argv[1:], os.environ.get("HF_TOKEN"), os.getcwd()]))' "$@" >>"{record}"
            {text}
        """
        executable(self.bin / "job-python", stub)

    def script(self, settings, archive, **options):
        options = {"beat": 1, "linger": 0, "pause": 0} | options
        path = self.folder.parent / "startup.sh"
        text = worker_script(settings, archive, "A1", folder=str(self.folder), **options)
        path.write_text(text)
        return path

    def jobs(self):
        path = self.folder.parent / "job.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def report(self):
        """Phase and what follows, of the last report."""
        text = (self.folder / "arc-05b" / "status").read_text()
        return text.split()[3:]


def run(script, cwd):
    return subprocess.run(
        ["bash", str(script)], cwd=cwd, timeout=120, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def archive():
    data = pack({"requirements.txt": b"", "constraints.txt": b"", "launch/x.py": b""})
    return Archive(data=data, sha256=hashlib.sha256(data).hexdigest(), python="3.11")


@pytest.fixture
def worker(cloud, tmp_path, settings, archive):
    """With the archive of the settings in the bucket."""
    worker = Worker(cloud, tmp_path)
    put(cloud, settings, archive)
    return worker


def put(cloud, settings, archive):
    file = cloud.folder / "source.tar.gz"
    file.write_bytes(archive.data)
    address = f"{settings.extraction.gcs_bucket.rstrip('/')}/_launch/{archive.name}"
    subprocess.run([cloud.bin / "gcloud", "storage", "cp", file, address], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed here")
@pytest.mark.parametrize("value", HOSTILE)
def test_shellcheck_finds_nothing(value, write_settings, archive, tmp_path):
    extraction = {"revision": HOSTILE[value]}
    for secret in (None, "projects/p/secrets/s"):
        settings = read_settings(
            write_settings(extraction=extraction, hugging_face_token_secret=secret)
        )
        script = tmp_path / "startup.sh"
        script.write_text(worker_script(settings, archive, "A1"))
        found = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout


def test_installs_runs_and_reports(worker, settings, archive, tmp_path):
    done = run(worker.script(settings, archive), tmp_path)
    log = (worker.folder / "arc-05b" / "log").read_text()
    assert done.returncode == 0, log
    ((arguments, token, where),) = worker.jobs()
    assert arguments == ["-m", MODULE, *extraction_flags(settings.extraction)]
    assert "--resume=True" in arguments
    assert token is None
    assert where == str(worker.folder / "arc-05b" / "job")
    assert worker.report() == ["exited", "0", "running"]
    assert (worker.folder / "arc-05b" / "source" / "launch" / "x.py").exists()
    assert (worker.folder / "arc-05b").stat().st_mode & 0o077 == 0
    deleted = [call for call in worker.cloud.calls() if "delete" in call]
    assert len(deleted) == 1, "worker 0 takes the slice away"
    assert "--async" in deleted[0]
    names = {path.name.rpartition("%2F")[2] for path in (worker.cloud.folder / "objects").iterdir()}
    assert names == {"worker-0.status", "worker-0.log", archive.name}


def test_other_workers_leave_the_slice_alone(cloud, tmp_path, settings, archive):
    put(cloud, settings, archive)
    worker = Worker(cloud, tmp_path, number=3)
    assert run(worker.script(settings, archive), tmp_path).returncode == 0
    assert not [call for call in cloud.calls() if "delete" in call]
    assert worker.report() == ["exited", "0", "running"]


def test_a_secret_is_in_no_file_and_no_argument(worker, write_settings, archive, tmp_path):
    settings = read_settings(write_settings(hugging_face_token_secret="projects/p/secrets/hf"))
    script = worker.script(settings, archive)
    assert run(script, tmp_path).returncode == 0
    ((arguments, token, _),) = worker.jobs()
    assert token == "the-secret-value"
    assert not any(token in word for word in arguments)
    (tmp_path / "job.jsonl").unlink()
    for path in tmp_path.rglob("*"):
        assert (
            not path.is_file()
            or path.name == "fake_gcloud.py"
            or (token.encode() not in path.read_bytes())
        ), path
    assert not any(token in word for call in worker.cloud.calls() for word in call)


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_reach_the_command_and_nothing_else(
    value, cloud, write_settings, archive, tmp_path
):
    text = HOSTILE[value]
    extraction = {
        "model_path": f"gs://b/{text}", "tasks_file": f"gs://b/{text}", "revision": text,
        "gcs_bucket": f"gs://my-bucket/{text}",
    }  # fmt: skip
    settings = read_settings(write_settings(extraction=extraction))
    put(cloud, settings, archive)
    worker = Worker(cloud, tmp_path)
    done = run(worker.script(settings, archive), tmp_path)
    log = (worker.folder / "arc-05b" / "log").read_text()
    assert done.returncode == 0, log
    ((arguments, _, _),) = worker.jobs()
    assert arguments == ["-m", MODULE, *extraction_flags(settings.extraction)]
    assert f"--revision={text}" in arguments
    assert not list(tmp_path.rglob("canary*"))


def test_a_wrong_archive_is_not_run(worker, settings, archive, tmp_path):
    other = Archive(data=archive.data, sha256="0" * 64, python="3.11")
    put(worker.cloud, settings, other)
    assert run(worker.script(settings, other), tmp_path).returncode == 1
    assert worker.jobs() == []
    assert worker.report() == ["exited", "1", "installing"]


def test_an_install_that_fails_is_tried_again_and_then_told(worker, settings, archive, tmp_path):
    count = tmp_path / "count"
    worker.installs(f'echo x >>"{count}"; exit 1')
    assert run(worker.script(settings, archive), tmp_path).returncode == 1
    assert count.read_text().count("x") == 5
    assert worker.report() == ["exited", "1", "installing"]
    worker.installs(f'echo x >>"{count}"; [[ $(wc -l <"{count}") -ge 7 ]]')
    assert run(worker.script(settings, archive), tmp_path).returncode == 0


@pytest.mark.parametrize(("code", "runs"), [(0, 1), (2, 1), (124, 1), (1, 2), (74, 2), (134, 2)])
def test_which_ends_are_tried_again(code, runs, worker, write_settings, archive, tmp_path):
    settings = read_settings(write_settings(limits={"restarts": 1}))
    worker.works(f"exit {code}")
    assert run(worker.script(settings, archive), tmp_path).returncode == code
    assert len(worker.jobs()) == runs
    assert worker.report() == ["exited", str(code), "running"]


def test_hours_are_limited(worker, write_settings, archive, tmp_path):
    settings = read_settings(write_settings(limits={"hours": 1 / 3600}))
    worker.works("exec sleep 60")
    assert run(worker.script(settings, archive), tmp_path).returncode == 124


def test_sigterm_lets_the_command_stop_in_order(worker, settings, archive, tmp_path):
    flag = tmp_path / "stopped"
    worker.works(
        f"""trap 'echo x >>"{flag}"; exit 143' TERM
            touch "{tmp_path / "works"}"
            while :; do sleep 0.05; done"""
    )
    process = subprocess.Popen(["bash", worker.script(settings, archive)], cwd=tmp_path)
    end = time.monotonic() + 60
    while not (tmp_path / "works").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert flag.read_text() == "x\n", "told once: a second SIGTERM would end it at once"
    assert worker.report() == ["stopped"]
    assert len(worker.jobs()) == 1
    assert not [call for call in worker.cloud.calls() if "delete" in call]


def test_a_second_start_does_nothing_while_the_unit_runs(worker, settings, archive, tmp_path):
    executable(worker.bin / "systemctl", "#!/bin/sh\nexit 0\n")
    assert run(worker.script(settings, archive), tmp_path).returncode == 0
    assert worker.jobs() == []
