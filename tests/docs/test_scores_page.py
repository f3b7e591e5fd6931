"""The commands and the code of docs/scores.md run, on the tiny model of `make demo-tiny`."""

import json
import re
import typing
from pathlib import Path

import numpy as np
import pytest

from examples.make_demo import make_checkpoint
from sae import load_vectors
from sae.scores.settings import Metric
from tests.docs.test_sae_page import PAGE as SAE_PAGE
from tests.docs.test_sae_page import ROOT, run, smaller

PAGE = (ROOT / "docs/scores.md").read_text(encoding="utf-8")


def test_the_page_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_checkpoint(tmp_path / "tiny")
    source = (ROOT / "examples/text/state_of_the_union.jsonl").read_text(encoding="utf-8")
    (tmp_path / "text.jsonl").write_text(
        re.sub(r'("text": ".{3000}).*?("[,}])', r"\1\2", source), encoding="utf-8"
    )
    training, *_ = re.findall(r"```bash\n(.*?)```", SAE_PAGE, re.DOTALL)
    run(training)
    scoring, directions = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(first, {})
    run(scoring.replace("0.02", "1"))  # a random model's latents are active everywhere
    assert "latents of known against unknown" in capsys.readouterr().out
    written = {str(path.relative_to(tmp_path)) for path in Path(tmp_path).rglob("*.json")}
    for named in re.findall(r"sae_run/scores/\S+\.json", PAGE):
        assert named.replace("15", "1") in written
    found = json.loads(Path("sae_run/scores/scores.json").read_text())
    assert found["categories"] == ["city", "movie"]
    (layer,) = re.findall(r"`(\{\"known\".*?\})`", PAGE, re.DOTALL)
    (names,) = re.findall(r"\"0\": \{(.*?)\}", layer, re.DOTALL)
    entry = json.loads(Path("sae_run/scores/layer_1/city_L_1.json").read_text())["known"]["0"]
    assert list(entry) == re.findall(r'"(\w+)"', names)
    run(directions)
    assert set(load_vectors("sae_run/latents.safetensors")) == {"latent_17", "latent_42"}
    made: dict = {}
    exec(smaller(second), made)
    assert made["direction"].name == "known_minus_unknown"
    assert made["direction"].norm == pytest.approx(1)
    assert np.allclose(made["same"].welch_t, made["figures"].welch_t, equal_nan=True)
    assert made["figures"].auroc[made["largest"][0]] == np.nanmax(made["figures"].auroc)


@pytest.mark.parametrize("name", [*typing.get_args(Metric), "p", "q", "auroc_error"])
def test_the_page_names_every_figure(name):
    assert f"`{name}`" in PAGE
