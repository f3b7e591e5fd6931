"""The code of docs/interventions.md runs, and does what the page says."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs/interventions.md"


def test_the_code_runs_and_steers(demo_checkpoint):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = {"MODEL": str(demo_checkpoint)}
    exec(code, found)
    plain = found["model"].apply(found["params"], found["tokens"])
    assert found["logits"].shape == plain.shape
    assert np.abs(found["logits"] - plain).max() > 0.1
    assert set(found["activations"]) == {"layer_3"}
