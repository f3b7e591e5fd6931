"""Work that can take long tells how far it is, in a log too."""

import pytest

from extraction.__main__ import main as extraction_main
from inference import distributed_inference_with_activations as distributed
from inference import simple_extraction_inference as simple
from inference.captures import capture
from inference.engine.language_model import load_model
from inference.extractions import extract

TEXTS = ["one two", "three", "four five six"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """As if everything took long."""
    monkeypatch.setattr("extraction.progress.FIRST_SECONDS", 0.0)
    monkeypatch.setattr("extraction.progress.LOG_SECONDS", 0.0)


@pytest.fixture(scope="module")
def model(demo_checkpoint):
    return load_model(str(demo_checkpoint))


def told(capsys):
    return [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize("command", [simple, distributed])
def test_a_data_set(command, demo_checkpoint, tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS))
    flags = ["--model_path", str(demo_checkpoint), "--dataset", str(tmp_path / "corpus.txt"),
             "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"),
             "--max_new_tokens", "0"]  # fmt: skip
    assert command.main(flags) == 0
    lines = told(capsys)
    assert "inputs read: 2" in lines
    assert "inputs tokenised: 2 of 3" in lines
    assert any(line.startswith("samples") and line.endswith(" of 3") for line in lines)
    assert extraction_main(["verify", str(tmp_path / "act")]) == 0
    assert any(line.startswith("bytes checked: ") for line in told(capsys))
    out = str(tmp_path / "rows")
    assert extraction_main(["export", str(tmp_path / "act"), out, "--to", "memmap"]) == 0
    assert any(line.startswith("rows exported: ") for line in told(capsys))


def test_capture_and_extract(model, tmp_path, capsys):
    capture(model, TEXTS, ["layer_1"])
    assert "inputs run: 3 of 3" in told(capsys)
    extract(model, TEXTS, tmp_path, ["layer_1"])
    lines = told(capsys)
    assert "samples run: 3 of 3" in lines
    assert any(line.startswith("bytes checked: ") for line in lines)
