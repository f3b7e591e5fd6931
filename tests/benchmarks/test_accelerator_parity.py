"""The parity benchmark measures what it says: on CPU, in float32, ours is as exact as torch."""

import dataclasses
import json

from benchmarks import accelerator_parity
from benchmarks.shapes import SHAPES, TINY


def test_errors_on_cpu(tmp_path, monkeypatch):
    # More than ten layers: their names sort in another order than their numbers.
    monkeypatch.setitem(
        SHAPES, "tiny", dataclasses.replace(TINY, num_hidden_layers=12, layer_types=())
    )
    file = tmp_path / "parity.json"
    accelerator_parity.main(["--shape", "tiny", "--lengths", "40", "17", "1", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    errors = {(row["dtype"], row["of"]): row["largest"] for row in rows}
    kinds = {(dtype, of) for dtype in ("float32", "bfloat16") for of in ("torch", "ours xla")}
    assert set(errors) == kinds
    assert 0 < errors["float32", "ours xla"] < 1e-5
    assert 1e-4 < errors["bfloat16", "ours xla"] < 5e-2
