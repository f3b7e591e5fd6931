"""Documents that share rows give what they give alone: torch's rows, whoever stands beside them."""

import json

import numpy as np
import pytest

from extraction.reading.dataset import ActivationDataset
from inference.distributed_inference_with_activations import main
from inference.engine.plan import PlannedSample, PlanSettings, plan_units
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error, torch_rows

LENGTHS = [5, 1, 17, 64, 30, 33, 2, 9, 70, 12, 40, 3, 64, 21]
PACK = 64
WINDOW = 10
SHAPES = {
    "full": {},
    "sliding": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
}


def test_the_documents_do_share_rows():
    plan = PlanSettings(tokens_per_batch=128, max_batch_size=8, rows_per_unit=150, pack_length=PACK)
    planned = [PlannedSample(number=i, tokens=n, rows=n) for i, n in enumerate(LENGTHS)]
    units = list(plan_units(planned, plan))
    assert len(units) > 2
    assert max(len(row) for unit in units for row in unit.rows) > 2


@pytest.mark.parametrize(
    ("shape", "flags"),
    [
        ("full", ["--mesh_shape", "8,1"]),
        ("sliding", ["--mesh_shape", "8,1"]),
        ("full", ["--mesh_shape", "4,2", "--scan_layers", "True"]),
    ],
)
@pytest.mark.parametrize("positions", [["all"], ["last:2", "every:7"]])
def test_rows_are_torchs(tmp_path, shape, flags, positions):
    checkpoint = make_checkpoint(tmp_path / "model", **SHAPES[shape])
    ids = [random_tokens(n, seed=i) for i, n in enumerate(LENGTHS)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({"text": x}) for x in ids))
    status = main(
        ["--model_path", str(checkpoint), "--dataset", str(tmp_path / "data.jsonl"),
         "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"),
         "--layers_to_extract", "1", "3", "--max_new_tokens", "0", "--format", "safetensors",
         "--positions", *positions, "--pack_length", str(PACK), "--tokens_per_batch", "128",
         "--save_every_n_samples", "150", "--self_check_rows", "14", *flags]
    )  # fmt: skip
    assert status == 0
    model = load_torch(checkpoint)
    theirs = [torch_rows(model, x)[1] for x in ids]
    for layer in (1, 3):
        dataset = ActivationDataset(tmp_path / "act", layer=layer)
        keys = dataset.keys()
        numbers = [int(name.split("/")[1]) for name in keys.task_ids]
        seen = list(zip(numbers, keys.position.tolist(), strict=True))
        assert keys.token_id.tolist() == [ids[number][position] for number, position in seen]
        wanted = np.stack([theirs[number][layer][position] for number, position in seen])
        assert row_error(dataset[:], wanted) < 1e-4
        chosen = {
            (i, p)
            for i, n in enumerate(LENGTHS)
            for p in range(n)
            if positions == ["all"] or p % 7 == 0 or p >= n - 2
        }
        assert set(seen) == chosen
        assert len(seen) == len(chosen)


def test_generation_cannot_share_rows(tmp_path, capsys):
    status = main(["--model_path", "x", "--dataset", "x.txt", "--pack_length", "64"])
    assert status == 2
    assert "--max_new_tokens 0" in capsys.readouterr().err
