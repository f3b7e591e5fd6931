"""Gemma Scope, Gemma Scope 2, Llama Scope and Qwen-Scope, in the layouts that they published.

The judge is each format's own formula, in float64; numpy, safetensors and torch wrote the files.
"""

import fnmatch
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extraction.errors import StoreError
from sae import load, save

D_IN, D_SAE = 12, 40
ROWS = np.random.default_rng(9).standard_normal((64, D_IN)) * 3


def numbers(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "W_enc": numbers(D_IN, D_SAE, seed=0),
    "W_dec": numbers(D_SAE, D_IN, seed=1),
    "b_enc": numbers(D_SAE, seed=2),
    "b_dec": numbers(D_IN, seed=3),
    "threshold": np.abs(numbers(D_SAE, seed=4)),
}
GEMMA = "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
GEMMA_2 = "gemma-scope-2-1b-pt/resid_post/layer_7_width_16k_l0_medium"
QWEN = "SAE-Res-Qwen3-8B-Base-W64K-L0_5"


def jumprelu(rows, weights):
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    pre = rows @ w["W_enc"] + w["b_enc"]
    latents = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
    return latents, latents @ w["W_dec"] + w["b_dec"]


def assert_equal(sae, wanted, rows=ROWS):
    latents, outputs = wanted
    found = sae.encode(rows.astype(np.float32))
    scale = np.abs(latents).max()
    np.testing.assert_allclose(found, latents, rtol=0, atol=1e-5 * scale)
    np.testing.assert_array_equal(found > 0, latents > 0)
    reached = sae.decode(found)
    np.testing.assert_allclose(reached, outputs, rtol=0, atol=1e-5 * np.abs(outputs).max())
    assert 0 < (latents > 0).mean() < 1


def gemma_scope(folder: Path, weights=WEIGHTS, save_as=np.savez) -> Path:
    folder = folder / GEMMA
    folder.mkdir(parents=True, exist_ok=True)
    save_as(folder / "params.npz", **weights)
    return folder


def gemma_scope_2(folder: Path, config=None, **more) -> Path:
    folder = folder / GEMMA_2
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name.lower(): value for name, value in WEIGHTS.items()} | more
    safetensors.numpy.save_file(tensors, folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


HYPERPARAMETERS = {
    "d_model": D_IN,
    "d_sae": D_SAE,
    "hook_point_in": "blocks.15.hook_resid_post",
    "hook_point_out": "blocks.15.hook_resid_post",
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.75,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 9.5, "out": 9.5},
    "sparsity_include_decoder_norm": False,
    "apply_decoder_bias_to_pre_encoder": False,
}


def llama_scope(folder: Path, **changed) -> Path:
    folder = folder / "Llama3_1-8B-Base-L15R-8x"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(HYPERPARAMETERS | changed))
    layers = {
        "encoder.weight": WEIGHTS["W_enc"].T.copy(),
        "encoder.bias": WEIGHTS["b_enc"],
        "decoder.weight": WEIGHTS["W_dec"].T.copy(),
        "decoder.bias": WEIGHTS["b_dec"],
    }
    safetensors.numpy.save_file(layers, folder / "checkpoints" / "final.safetensors")
    return folder


def llama_formula(rows, include_norm, subtracts, threshold=0.75, k=None):
    """OpenMOSS' forward on rows times s, its latents divided by s, its output divided by s."""
    w = {name: value.astype(np.float64) for name, value in WEIGHTS.items()}
    s = np.sqrt(D_IN) / 9.5
    x = rows * s - (w["b_dec"] if subtracts else 0)
    pre = x @ w["W_enc"] + w["b_enc"]
    norms = np.linalg.norm(w["W_dec"], axis=1) if include_norm else 1.0
    score = pre * norms
    kept = score > threshold * s if k is None else score >= np.sort(score, axis=1)[:, -k, None]
    latents = np.where(kept, np.maximum(pre, 0), 0)
    return latents * norms / s, (latents @ w["W_dec"] + w["b_dec"]) / s


def qwen_scope(folder: Path, layers=(3,), name=QWEN) -> Path:
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        state = {
            name: torch.from_numpy(WEIGHTS[name].T.copy() if name[0] == "W" else WEIGHTS[name])
            for name in ("W_enc", "W_dec", "b_enc", "b_dec")
        }
        torch.save(state, folder / f"layer{layer}.sae.pt")
    return folder


