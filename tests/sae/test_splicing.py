"""`splice`: the intervention does to rows what the autoencoder does."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from extraction.errors import StoreError
from sae import splice
from tests.sae.autoencoders import KINDS, random_autoencoder

ROWS = np.random.default_rng(3).normal(size=(2, 40, 6)).astype(np.float32)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "transcoder"])
def test_it_reconstructs_as_the_autoencoder(kind):
    sae = random_autoencoder(kind)
    found = np.asarray(splice(sae).change(jnp.asarray(ROWS)))
    np.testing.assert_allclose(found, sae(ROWS), rtol=1e-4, atol=1e-5)


def test_large_rows_stay():
    sae = random_autoencoder("jumprelu")
    norms = np.linalg.norm(ROWS, axis=-1)
    found = np.asarray(splice(sae, max_norm=2.0).change(jnp.asarray(ROWS)))
    np.testing.assert_array_equal(found[norms > 2], ROWS[norms > 2])
    assert np.abs(found - ROWS)[norms <= 2].max(axis=-1).min() > 0


def test_a_transcoder_is_refused():
    with pytest.raises(StoreError, match="is a transcoder"):
        splice(random_autoencoder("transcoder"))
    named = {"hook_point": "layer_1", "hook_point_out": "layers.2.mlp"}
    with pytest.raises(StoreError, match="is a transcoder"):
        splice(dataclasses.replace(random_autoencoder("standard"), metadata=named))
