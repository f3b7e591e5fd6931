"""What a command costs before it does anything: CPU seconds, which other work on the machine leaves
nearly as they are. The least of three counts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = (
    ["inference"], ["inference.distributed_inference_with_activations"],
    ["inference.simple_extraction_inference"], ["extraction"], ["extraction", "verify"],
    ["launch"], ["launch", "plan"], ["sae"], ["sae", "convert"], ["sae", "evaluate"],
    ["sae", "score"], ["sae", "train"], ["sae", "vector"],
)  # fmt: skip

HEAVY = {"jax", "flax", "transformers", "torch"}


def cpu_seconds(*words: str, status: int) -> float:
    """Of a command with a given exit status, the least of three runs."""
    found = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, check=False
        )
        after = os.times()
        assert done.returncode == status, done.stderr
        found.append(
            after.children_user + after.children_system
            - before.children_user - before.children_system
        )  # fmt: skip
    return min(found)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_takes_less_than_a_second(command):
    assert cpu_seconds(*command, "--help", status=0) < 1.0


@pytest.mark.parametrize(
    "flags",
    [
        ["--tasks_file", "/nowhere.json", "--model_path", "m"],
        ["--tasks_file", "t", "--model_path", "m", "--positions", "lastt"],
        ["--tasks_file", "t", "--model_path", "m", "--format", "npz"],
    ],
    ids=lambda flags: flags[-1],
)
def test_a_refusal_that_needs_no_model_takes_less_than_a_second_and_a_half(flags):
    module = "inference.distributed_inference_with_activations"
    assert cpu_seconds(module, *flags, status=2) < 1.5


def test_a_refusal_of_the_model_takes_less_than_five_seconds(tmp_path):
    (tmp_path / "tasks.json").write_text('[{"task_id": "a", "token_ids": [1]}]')
    module = "inference.distributed_inference_with_activations"
    flags = ["--tasks_file", str(tmp_path / "tasks.json"), "--model_path", "/nowhere"]
    assert cpu_seconds(module, *flags, status=2) < 5.0


@pytest.mark.parametrize(
    "module", ["extraction", "inference", "launch.__main__", "qwen_hooks", "sae.__main__"]
)
def test_importing_a_package_loads_no_framework(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not HEAVY & {name.partition(".")[0] for name in json.loads(told)}
