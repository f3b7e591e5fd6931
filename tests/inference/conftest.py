"""What the tests of `inference` share: settings, the demo's tokenizer, tasks files, ARC tasks."""

import functools
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from inference import simple_extraction_inference as simple
from inference.inputs.arc import ArcTask
from inference.settings.commands import ExtractionSettings
from tests.inference.whole_runs import LENGTHS, NEW_TOKENS, STOP, arguments, read_run
from tests.oracle import make_checkpoint, random_tokens


@pytest.fixture(scope="session")
def settings():
    """Makes settings; only what a test is about needs to be told."""
    return functools.partial(ExtractionSettings, model_path="model", tasks_file="tasks.json")


@pytest.fixture(scope="session")
def tokenizer(demo_checkpoint):
    return AutoTokenizer.from_pretrained(demo_checkpoint)


@pytest.fixture
def write_tasks(tmp_path):
    """Writes a tasks file, of text or bytes as they are or of anything else as JSON."""

    def write(content: object, name: str = "tasks.json") -> str:
        path: Path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture(scope="session")
def arc_task():
    """A task with two test inputs, no grid of it symmetric; the second solution is not known."""
    return ArcTask(
        task_id="t",
        train=((((1, 2, 3), (4, 5, 6)), ((7, 8, 9), (1, 1, 2))), (((1, 2),), ((3, 4),))),
        test_inputs=(((1, 0, 2), (3, 3, 4)), ((5, 6, 7),)),
        test_outputs=(((8, 9, 1), (2, 2, 3)), None),
    )


@pytest.fixture(scope="session")
def run_checkpoint(tmp_path_factory):
    """Eight query heads and two KV heads, so that model axes of 2, 4 and 8 divide."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, vocab_size=208, num_attention_heads=8, num_key_value_heads=2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": STOP}))
    return folder


@pytest.fixture(scope="session")
def run_tasks(tmp_path_factory):
    tasks = [
        {"task_id": f"t{i}", "token_ids": random_tokens(n, 208, seed=i)}
        for i, n in enumerate(LENGTHS)
    ]
    path = tmp_path_factory.mktemp("tasks") / "tasks.json"
    path.write_text(json.dumps(tasks))
    return path


@pytest.fixture(scope="session")
def reference(run_checkpoint, run_tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("simple")
    assert simple.main(arguments(folder, run_checkpoint, run_tasks)) == 0
    lines, metadata, rows = read_run(folder)
    counts = {len(line["generated_token_ids"]) for line in lines}
    assert {line["finish_reason"] for line in lines} == {"stop", "length", "skipped"}
    assert {2, 5, NEW_TOKENS} < counts, "early and late stops are both needed"
    return lines, metadata, rows
