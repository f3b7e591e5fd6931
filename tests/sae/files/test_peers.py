"""Files of SAELens, dictionary_learning and sparsify give their own latents here.

`tests/peers/sae_formats.py` wrote them, and reads in those libraries what `write_ours` wrote.
"""

import json

import numpy as np
import pytest

from extraction.errors import StoreError
from sae import SparseAutoencoder
from sae.files import WRITTEN, load, save
from tests.sae.autoencoders import expected
from tests.sae.files.write_ours import METADATA, OURS, cases, rows_of

THEIRS = OURS.parent / "theirs"
REFUSED = {
    "saelens-gated": "architecture 'gated' is not read",
    "saelens-skip_transcoder": "architecture 'skip_transcoder' is not read",
    "dictionary_learning-GatedAutoEncoder": "dict_class is 'GatedAutoEncoder'",
    "sparsify-skip_transcoder": "skip_connection is True",
    "sparsify-groupmax": "activation is 'groupmax'",
}
FOLDERS = {
    path.parent: path.relative_to(THEIRS).parts[0] for path in sorted(THEIRS.rglob("values.npz"))
}
READ = [folder for folder, name in FOLDERS.items() if name not in REFUSED]
OUR_CASES = dict(cases())


def test_every_format_and_refusal_has_a_peer():
    assert {name.partition("-")[0] for name in FOLDERS.values()} == set(WRITTEN)
    assert set(REFUSED) <= set(FOLDERS.values())
    assert len(READ) == 17


@pytest.mark.parametrize("folder", READ, ids=FOLDERS.get)
def test_theirs_give_their_latents_and_reconstructions(folder):
    sae = load(folder)
    values = np.load(folder / "values.npz")
    latents = sae.encode(values["rows"])
    np.testing.assert_allclose(latents, values["latents"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(sae.decode(latents), values["outputs"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(latents > 0, values["latents"] > 0)


@pytest.mark.parametrize(
    "folder", [folder for folder in FOLDERS if folder not in READ], ids=FOLDERS.get
)
def test_theirs_that_cannot_be_held_are_refused_by_name(folder):
    with pytest.raises(StoreError, match=REFUSED[FOLDERS[folder]]) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "hook_point", "model"),
    [
        ("saelens-standard", "layer_6", "Qwen/Qwen2.5-0.5B"),
        ("dictionary_learning-BatchTopKSAE", "layer_12", "Qwen/Qwen2.5-0.5B"),
        ("sparsify-sae/layers.12.mlp", "layers.12.mlp", None),
    ],
)
def test_theirs_say_which_hook_point_they_are_of(name, hook_point, model):
    metadata = load(THEIRS / name).metadata
    assert metadata["hook_point"] == hook_point
    assert metadata.get("model_name") == model
    assert metadata["hook_name"].startswith("blocks.")
    assert metadata["hf_hook_name"].startswith("model.layers.")


def test_the_output_of_a_transcoder_is_what_a_folder_of_sparsify_names():
    metadata = load(THEIRS / "sparsify-transcoder/layers.12.mlp").metadata
    assert metadata["hook_point_out"] == "layers.12.mlp"
    assert "hook_point" not in metadata


@pytest.mark.parametrize("name", OUR_CASES)
def test_ours_are_still_what_the_other_libraries_read(name, tmp_path):
    """The committed files, which they read, hold what is written today."""
    sae: SparseAutoencoder = OUR_CASES[name]
    save(sae, tmp_path / name, format=name.partition("-")[0])
    today, committed = load(tmp_path / name), load(OURS / name)
    assert {path.name for path in (tmp_path / name).iterdir()} == {
        path.name for path in (OURS / name).iterdir()
    } - {"values.npz"}
    assert today.metadata == committed.metadata
    for path in (tmp_path / name).glob("*.json"):
        assert json.loads(path.read_text()) == json.loads((OURS / name / path.name).read_text())
    assert METADATA.items() <= today.metadata.items()
    assert (today.k, today.apply_b_dec_to_input) == (committed.k, committed.apply_b_dec_to_input)
    for key, array in today.arrays().items():
        np.testing.assert_allclose(array, committed.arrays()[key], rtol=1e-6, atol=1e-7)
    for found, right in zip(
        (today.encode(rows_of(sae)), today(rows_of(sae))), expected(sae, rows_of(sae)), strict=True
    ):
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)