def test_gemma_scope(tmp_path):
    sae = load(gemma_scope(tmp_path))
    assert_equal(sae, jumprelu(ROWS, WEIGHTS))
    assert sae.metadata["model_name"] == "google/gemma-2-2b"
    assert sae.metadata["hook_point"] == "layer_12"
    assert sae.metadata["hook_name"] == "blocks.12.hook_resid_post"
    assert "layer_12" in repr(sae)


@pytest.mark.parametrize(
    ("folder", "model", "hook_point", "target"),
    [
        ("gemma-scope-9b-it-res/layer_0/w", "google/gemma-2-9b-it", "layer_0", None),
        ("gemma-scope-2b-pt-att/layer_3/w", "google/gemma-2-2b", "layers.3.attention.z", None),
        ("gemma-scope-2b-pt-mlp/layer_3/w", "google/gemma-2-2b", "layers.3.mlp.post_norm", None),
        (
            "gemma-scope-2b-pt-transcoders/layer_3/w",
            "google/gemma-2-2b",
            "layers.3.pre_feedforward_layernorm",
            "layers.3.mlp.post_norm",
        ),
        ("mine/w", None, None, None),
    ],
)
def test_gemma_scope_says_what_it_is_of(tmp_path, folder, model, hook_point, target):
    place = tmp_path / folder
    place.mkdir(parents=True)
    np.savez(place / "params.npz", **WEIGHTS)
    metadata = load(place).metadata
    assert metadata.get("model_name") == model
    assert metadata.get("hook_point") == hook_point
    assert metadata.get("hook_point_out") == target


def test_gemma_scope_2(tmp_path):
    assert_equal(load(gemma_scope_2(tmp_path)), jumprelu(ROWS, WEIGHTS))
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-1b-pt",
        "hf_hook_point_in": "model.layers.7.output",
        "hf_hook_point_out": "model.layers.7.output",
    }
    sae = load(gemma_scope_2(tmp_path, config))
    assert_equal(sae, jumprelu(ROWS, WEIGHTS))
    assert sae.metadata["hook_point"] == "layer_7"
    assert sae.metadata["model_name"] == "google/gemma-3-1b-pt"
    assert "hook_point_out" not in sae.metadata


@pytest.mark.parametrize("include_norm", [False, True])
@pytest.mark.parametrize("k", [None, 6])
def test_llama_scope(tmp_path, include_norm, k):
    changed = {"sparsity_include_decoder_norm": include_norm}
    if k is not None:
        changed |= {"act_fn": "topk", "top_k": k}
    sae = load(llama_scope(tmp_path, **changed))
    assert_equal(sae, llama_formula(ROWS, include_norm, False, k=k))
    assert sae.metadata["hook_point"] == "layer_15"
    assert sae.metadata["model_name"] == "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize("subtracts", [False, True])
def test_llama_scope_with_another_scale_of_its_targets(tmp_path, subtracts):
    folder = llama_scope(
        tmp_path,
        dataset_average_activation_norm={"in": 9.5, "out": 3.25},
        apply_decoder_bias_to_pre_encoder=subtracts,
    )
    latents, outputs = llama_formula(ROWS, False, subtracts)
    assert_equal(load(folder), (latents, outputs * 3.25 / 9.5))


def test_latents_without_a_direction_are_never_active(tmp_path):
    changed = {"act_fn": "topk", "top_k": 3, "sparsity_include_decoder_norm": True}
    folder = llama_scope(tmp_path, **changed)
    file = folder / "checkpoints" / "final.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["decoder.weight"][:, 5] = 0
    tensors["encoder.bias"][5] = 100
    safetensors.numpy.save_file(tensors, file)
    latents = load(folder).encode(ROWS.astype(np.float32))
    assert not latents[:, 5].any()
    assert ((latents > 0).sum(1) == 3).all()


def test_other_spellings_and_kinds_of_gemma_scope(tmp_path):
    lower = {name.replace("W", "w"): value for name, value in WEIGHTS.items()}
    assert_equal(load(gemma_scope(tmp_path, lower)), jumprelu(ROWS, WEIGHTS))
    place = tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
    place.mkdir(parents=True)
    np.savez(place / "params.npz", **WEIGHTS)
    assert_refused(place, "embeddings is not read")


