"""The commands and the code of docs/exports.md run, and load what was written."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from extraction.__main__ import main
from extraction.exports import TARGETS
from extraction.reading.dataset import ActivationDataset
from extraction.run.identity import RunIdentity, begin
from extraction.run.rows import RowBlock, text_column
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer

PAGE = (Path(__file__).parents[2] / "docs/exports.md").read_text(encoding="utf-8")
INTRODUCTION, *SECTIONS = PAGE.split("\n## ")
HOOKS, WIDTH, SAMPLES, LENGTH = ("layer_6", "layer_12"), 896, 16, 9
ROWS = SAMPLES * LENGTH


def code_of(section: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def expected(tmp_path, monkeypatch) -> np.ndarray:
    """`[SAMPLES, LENGTH, WIDTH]` of layer 6 of the run `activations` in the folder we are in."""
    monkeypatch.chdir(tmp_path)
    storage = LocalStorage("activations")
    begin(
        storage,
        RunIdentity.new(
            model_name="Qwen/Qwen2.5-0.5B",
            hook_points=HOOKS,
            hidden_dim=WIDTH,
            file_format="safetensors",
            planned_batches=1,
        ),
    )
    position = np.tile(np.arange(LENGTH, dtype=np.int32), SAMPLES)
    values = np.random.default_rng(0).standard_normal((2, ROWS, WIDTH)).astype(np.float32)
    block = RowBlock(
        task_ids=text_column([f"task_{number // LENGTH}" for number in range(ROWS)]),
        sample_idx=np.zeros(ROWS, np.int64),
        step=np.zeros(ROWS, np.int32),
        position=position,
        token_id=position + 100,
        timestamps=text_column(["2025-01-15T10:30:00+00:00"] * ROWS),
        activations=dict(zip(HOOKS, values, strict=True)),
    )
    lines = [
        {
            "task_id": f"task_{number}",
            "sample_idx": 0,
            "prompt_token_ids": list(range(100, 100 + LENGTH)),
            "generated_token_ids": [7],
        }
        for number in range(SAMPLES)
    ]
    Committer(storage, HOOKS, "safetensors").commit(1, block, lines)
    return values[0].reshape(SAMPLES, LENGTH, WIDTH)


def run_section(number: int, blocks: slice = slice(1)) -> dict:
    """Runs a section's commands and code; gives the code's variables."""
    for command in re.findall(r"```bash\npython -m extraction (.*?)\n```", SECTIONS[number]):
        assert main(shlex.split(command)) == 0
    found: dict = {}
    for code in code_of(SECTIONS[number])[blocks]:
        exec(code, found)
    return found


def test_every_target_has_a_section():
    assert [section.partition("\n")[0] for section in SECTIONS] == list(TARGETS)


def test_python(expected):
    (code,) = code_of(INTRODUCTION)
    found: dict = {}
    exec(code, found)
    assert (found["done"].samples, found["done"].rows) == (SAMPLES, ROWS)
    with np.load("one_layer.npz") as loaded:
        rows = ActivationDataset("activations", 12)[:]
        np.testing.assert_array_equal(loaded["layer_12"][:, :LENGTH].reshape(rows.shape), rows)


def test_npz(expected):
    found = run_section(0)
    np.testing.assert_array_equal(found["x"][:, :LENGTH], expected)
    np.testing.assert_array_equal(found["rows"], expected.reshape(ROWS, WIDTH))
    assert found["tokens"][3].tolist() == [*range(100, 100 + LENGTH), 7]
    found["loaded"].close()


def test_pt(expected):
    found = run_section(1)
    np.testing.assert_array_equal(found["rows"].numpy(), expected.reshape(ROWS, WIDTH))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_memmap(expected):
    found = run_section(2)
    np.testing.assert_array_equal(found["x"], expected[:, -1])
    assert found["input_ids"][0].tolist() == list(range(100, 100 + LENGTH))
    cache = np.fromfile("cache/acts.dat", np.float32).reshape(SAMPLES, 2, 512, WIDTH)
    np.testing.assert_array_equal(cache[:, 0, -LENGTH:], expected)
    assert not cache[:, :, :-LENGTH].any()


def test_huggingface(expected):
    found = run_section(3)
    assert len(found["dataset"]) == ROWS // 16
    np.testing.assert_array_equal(found["x"], expected.reshape(ROWS, WIDTH)[:16])
    assert found["tokens"].tolist() == [*range(100, 109), *range(100, 107)]


@pytest.mark.filterwarnings("ignore")  # SAELens' own
def test_sae_lens(expected):
    reason = "sae_lens is not installed; it needs an environment of its own"
    pytest.importorskip("sae_lens", reason=reason)
    batch = run_section(3, slice(2))["batch"].numpy()
    assert batch.shape == (64, WIDTH)
    rows = {row.tobytes() for row in expected.reshape(ROWS, WIDTH)}
    assert {row.tobytes() for row in batch} <= rows


def test_mi_crow(expected):
    found = run_section(4)
    assert (found["meta"]["sample_count"], found["meta"]["batch_count"]) == (SAMPLES, SAMPLES // 4)
    np.testing.assert_array_equal(found["x"], expected[:4].reshape(-1, WIDTH))


@pytest.mark.filterwarnings("ignore")  # mi_crow's own
def test_mi_crow_reads_it(expected):
    pytest.importorskip("mi_crow", reason="mi_crow is not installed; see make test-peers-mi-crow")
    found = run_section(4, slice(2))
    np.testing.assert_array_equal(found["first"].numpy(), found["x"])
    np.testing.assert_array_equal(found["batch"][-1].numpy(), expected[-1, -1])
