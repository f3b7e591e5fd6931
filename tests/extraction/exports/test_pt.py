import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from extraction.errors import StoreError
from extraction.exports import export
from extraction.formats.float_types import bfloat16_bits, widened
from tests.extraction.exports.padded_arrays import expected_arrays
from tests.extraction.exports.ragged_runs import HOOKS, entries, write_ragged_run
from tests.extraction.known_runs import FORMS


@pytest.mark.parametrize(("file_format", "dtype"), FORMS)
def test_every_row_has_its_place(tmp_path, file_format, dtype):
    write_ragged_run(tmp_path / "run", file_format, dtype)
    export(tmp_path / "run", tmp_path / "acts.pt", "pt")
    loaded = torch.load(tmp_path / "acts.pt", weights_only=True)
    expected = expected_arrays(dtype)
    assert loaded.keys() == expected.keys()
    assert loaded.pop("task_ids") == expected.pop("task_ids")
    for name, array in expected.items():
        assert loaded[name].dtype == (
            getattr(torch, dtype) if name in HOOKS else torch.from_numpy(array).dtype
        )
        values = loaded[name].float() if name in HOOKS else loaded[name]
        np.testing.assert_array_equal(values.numpy(), array)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_the_dtype_that_is_asked_for(tmp_path, stored, asked):
    write_ragged_run(tmp_path / "run", "safetensors", stored)
    export(tmp_path / "run", tmp_path / "acts.pt", "pt", dtype=asked, hook_points=["layer_6"])
    loaded = torch.load(tmp_path / "acts.pt", weights_only=True)
    assert loaded["layer_6"].dtype == getattr(torch, asked)
    expected = expected_arrays(stored)["layer_6"]
    if asked == "bfloat16":
        expected = widened(bfloat16_bits(expected))
    np.testing.assert_array_equal(loaded["layer_6"].float().numpy(), expected)


def test_torch_is_asked_for_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(StoreError, match="pip install torch"):
        export(tmp_path / "none", tmp_path / "acts.pt", "pt")


def test_what_does_not_fit_into_memory_is_told(tmp_path, monkeypatch):
    write_ragged_run(tmp_path / "run")

    def zeros(shape, dtype):
        raise MemoryError

    monkeypatch.setattr(
        "extraction.exports.pt.np", SimpleNamespace(zeros=zeros, dtype=np.dtype, ndarray=np.ndarray)
    )
    with pytest.raises(StoreError, match=r"layer_6 \[3, 6, 4\] does not fit into memory"):
        export(tmp_path / "run", tmp_path / "acts.pt", "pt")
    assert entries(tmp_path) == {"run"}