def test_llama_scope_that_subtracts_b_dec(tmp_path):
    sae = load(llama_scope(tmp_path, apply_decoder_bias_to_pre_encoder=True))
    assert_equal(sae, llama_formula(ROWS, False, True))


@settings(max_examples=25)
@given(norm=st.floats(0.25, 400), threshold=st.floats(0.01, 3), include_norm=st.booleans())
def test_folding_the_scale_of_llama_scope_changes_nothing(
    tmp_path_factory, norm, threshold, include_norm
):
    folder = llama_scope(
        tmp_path_factory.mktemp("llama"),
        jump_relu_threshold=threshold,
        dataset_average_activation_norm={"in": norm, "out": norm},
        sparsity_include_decoder_norm=include_norm,
    )
    sae = load(folder)
    w = {name: value.astype(np.float64) for name, value in WEIGHTS.items()}
    s = np.sqrt(D_IN) / norm
    pre = (ROWS * s) @ w["W_enc"] + w["b_enc"]
    score = pre * (np.linalg.norm(w["W_dec"], axis=1) if include_norm else 1.0)
    near = (np.abs(score / (threshold * s) - 1) < 1e-4).any(axis=1)  # where rounding decides
    latents = np.where(score > threshold * s, np.maximum(pre, 0), 0)
    outputs = (latents @ w["W_dec"] + w["b_dec"]) / s
    found = sae(ROWS.astype(np.float32))
    scale = np.abs(outputs).max()
    np.testing.assert_allclose(found[~near], outputs[~near], rtol=0, atol=2e-5 * scale)


def test_qwen_scope(tmp_path):
    folder = qwen_scope(tmp_path)
    for address in (folder, folder / "layer3.sae.pt", str(folder / "layer3.sae.pt")):
        sae = load(address)
        w = {name: value.astype(np.float64) for name, value in WEIGHTS.items()}
        pre = ROWS @ w["W_enc"] + w["b_enc"]
        kept = pre >= np.sort(pre, axis=1)[:, -5, None]
        latents = np.where(kept, np.maximum(pre, 0), 0)
        assert_equal(sae, (latents, latents @ w["W_dec"] + w["b_dec"]))
        assert sae.metadata["hook_point"] == "layer_3"
        assert sae.metadata["model_name"] == "Qwen/Qwen3-8B-Base"
        assert sae.k == 5


def test_one_of_several_files_of_qwen_scope_is_asked_for(tmp_path):
    folder = qwen_scope(tmp_path, layers=(3, 11))
    with pytest.raises(StoreError, match=r"2 autoencoders; give .*layer11\.sae\.pt"):
        load(folder)
    assert load(folder / "layer11.sae.pt").metadata["hook_point"] == "layer_11"
    with pytest.raises(StoreError, match=r"has no layer12\.sae\.pt"):
        load(folder / "layer12.sae.pt")


def test_qwen_scope_without_its_name_has_no_k(tmp_path):
    with pytest.raises(StoreError, match="repository's name"):
        load(qwen_scope(tmp_path, name="mine"))


def test_what_is_read_is_converted(tmp_path):
    sae = load(gemma_scope(tmp_path))
    save(sae, tmp_path / "saelens")
    again = load(tmp_path / "saelens")
    np.testing.assert_array_equal(
        again.encode(ROWS.astype(np.float32)), sae.encode(ROWS.astype(np.float32))
    )
    with pytest.raises(StoreError, match="only read"):
        save(sae, tmp_path / "out", format="gemma_scope")
    assert not (tmp_path / "out").exists()


def assert_refused(folder, told):
    with pytest.raises(StoreError, match=told) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("make", [gemma_scope, gemma_scope_2, llama_scope, qwen_scope])
def test_files_that_are_cut_off(make, tmp_path):
    folder = make(tmp_path)
    (file,) = [path for path in folder.rglob("*") if path.suffix in (".npz", ".safetensors", ".pt")]
    whole = file.read_bytes()
    for length in {*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}:
        file.write_bytes(whole[:length])
        assert_refused(folder, "damaged|no whole file|torch.save|zip|npz|archive")


