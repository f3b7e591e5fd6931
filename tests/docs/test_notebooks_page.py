"""The code of docs/notebooks.md runs from top to bottom, and gives what it says."""

import re
from pathlib import Path

import numpy as np

from extraction.reading.dataset import ActivationDataset

PAGE = Path(__file__).parents[2] / "docs/notebooks.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_code_runs(demo_checkpoint, tmp_path, capsys):
    found = {"MODEL": str(demo_checkpoint), "FOLDER": str(tmp_path)}
    for code in CODE:
        exec(compile(code, str(PAGE), "exec"), found)
    printed = capsys.readouterr().out
    assert "did you mean layers.0.mlp" in printed
    assert found["run"].run_id in printed

    model, texts = found["model"], found["texts"]
    tokens = [len(model.tokenizer(text)["input_ids"]) for text in texts]
    assert found["last"].shape == (2, model.config.hidden_size)
    assert len(found["entity"]) == 2
    assert all(np.shape(found[name]) for name in ("logits_a", "logits_b"))
    assert found["values"].shape[:2] == (2, max(tokens))
    special = set(model.tokenizer.all_special_ids)
    assert not special & set(found["words"].token_id.tolist())
    assert special & set(found["words"].token_ids[0])
    assert found["run"].n_samples == 30
    assert found["position"]["epoch"] == 2
    keys = found["rows"].keys()
    left = np.isin(keys.token_id, list(special)) | (keys.position < 1)
    assert found["metadata"]["run"]["special_token_ids"] == sorted(special)
    assert not set(found["kept"].numbers.tolist()) & set(np.flatnonzero(left).tolist())
    assert found["kept"].left_out["skip_first"] == 30
    assert found["stream"].left_out == found["kept"].left_out
    joined = ActivationDataset(tmp_path / "all", "layers.2.mlp")
    assert set(joined.keys().task_ids) == {f"text {i}" for i in range(40)}
    assert "good" in printed
    own = ActivationDataset(tmp_path / "own", "a score")
    assert own[:].ravel().tolist() == [float(n) for n in range(10) for _ in range(3)]
    saved = ActivationDataset(tmp_path / "arrays", "layers.2.mlp")
    assert len(saved) == sum(tokens)
    np.testing.assert_array_equal(
        saved[:], found["arrays"]["layers.2.mlp"][np.asarray(found["mask"]) == 1]
    )
