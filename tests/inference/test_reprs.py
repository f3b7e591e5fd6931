"""What a notebook shows of an object is short and says what it is."""

import jax
import numpy as np
import pytest

from extraction import ActivationDataset, ActivationExtractionConfig, ActivationExtractor, RowBlock
from inference.captures import capture
from inference.engine.activation_store import ActivationStore
from inference.engine.language_model import load_model
from inference.extractions import extract
from qwen_hooks import create_model_with_hooks
from qwen_hooks.interventions import Add, Clamp, ProjectOut, Replace, intervene
from tests.oracle import make_checkpoint, random_tokens

LONGEST = 500
IDS = [random_tokens(5, seed=3), random_tokens(9, seed=4)]
ALL = ["layers.*.mlp", "layer_3", "layers.*.attention.*", "norm"]
ROWS = ["layers.*.mlp", "layers.*.mlp.*", "layers.*.attention"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(make_checkpoint(tmp_path_factory.mktemp("my-checkpoint"))))


def check(shown, *words):
    text = repr(shown)
    assert len(text) <= LONGEST
    assert "\n" not in text
    assert not [word for word in words if word not in text], text


def test_models(model):
    check(model, "LanguageModel", "my-checkpoint", "4 layers", "48", "float32", "no tokenizer")
    check(model.checkpoint, "Checkpoint", "my-checkpoint", "4 layers")
    module = create_model_with_hooks(model.config, hook_points=ALL)
    check(
        module,
        "QwenModelWithActivations",
        "4 layers",
        "48",
        "float32",
        "layers.0.attention.q",
        "more",
    )
    check(module.bind(model.params), "QwenModelWithActivations", "4 layers")


def test_what_was_captured(model):
    captured = capture(model, IDS, ROWS, ["all"])
    check(captured, "Captured", "14 rows", "2 inputs", "layers.0.mlp.gate", "80", "more")
    check(captured.activations, "layers.0.mlp.gate", "float32 [14, 80]", "more")
    store = ActivationStore(model, ALL)
    check(store, "ActivationStore", "layers.0.attention.q", "nothing")
    store(np.array(IDS[:1]))
    check(store, "ActivationStore", "layers.0.attention.q: float32 [1, 5, 6, 8]")


def test_runs_and_their_rows(model, tmp_path):
    run = extract(model, IDS, tmp_path, ["layer_1", "norm"], ["all"])
    check(run, "ExtractedRun", run.run_id, "14 rows", "2 samples")
    acts = ActivationDataset(run.address, layer=["layer_1", "norm"])
    check(acts, "ActivationDataset", run.run_id, "14 rows", "layer_1 [48]", "norm [48]", "float32")
    check(acts.info, "RunInfo", run.run_id, "14 rows", "layer_1 [48]", "complete")
    check(acts.keys(), "RowBlock", "14 rows")
    with acts.batches(4, shuffle_seed=3) as stream:
        next(stream)
        check(stream, "BatchStream", "4", "14 rows", "shuffle_seed=3", "row 4")
    check(acts.torch(4, shuffle_seed=3), "TorchBatches", "14 rows", "shuffle_seed=3")


def test_an_extractor(tmp_path):
    config = ActivationExtractionConfig(
        output_dir=tmp_path, layers_to_extract=list(range(40)), hidden_dim=4, model_name="tiny"
    )
    with ActivationExtractor(config) as extractor:
        for layer in range(40):
            extractor.extract_layer_activation(layer, np.ones(4), "task", 0)
        check(extractor, "ActivationExtractor", str(tmp_path), "1 rows", "layer_0", "34 more")
    check(extractor, "1 batches", "closed")
    rows = {f"layer_{i}": np.ones((1, 4), np.float32) for i in range(40)}
    check(config, "tiny", str(tmp_path))
    one = np.zeros(1, np.int32)
    names = np.array(["a"], object)
    block = RowBlock(
        task_ids=names,
        sample_idx=one.astype(np.int64),
        step=one,
        position=one,
        token_id=one,
        timestamps=names,
        activations=rows,
    )
    check(block, "RowBlock", "1 rows", "layer_0 float32 [1, 4]", "34 more")


def test_interventions(model):
    vector = np.ones(48, np.float32)
    check(Add(vector=vector, coefficient=4.0), "Add", "float32 [48]", "coefficient=4.0")
    check(ProjectOut(directions=np.eye(3, 48)), "ProjectOut", "float64 [3, 48]")
    check(Clamp(direction=vector, low=0.0, high=1.5), "Clamp", "low=0.0", "high=1.5")
    check(Replace(values=vector, apply_to="prompt"), "Replace", "apply_to='prompt'")
    edits = intervene({"layer_*": [Add(vector=vector)]}, model.config, np.array([5, 9], np.int32))
    check(edits, "Interventions", "layer_0", "Add", "2 samples")
    jax.jit(lambda edits: check(edits, "Interventions", "layer_0") or 0)(edits)
