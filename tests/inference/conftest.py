"""What the tests of `inference` share: settings, the demo's tokenizer, tasks files, ARC tasks."""

import functools
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from inference.arc import ArcTask
from inference.settings import ExtractionSettings


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
