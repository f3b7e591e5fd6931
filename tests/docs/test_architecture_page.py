"""ARCHITECTURE.md: its exercises can be done as they stand, and its files exist."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
EXERCISES = dict(re.findall(r"^### (.*?)\n.*?```diff\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
PACKAGES = ("extraction", "inference", "launch", "qwen_hooks", "sae", "tensor_files")

MODEL = """
import numpy as np, jax.numpy as jnp, tempfile
from pathlib import Path
from qwen_hooks import Checkpoint, create_model_with_hooks, load_params
from tests.oracle import make_checkpoint, random_tokens, row_error, torch_rows
folder = Path(tempfile.mkdtemp())
ids = np.array([random_tokens(9)])
def values(hook_points, **named):
    checkpoint = Checkpoint.open(folder)
    model = create_model_with_hooks(checkpoint.config, hook_points=hook_points)
    return model.apply(load_params(checkpoint), ids, return_activations=True, **named)[1]
"""

USES = {
    "A hook point": MODEL + """
make_checkpoint(folder)
found = values(["layers.0.mlp.gate", "layers.0.mlp.gated"])
gate = np.asarray(found["layers.0.mlp.gate"], np.float64)
assert row_error(found["layers.0.mlp.gated"], gate / (1 + np.exp(-gate))) < 1e-5
""",
    "A model family": MODEL + """
import torch, transformers
config = transformers.MistralConfig(
    vocab_size=211, hidden_size=48, intermediate_size=80, num_hidden_layers=3, sliding_window=None,
    num_attention_heads=6, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
)
torch.manual_seed(0)
theirs = transformers.MistralForCausalLM(config).eval()
theirs.save_pretrained(folder)
_, blocks = torch_rows(theirs, ids[0].tolist())
found = values(["layer_0", "layer_2"])
for layer in (0, 2):
    assert row_error(found[f"layer_{layer}"][0], blocks[layer]) < 1e-5
""",
    "An intervention": MODEL + """
from qwen_hooks.interventions import Scale, intervene
make_checkpoint(folder)
config = Checkpoint.open(folder).config
edits = intervene({"layers.0.mlp": Scale(factor=-2.0)}, config, np.array([9]))
plain, scaled = values(["layers.0.mlp"]), values(["layers.0.mlp"], interventions=edits)
assert row_error(scaled["layers.0.mlp"], -2 * np.asarray(plain["layers.0.mlp"])) < 1e-6
""",
    "A position selector": """
from inference.inputs.positions import Positions
from inference.inputs.prompt_tokens import PromptTokens
prompt = PromptTokens(task_id="t", token_ids=list(range(9)))
assert list(Positions(["middle"]).of_prompt(prompt)) == [4]
""",
    "A store format": """
import numpy as np, tempfile
from extraction import ActivationDataset, ActivationWriter, RowBlock, verify
run = tempfile.mkdtemp()
rows = np.arange(12, dtype=np.float32).reshape(6, 2)
with ActivationWriter(run, {"norm": 2}, store_format="gzip", rows_per_file=4) as writer:
    writer.add(RowBlock.of({"norm": rows}, ["t"] * 6, position=range(6)))
assert verify(run, 3).verdict == "good"
np.testing.assert_array_equal(ActivationDataset(run, "norm")[:], rows)
""",
    "A storage back end": """
import tempfile
from pathlib import Path
from extraction import ActivationDataset, verify
run = Path("GOLDEN").absolute().as_uri()
assert verify(run, 3).verdict == "good"
assert len(ActivationDataset(run, "layer_1")) > 0
""".replace("GOLDEN", str(ROOT / "tests/golden/runs/safetensors/activations")),
    "An architecture of autoencoders": """
import numpy as np
from sae import train
random = np.random.default_rng(0)
batches = [random.standard_normal((64, 8)).astype(np.float32) for _ in range(150)]
options = {"d_sae": "32", "architecture": "log_penalty", "train_rows": 150 * 64}
options["learning_rate"] = 1e-2
mild = train(iter(batches), **options, l1_coefficient=0.01)
strict = train(iter(batches), **options, l1_coefficient=3.0)
active = [(sae.encode(batches[0]) > 0).sum(1).mean() for sae in (mild, strict)]
assert mild.architecture == "standard" and active[1] < 0.7 * active[0], active
""",
    "A format of autoencoders": """
import numpy as np, tempfile
from pathlib import Path
from sae import load
folder = Path(tempfile.mkdtemp())
arrays = {"W_enc": (4, 6), "W_dec": (6, 4), "b_enc": (6,), "b_dec": (4,)}
arrays = {name: np.full(shape, 0.5, np.float32) for name, shape in arrays.items()}
np.savez(folder / "autoencoder.npz", **arrays)
rows = np.ones((2, 4), np.float32)
pre = (rows - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"]
np.testing.assert_allclose(load(folder).encode(rows), np.maximum(pre, 0), rtol=1e-6)
""",
}  # fmt: skip


@pytest.mark.parametrize("title", USES)
def test_an_exercise_can_be_done(title, tmp_path):
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    (tmp_path / "change.diff").write_text(EXERCISES[title])
    apply = ["git", "apply", "--unidiff-zero", "--verbose", "change.diff"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "GIT_DIR": "/nonexistent"}
    subprocess.run(apply, cwd=tmp_path, env=environment, check=True, capture_output=True)
    used = subprocess.run(
        [sys.executable, "-c", USES[title]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 0, used.stderr[-3000:]


def test_every_exercise_is_used_and_touches_one_file_and_its_table():
    assert set(EXERCISES) == set(USES)
    for change in EXERCISES.values():
        assert len(re.findall(r"^\+\+\+ b/", change, re.MULTILINE)) <= 2


def test_what_is_named_exists():
    named = {name for name in re.findall(r"`([a-z_/]+\.(?:py|md|txt))`", PAGE) if "/" in name}
    below = {file for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    for name in named:
        found = (ROOT / name).exists() or any(str(file).endswith(f"/{name}") for file in below)
        assert found, name