def test_hostile_arrays_are_refused(tmp_path):
    objects = WEIGHTS | {"b_dec": np.array([{}] * D_IN)}
    assert_refused(gemma_scope(tmp_path / "a", objects), "no plain array|dtype")
    assert_refused(gemma_scope(tmp_path / "b", save_as=np.savez_compressed), "compressed")
    bad = WEIGHTS | {"b_enc": np.full(D_SAE, np.nan, np.float32)}
    assert_refused(gemma_scope(tmp_path / "c", bad), "not finite")
    short = {name: value for name, value in WEIGHTS.items() if name != "threshold"}
    assert_refused(gemma_scope(tmp_path / "d", short), "threshold")
    assert_refused(gemma_scope(tmp_path / "e", WEIGHTS | {"b_dec": np.ones(3, "f4")}), "b_dec")
    assert_refused(gemma_scope(tmp_path / "f", WEIGHTS | {"W_enc": np.ones(3, "f4")}), "2 axes")
    skip = gemma_scope_2(tmp_path / "g", affine_skip_connection=numbers(D_IN, D_IN, seed=5))
    assert_refused(skip, "skip connection")
    other = gemma_scope_2(tmp_path / "h", {"architecture": "gated"})
    assert_refused(other, "'gated' is not read")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"act_fn": "gelu"}, "act_fn"),
        ({"norm_activation": "token-wise"}, "token-wise"),
        ({"dataset_average_activation_norm": {}}, r"activation_norm\.in"),
        ({"dataset_average_activation_norm": {"in": 0, "out": 1}}, "above 0"),
        ({"dataset_average_activation_norm": {"in": True}}, "above 0"),
        ({"jump_relu_threshold": "x"}, "jump_relu_threshold"),
        ({"d_model": 1.5}, "d_model"),
        ({"act_fn": "topk", "top_k": 0}, "top_k"),
        ({"act_fn": "topk", "top_k": 10**6}, "k=1000000"),
        ({"use_glu_encoder": True}, "GLU"),
    ],
)
def test_other_hyperparameters_are_refused(tmp_path, changed, told):
    assert_refused(llama_scope(tmp_path, **changed), told)


def test_hyperparameters_without_weights(tmp_path):
    folder = llama_scope(tmp_path)
    (folder / "checkpoints" / "final.safetensors").unlink()
    assert_refused(folder, r"no checkpoints/final\.safetensors")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    folder = qwen_scope(tmp_path)
    torch.save({"W_enc": Evil()}, folder / "layer3.sae.pt")
    assert_refused(folder, "print|no state dict|builtins")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub's client, with one repository; gives what it was asked for."""
    gemma_scope(tmp_path / "hub" / "google")
    qwen_scope(tmp_path / "hub" / "Qwen", layers=(3, 11))
    asked = []

    def matches(relative, patterns):
        return any(fnmatch.fnmatch(relative, pattern) for pattern in patterns)

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns, local_dir):
        asked.append((name, revision))
        source = tmp_path / "hub" / name
        if not source.is_dir():
            raise OSError(f"404: no repository {name}\nand more lines")
        for path in source.rglob("*"):
            relative = str(path.relative_to(source))
            wanted = allow_patterns is None or matches(relative, allow_patterns)
            if path.is_file() and wanted and not matches(relative, ignore_patterns or []):
                target = Path(local_dir) / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return asked


def test_addresses_on_the_hub(hub, tmp_path):
    sae = load(f"hf://google/{GEMMA}")
    assert_equal(sae, jumprelu(ROWS, WEIGHTS))
    assert sae.metadata["model_name"] == "google/gemma-2-2b"
    assert sae.metadata["hook_point"] == "layer_12"
    assert load(f"hf://Qwen/{QWEN}@v1/layer11.sae.pt").metadata["hook_point"] == "layer_11"
    assert [path.name for path in (tmp_path / "cache").rglob("*.pt")] == ["layer11.sae.pt"]
    assert hub == [("google/gemma-scope-2b-pt-res", None), (f"Qwen/{QWEN}", "v1")]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("hf://google", "no address on the hub"),
        ("hf://google/../../etc", "no address on the hub"),
        ("hf://google/gemma-scope-2b-pt-res/../x", "no address on the hub"),
        ("hf://google/none/x", "cannot be downloaded: 404: no repository google/none$"),
        ("hf://google/gemma-scope-2b-pt-res/layer_99", "has no layer_99"),
        (f"hf://Qwen/{QWEN}", "has no files"),
    ],
)
def test_addresses_that_are_not_on_the_hub(hub, address, told):
    with pytest.raises(StoreError, match=told):
        load(address)
