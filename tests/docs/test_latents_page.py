"""The command and the code of docs/latents.md run, on the tiny model of `make demo-tiny`."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.latent_meanings import main as meanings
from examples.make_demo import make_checkpoint
from tests.docs.test_sae_page import PAGE as SAE_PAGE
from tests.docs.test_sae_page import ROOT, run, smaller

PAGE = (ROOT / "docs/latents.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks/results"


def test_the_page_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "tiny")
    source = (ROOT / "examples/text/state_of_the_union.jsonl").read_text(encoding="utf-8")
    (tmp_path / "text.jsonl").write_text(
        re.sub(r'("text": ".{3000}).*?("[,}])', r"\1\2", source), encoding="utf-8"
    )
    training, *_ = re.findall(r"```bash\n(.*?)```", SAE_PAGE, re.DOTALL)
    run(training)
    (describing,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    run(describing)
    assert "latents of sae_run/saes/layer_1" in capsys.readouterr().out
    named = re.findall(r"^sae_run/latents/(\S+?)/? ", PAGE, re.MULTILINE)
    there = {path.name for path in Path("sae_run/latents").iterdir()}
    assert there == set(named) - {"latents_data"}  # of more than 20 MB only
    lines = map(json.loads, Path("sae_run/latents/latents.jsonl").read_text().splitlines())
    line = next(line for line in lines if line["top"])
    (fields,) = re.findall(r"\| field \| \|\n\|---\|---\|\n(.*?)\n\n", PAGE, re.DOTALL)
    of_table = re.findall(r"^\| (.*?) \|", fields, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(of_table)) == list(line)
    for name in line["top"][0]:
        assert f"`{name}`" in PAGE
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    made: dict = {}
    exec(smaller(code).replace("< 0.03", "<= 1"), made)
    assert made["row"]["activation"] == pytest.approx(made["activation"], rel=1e-4)
    capsys.readouterr()
    folder = "sae_run/activations"
    meanings(["sae_run/saes/layer_1", "--activations_dir", folder, "--held_out", folder])
    table = capsys.readouterr().out.splitlines()
    assert table[2].split()[:3] == ["meaning", "latent", "above"]


def test_the_figures_are_those_of_the_results():
    results = (RESULTS / "latent_meanings.txt").read_text(encoding="utf-8")
    rows = {}
    for line in results.splitlines():
        found = re.match(r"(\w.*?)  +(\d+) +([\d.]+) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+)  ", line)
        if found:
            rows[found[1]] = found.groups()[1:]
    shown = re.findall(r"^\| ([^|]*?) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", PAGE, re.M)
    assert len(shown) == 10
    for name, latent, says, precision, recall in shown:
        told = rows[name]
        assert (latent, says, precision, recall) == (told[0], told[2], told[3], told[4])
    cost = (RESULTS / "sae_latents.txt").read_text(encoding="utf-8")
    (seconds,) = re.findall(r"1,000,000 rows.*?whole command +(\d+) s", cost, re.DOTALL)
    assert f"{seconds} s" in PAGE
