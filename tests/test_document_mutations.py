"""Documents that somebody else wrote, mutated at random: a verdict or a refusal, and in time.

`FUZZ_MUTATIONS=100000` in the environment makes it that many, over all documents together. What is
mutated is seeded, so a failure names the mutation that repeats it.
"""

import contextlib
import json
import os
import random
import time

import pytest
import yaml

from extraction.__main__ import main
from extraction.errors import StoreError
from inference.errors import InputError
from inference.inputs.tasks import read_tasks
from inference.settings.yaml_file import build, read_yaml
from launch.settings import RunSettings
from tests.extraction.hostile_runs import written

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "1200"))
SECONDS = 2.0

OF_A_RUN = (
    "_run/run.json", "_run/commits/000001.json", "_run/closed.json", "_run/self_check/0.json",
    "_run/outputs/000001.jsonl", "metadata.json",
)  # fmt: skip

NASTY = (
    None, True, -1, 0, 2**63, 10**400, 0.5, 1e308, "", "text", "../x", "a/b", "\0", "\ud800",
    "\x1b[2J", [], {}, [[]], {"a": 1}, [1] * 50, "1" * 5000, -(10**30),
)  # fmt: skip

SETTINGS = {
    "name": "a-run",
    "extraction": {
        "model_path": "m",
        "tasks_file": "t",
        "gcs_bucket": "gs://bucket/prefix",
        "layers_to_extract": [1, 2],
        "temperature": 0.5,
        "scan_layers": False,
    },
    "machine": {"slice": "v5litepod-64", "project": "my-project", "zone": "us-west4-a"},
    "limits": {"hours": 2.0, "restarts": 3},
}

TASKS = [
    {"task_id": "a", "prompt": "x", "label": 3},
    {"task_id": "b", "token_ids": [1, 2, 3]},
    {"task_id": "c", "messages": [{"role": "user", "content": "x"}], "entity": "x"},
]


def mutated(text: bytes, generator: random.Random) -> bytes:
    """Some bytes changed, a part left out or repeated, or a value of it replaced."""
    kind = generator.randrange(5)
    if kind >= 2:
        with contextlib.suppress(ValueError):
            return _with_another_value(json.loads(text), generator)
    at = generator.randrange(len(text) + 1)
    if kind == 0:
        return text[:at] + generator.randbytes(generator.randrange(1, 9)) + text[at + 1 :]
    end = min(len(text), at + generator.randrange(1, 200))
    return text[:at] + text[end:] if generator.random() < 0.5 else text[:end] + text[at:]


def _with_another_value(document: object, generator: random.Random) -> bytes:
    holder = [document]
    container, key = holder, 0
    while isinstance(container[key], dict | list) and container[key] and generator.random() < 0.8:
        container = container[key]
        keys = list(container) if isinstance(container, dict) else range(len(container))
        key = generator.choice(list(keys))
    if isinstance(container, dict) and generator.random() < 0.3:
        container[generator.choice([str(n) for n in NASTY[:15]])] = container.pop(key)
    else:
        container[key] = generator.choice(NASTY)
    return json.dumps(holder[0]).encode()


@contextlib.contextmanager
def in_time(what: str):
    started = time.process_time()
    yield
    assert time.process_time() - started < SECONDS, what


@pytest.mark.parametrize("name", OF_A_RUN)
def test_documents_of_a_run(name, tmp_path, tmp_path_factory, capsys):
    storage, page = written(tmp_path), tmp_path_factory.mktemp("page") / "page.html"
    if name == "_run/closed.json":
        storage.put_new(name, b'{"batches": 2}\n')
        run = json.loads(storage.get("_run/run.json")) | {"planned_batches": None}
        storage.replace("_run/run.json", json.dumps(run).encode())
    whole, folder = storage.get(name), str(storage.folder)
    outside = sorted(path.name for path in tmp_path.iterdir())
    for number in range(MUTATIONS // 8):
        generator = random.Random(f"{name} {number}")
        storage.replace(name, mutated(whole, generator))
        for command in (
            ["verify", folder, "--level", "3"],
            ["inspect", folder],
            ["report", folder, "--output", str(page)],
        ):
            with in_time(f"{name} {number}"):
                status = main(command)
            told = capsys.readouterr()
            assert status in (0, 1, 2, 3, 4), f"{name} {number}: {told.err}"
            assert "Traceback" not in told.err + told.out, f"{name} {number}"
    assert sorted(path.name for path in tmp_path.iterdir()) == outside


def test_settings_files(tmp_path):
    path = tmp_path / "run.yaml"
    forms = [json.dumps(SETTINGS).encode(), yaml.safe_dump(SETTINGS).encode()]
    for number in range(MUTATIONS // 8):
        generator = random.Random(number)
        path.write_bytes(mutated(generator.choice(forms), generator))
        with in_time(f"mutation {number}"), contextlib.suppress(InputError):
            build(RunSettings, read_yaml(path))


def test_tasks_files(tmp_path):
    path = tmp_path / "tasks.json"
    lines = b"".join(json.dumps(task).encode() + b"\n" for task in TASKS)
    forms = [json.dumps(TASKS).encode(), lines]
    for number in range(MUTATIONS // 8):
        generator = random.Random(number)
        path.write_bytes(mutated(generator.choice(forms), generator))
        with in_time(f"mutation {number}"), contextlib.suppress(InputError, StoreError):
            list(read_tasks(str(path)))
