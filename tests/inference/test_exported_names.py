"""A run's columns under TransformerLens' names hold the values that TransformerLens has there."""

import datasets
import numpy as np
from safetensors.numpy import load_file

from extraction.exports import export
from inference.engine.language_model import load_model
from inference.extractions import extract
from tests.oracle import row_error
from tests.peers.prompt import PROMPT, VALUES

TOLERANCE = 1e-5


def test_columns_hold_what_their_names_say_in_transformer_lens(tmp_path):
    theirs = load_file(VALUES / "transformer_bridge.safetensors")
    model = load_model(str(VALUES / "checkpoint"))
    rows = [n for n in model.list_hook_points() if not n.endswith((".pattern", "logits"))]
    run = extract(model, [PROMPT], tmp_path, rows, ["all"], format="safetensors")
    export(run.address, tmp_path / "out", "huggingface", context_size=len(PROMPT))
    columns = datasets.load_from_disk(str(tmp_path / "out")).with_format("numpy")[0]
    assert columns.pop("token_ids").tolist() == PROMPT
    assert "blocks.1.ln2.hook_normalized" in columns
    assert len(columns) == len(rows)
    for name, values in columns.items():
        expected = theirs[name].reshape(len(PROMPT), -1)
        assert row_error(np.asarray(values), expected) <= TOLERANCE, name
