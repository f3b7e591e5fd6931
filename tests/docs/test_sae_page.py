"""The commands and the code of docs/sae.md run, on the tiny model of `make demo-tiny`."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from examples.make_demo import make_checkpoint
from inference.distributed_inference_with_activations import main as extract
from sae.__main__ import main
from sae.architectures import ARCHITECTURES
from sae.training.settings import PRESETS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/sae.md").read_text(encoding="utf-8")
SMALLER = {
    "examples/text/state_of_the_union.jsonl": "text.jsonl",
    "demo_run/smollm2": "tiny",
    "512": "64",
    "15": "1",
    "1024": "64",
    "4e5": "2e4",
    "32": "8",
}


def commands(block: str) -> list[list[str]]:
    lines = re.sub(r"\\\n\s*", " ", block).splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith("python")]


def run(block: str) -> None:
    for module, *words in commands(block):
        words = [smaller(SMALLER.get(word, word)) for word in words]
        assert (extract if module.startswith("inference") else main)(words) == 0


def smaller(text: str) -> str:
    return text.replace("layer_15", "layer_1").replace("layer=15", "layer=1")


def test_the_page_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "tiny")
    source = (ROOT / "examples/text/state_of_the_union.jsonl").read_text(encoding="utf-8")
    (tmp_path / "text.jsonl").write_text(
        re.sub(r'("text": ".{3000}).*?("[,}])', r"\1\2", source), encoding="utf-8"
    )
    first, evaluating, converting = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    second, third = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    run(first)
    held_out = (tmp_path / "text.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    Path("sae_run/held_out.jsonl").write_text(held_out, encoding="utf-8")  # as `tail -n 1` does
    run(evaluating)
    assert "CE recovered" in capsys.readouterr().out
    assert {path.name for path in Path("sae_run/evaluation").iterdir()} == {
        "evaluation.json",
        "training.html",
    }
    names: dict = {}
    exec(smaller(second), names)
    assert names["error"] < 0.9
    assert np.all(names["latents"] >= 0)
    assert "active latents of a row" in capsys.readouterr().out
    exec(third, names)
    assert names["again"].d_sae == 2 * names["again"].d_in
    assert (names["small"].architecture, names["small"].k) == ("topk", 16)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(yaml.replace("4e5", "2e4"))
    assert main(["train", "--config", "sweep.yaml", "--batch_size", "64"]) == 0
    assert {path.name for path in Path("sae_run/sweep").glob("layer_1.*")} == {
        "layer_1.k=16",
        "layer_1.k=64",
        "layer_1.wide",
    }
    (convert,) = commands(converting)
    assert main([smaller(word) for word in convert[1:]]) == 0


@pytest.mark.parametrize("name", [*ARCHITECTURES, *PRESETS])
def test_the_page_names_every_architecture_and_preset(name):
    assert f"`{name}`" in PAGE or f"--preset {name}" in PAGE
