"""Dictionaries of arrays become runs: every row comes back from the run's own reader."""

import ml_dtypes
import numpy as np
import pytest
import torch

from extraction import ActivationDataset, ExistingRunError, StoreError, save_activations, verify
from extraction.exports import export
from extraction.writing import saved_arrays

N, S = 5, 4
WIDTHS = {"layers.0.mlp": 3, "layers.15.mlp": 6}
LENGTHS = (4, 1, 3, 0, 2)


def arrays(dtype=np.float32) -> dict:
    source = np.random.default_rng(0)
    return {name: source.standard_normal((N, S, d)).astype(dtype) for name, d in WIDTHS.items()}


def mask(side: str) -> np.ndarray:
    """`[N, S]`, padded on a side; the fourth sample is all padding."""
    right = (np.arange(S) < np.array(LENGTHS)[:, None]).astype(np.int32)
    return right if side == "right" else right[:, ::-1]


IDS = np.arange(100, 100 + N * S).reshape(N, S)


@pytest.mark.parametrize("store_format", ["pickle", "safetensors"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_a_row(tmp_path, monkeypatch, store_format, side):
    monkeypatch.setattr(saved_arrays, "CHUNK_BYTES", 2 * S * 4 * sum(WIDTHS.values()))
    acts, real = arrays(), mask(side)
    count = save_activations(
        acts,
        tmp_path / "run",
        attention_mask=real,
        input_ids=IDS,
        task_ids=[f"text {n}" for n in range(N)],
        store_format=store_format,
        rows_per_file=4,
        model_name="my/model",
    )
    assert count == sum(LENGTHS)
    assert verify(tmp_path / "run", 3).verdict == "good"
    dataset = ActivationDataset(tmp_path / "run", list(WIDTHS))
    assert (dataset.info.model_name, dataset.info.format) == ("my/model", store_format)
    assert dataset.info.complete
    found, keys = dataset[:], dataset.keys()
    for name, values in acts.items():
        np.testing.assert_array_equal(found[name], values[real == 1])
    assert keys.token_id.tolist() == IDS[real == 1].tolist()
    assert keys.position.tolist() == [s for length in LENGTHS for s in range(length)]
    names = [f"text {n}" for n, length in enumerate(LENGTHS) for _ in range(length)]
    assert keys.task_ids.tolist() == names


def test_arrays_of_one_row_each_without_anything_else(tmp_path):
    acts = {name: values[:, -1] for name, values in arrays().items()}
    assert save_activations(acts, tmp_path / "run") == N
    dataset = ActivationDataset(tmp_path / "run", "layers.15.mlp")
    np.testing.assert_array_equal(dataset[:], acts["layers.15.mlp"])
    keys = dataset.keys()
    assert keys.task_ids.tolist() == list("01234")
    assert set(keys.position.tolist()) | set(keys.token_id.tolist()) == {-1}


def test_back_to_the_arrays_by_an_export(tmp_path):
    acts = arrays()
    save_activations(acts, tmp_path / "run", input_ids=IDS)
    export(tmp_path / "run", tmp_path / "acts.npz", "npz")
    with np.load(tmp_path / "acts.npz") as loaded:
        for name, values in acts.items():
            np.testing.assert_array_equal(loaded[name], values)
        np.testing.assert_array_equal(loaded["input_ids"], IDS)


@pytest.mark.parametrize("kind", ["torch", "jax", "numpy"])
def test_bfloat16_stays_bfloat16(tmp_path, kind):
    import jax.numpy as jnp

    acts = arrays(ml_dtypes.bfloat16)
    to = {
        "torch": lambda v: torch.from_numpy(v.astype(np.float32)).bfloat16().requires_grad_(),
        "jax": jnp.asarray,
        "numpy": lambda v: v,
    }[kind]
    save_activations({name: to(values) for name, values in acts.items()}, tmp_path / "run")
    dataset = ActivationDataset(tmp_path / "run", "layers.0.mlp")
    assert dataset.info.dtype == "bfloat16"
    wanted = acts["layers.0.mlp"].astype(np.float32).reshape(N * S, -1)
    np.testing.assert_array_equal(dataset[:], wanted)
    save_activations(acts, tmp_path / "pickled", store_format="pickle")
    assert ActivationDataset(tmp_path / "pickled", "layers.0.mlp").info.dtype == "float32"


def test_a_run_is_not_overwritten(tmp_path):
    save_activations(arrays(), tmp_path / "run")
    with pytest.raises(ExistingRunError):
        save_activations(arrays(), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activations": {}}, "there are no activations"),
        ({"activations": {"a": np.zeros(3)}}, r"a has the shape \[3\]; activations are"),
        ({"activations": {"a": [[1.0]]}}, r"a has the shape \[\]"),
        ({"activations": {"a": np.zeros((0, 3))}}, r"a has the shape \[0, 3\]"),
        ({"activations": {"ids": IDS}}, "ids is int64, and activations are floating point"),
        (
            {"activations": {"a": np.zeros((2, 3, 4)), "b": np.zeros((2, 4))}},
            r"the same samples and tokens, not a \[2, 3, 4\], b \[2, 4\]",
        ),
        ({"attention_mask": np.ones((N, 2))}, r"attention_mask must have the shape \[5, 4\]"),
        ({"attention_mask": np.zeros((N, S))}, "0 everywhere"),
        ({"input_ids": IDS[0]}, r"input_ids must have the shape \[5, 4\], not \[4\]"),
        ({"input_ids": IDS * 1.0}, "input_ids must be whole numbers .* not float64"),
        ({"input_ids": IDS + (1 << 31)}, "whole numbers below 2,147,483,648"),
        ({"task_ids": ["a"]}, "5 different names, .*; 1 are given"),
        ({"task_ids": ["a", "b", "c", "d", "a"]}, "5 are given, 4 of them different"),
        ({"store_format": "hdf5"}, "there is no format .hdf5."),
        ({"rows_per_file": 0}, "rows_per_file must be at least 1"),
        ({"address": "acts.npz"}, "a run is a folder: save the arrays to acts; .*export.*'npz'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, monkeypatch, settings, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=words):
        save_activations(**{"activations": arrays(), "address": "run"} | settings)
    assert list(tmp_path.iterdir()) == []
