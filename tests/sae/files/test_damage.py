"""Files that are damaged, hostile or of something else: one line that names the file, no traceback.

`test_torch_file` has the cases of `ae.pt` itself.
"""

import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from extraction.errors import StoreError
from sae import load, save
from sae.files import WRITTEN
from tests.sae.autoencoders import random_autoencoder

WEIGHTS = {
    "saelens": "sae_weights.safetensors",
    "dictionary_learning": "ae.pt",
    "sparsify": "sae.safetensors",
}
CONFIGS = {"saelens": "cfg.json", "dictionary_learning": "config.json", "sparsify": "cfg.json"}


@pytest.fixture(params=WRITTEN)
def folder(request, tmp_path) -> Path:
    """A good folder of each format, whose name is the format's."""
    save(random_autoencoder("topk"), tmp_path / request.param, format=request.param)
    return tmp_path / request.param


def assert_refused(folder: Path, told: str) -> None:
    with pytest.raises(StoreError, match=told) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(folder))


def test_weights_that_are_cut_off_or_longer(folder):
    file = folder / WEIGHTS[folder.name]
    whole = file.read_bytes()
    for length in {*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}:
        file.write_bytes(whole[:length])
        assert_refused(folder, "damaged|no whole file|file of torch.save|is missing in the archive")
    file.write_bytes(whole)
    load(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_weights_that_are_not_finite(folder, name, bad):
    sae = random_autoencoder("topk")
    getattr(sae, name)[-1] = bad
    shutil.rmtree(folder)
    save(sae, folder, format=folder.name)
    assert_refused(folder, "has numbers that are not finite")


def test_weights_behind_a_link_or_a_fifo(folder, tmp_path):
    file = folder / WEIGHTS[folder.name]
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert_refused(folder, "link")
    file.unlink()
    os.mkfifo(file)
    assert_refused(folder, "regular file|FIFO|not a file")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ("3", "holds no JSON object"),
        ("[" * 100_000, "is not JSON: it is nested more than"),
        (
            '{"architecture": "' + "x\\n" * 10_000 + '", "trainer": {}, "activation": "y"}',
            "'x|'y'|N",
        ),
        (" " * (1 << 20) + "{}", "at most 1,048,576 are allowed"),
    ],
    ids=["empty", "cut", "list", "number", "deep", "long", "large"],
)
def test_configurations_of_something_else(folder, text, told):
    (folder / CONFIGS[folder.name]).write_text(text)
    if "at most" in told:  # told of the file alone
        with pytest.raises(StoreError, match=told):
            load(folder)
        return
    assert_refused(folder, told)


FIELDS = {
    "saelens": [
        ({"architecture": "gated"}, "architecture 'gated' is not read"),
        ({"architecture": ["topk"]}, "is not read"),
        ({"architecture": "jumprelu"}, "no threshold for jumprelu"),
        ({"k": "4"}, "k=None for topk"),
        ({"k": True}, "k=None for topk"),
        ({"k": 10**30}, "is not between 1 and"),
        ({"k": -1}, "is not between 1 and"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations 'hook_z'"),
        ({"activation_fn_str": "topk"}, "before version 6"),
        ({"activation_fn": {"a": 1}}, "before version 6"),
    ],
    "dictionary_learning": [
        ({"trainer": {"dict_class": "GatedAutoEncoder"}}, "dict_class is 'GatedAutoEncoder'"),
        ({"trainer": {"dict_class": ["x"]}}, "dict_class is"),
        ({"trainer": 3}, "dict_class is None"),
        ({"trainer": {"dict_class": "AutoEncoder"}}, "has the tensors"),
        ({"trainer": {"dict_class": "AutoEncoderTopK", "k": 5}}, "and trainer.k in"),
        ({"trainer": {"dict_class": "AutoEncoderTopK", "k": "3"}}, "and trainer.k in"),
    ],
    "sparsify": [
        ({"activation": "groupmax"}, "activation is 'groupmax'"),
        ({"activation": None}, "activation is None"),
        ({"signed": True}, "signed is True"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"k": 0}, "is not between 1 and"),
        ({"k": 4.0}, "k is 4.0"),
        ({"transcode": "yes"}, "transcode 'yes'"),
    ],
}


@pytest.mark.parametrize(
    ("format", "fields", "told"),
    [(format, *case) for format, cases in FIELDS.items() for case in cases],
)
def test_fields_of_configurations(format, fields, told, tmp_path):
    save(random_autoencoder("topk"), tmp_path / format, format=format)
    path = tmp_path / format / CONFIGS[format]
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert_refused(tmp_path / format, told)


@pytest.mark.parametrize("format", ["saelens", "sparsify"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("b_dec"), "has the tensors"),
        (lambda tensors: tensors.update(W_skip=np.zeros((6, 6), np.float32)), "has the tensors"),
        (lambda tensors: tensors.update(b_dec=np.zeros(7, np.float32)), r"b_dec is \[7\]"),
        (lambda tensors: tensors.update(b_dec=np.zeros((6, 1), np.float32)), r"b_dec is \[6, 1\]"),
        (lambda tensors: tensors.update(b_dec=np.zeros((), np.float32)), r"b_dec is \[\]"),
        (lambda tensors: tensors.update(W_dec=tensors["W_dec"].T.copy()), "W_dec|b_dec"),
        (lambda tensors: tensors.update(W_dec=np.zeros((0, 6), np.float32)), "W_dec"),
        (lambda tensors: tensors.update(b_dec=np.zeros(6, np.int64)), "'b_dec' is I64"),
    ],
)
def test_tensors_that_do_not_fit(format, change, told, tmp_path):
    save(random_autoencoder("topk"), tmp_path / format, format=format)
    path = tmp_path / format / WEIGHTS[format]
    tensors = dict(safetensors.numpy.load_file(path))
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    assert_refused(tmp_path / format, told)


def test_a_header_that_claims_more_than_there_is(tmp_path):
    save(random_autoencoder("topk"), tmp_path / "saelens")
    path = tmp_path / "saelens" / WEIGHTS["saelens"]
    huge = {"W_enc": {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 1 << 62]}}
    header = json.dumps(huge).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    assert_refused(tmp_path / "saelens", "is damaged: tensors of")
    path.write_bytes((1 << 60).to_bytes(8, "little") + bytes(100))
    assert_refused(tmp_path / "saelens", "is damaged: a header of")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_other_float_types_are_widened(dtype, tmp_path):
    sae = random_autoencoder("standard", dtype=np.float64)
    save(sae, tmp_path / "sae")
    assert load(tmp_path / "sae").W_enc.dtype == np.float64
    path = tmp_path / "sae" / WEIGHTS["saelens"]
    kind = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}[dtype]
    arrays = {name: array.astype(kind) for name, array in sae.arrays().items()}
    header, data = {}, b""
    for name, array in arrays.items():
        begin, data = len(data), data + array.tobytes()
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    for name, array in load(tmp_path / "sae").arrays().items():
        assert array.dtype == (np.float64 if dtype == "F64" else np.float32)
        np.testing.assert_array_equal(array, arrays[name].astype(array.dtype))
