"""Latents and reconstructions equal plain float64 definitions, for numpy and jax, any shape."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from extraction.errors import StoreError
from sae import SparseAutoencoder
from tests.sae.autoencoders import KINDS, expected, random_autoencoder

ROWS = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32) * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lib", ["numpy", "jax", "jax.jit"])
def test_latents_and_reconstructions(kind, lib):
    sae = random_autoencoder(kind)
    rows = ROWS if lib == "numpy" else jnp.asarray(ROWS)
    encode, decode = (jax.jit(sae.encode), jax.jit(sae.decode)) if lib == "jax.jit" else (
        sae.encode, sae.decode)  # fmt: skip
    latents = encode(rows)
    outputs = decode(latents)
    assert type(latents) is type(rows)
    assert type(outputs) is type(rows)
    assert latents.dtype == outputs.dtype == np.float32
    for found, right in zip((latents, outputs), expected(sae, ROWS), strict=True):
        np.testing.assert_allclose(found, right, rtol=0, atol=2e-5)
    assert 0 < (np.asarray(latents) > 0).mean() < 1
    np.testing.assert_array_equal(sae(ROWS), sae.decode(sae.encode(ROWS)))


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_axes(kind):
    sae = random_autoencoder(kind)
    flat = sae.encode(ROWS)
    assert sae.encode(ROWS[0]).shape == (16,)
    for shape in ((8, 5), (2, 4, 5)):
        for lib in (np, jnp):
            latents = sae.encode(lib.asarray(ROWS.reshape(*shape, 6)))
            np.testing.assert_allclose(latents.reshape(40, 16), flat, rtol=0, atol=1e-5)
            assert sae.decode(latents).shape == (*shape, sae.d_out)
    assert sae(ROWS[:0]).shape == (0, sae.d_out)
    assert jnp.asarray(sae(jnp.asarray(ROWS[0]))).shape == (sae.d_out,)


def test_dtypes_of_rows():
    sae = random_autoencoder("topk")
    double = sae.encode(ROWS.astype(np.float64))
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, expected(sae, ROWS)[0], rtol=0, atol=1e-12)
    half = ROWS.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(sae.encode(half), sae.encode(half.astype(np.float32)))
    np.testing.assert_array_equal(
        sae.encode(ROWS.astype(np.float16)),
        sae.encode(ROWS.astype(np.float16).astype(np.float32)),
    )
    assert sae.encode(jnp.asarray(ROWS, jnp.bfloat16)).dtype == jnp.float32
    for wrong in (ROWS.astype(int), ROWS.view(np.uint32), jnp.zeros((2, 6), jnp.int32)):
        with pytest.raises(StoreError, match=r"^rows are u?int\d\d; give one of float16"):
            sae.encode(wrong)
    with pytest.raises(StoreError, match=r"^rows are a list; give a numpy or jax array$"):
        sae.encode(ROWS.tolist())


def test_a_threshold_is_passed_strictly():
    one = np.ones(1, np.float32)
    sae = SparseAutoencoder(
        architecture="jumprelu", W_enc=one[:, None], W_dec=one[:, None], b_enc=0 * one,
        b_dec=0 * one, threshold=one,
    )  # fmt: skip
    above = np.nextafter(one, 2 * one)
    for lib in (np, jnp):
        assert sae.encode(lib.asarray(one)) == 0
        assert sae.encode(lib.asarray(above)) == above


def test_equal_pre_activations_keep_exactly_k_and_the_first():
    weights = np.ones((2, 5), np.float32)
    sae = SparseAutoencoder(
        architecture="topk", k=3, W_enc=weights, W_dec=weights.T.copy(),
        b_enc=np.array([0, 0, 1, 0, 0], np.float32), b_dec=np.zeros(2, np.float32),
    )  # fmt: skip
    rows = np.array([[1, 1], [-2, -2], [0, 0]], np.float32)
    right = [[2, 2, 3, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
    np.testing.assert_array_equal(sae.encode(rows), right)
    np.testing.assert_array_equal(sae.encode(jnp.asarray(rows)), right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_stays_visible_and_alone(kind, bad):
    sae = random_autoencoder(kind)
    rows = ROWS.copy()
    rows[3, 2] = bad
    for lib in (np, jnp):
        with np.errstate(invalid="ignore"):
            found = np.asarray(sae(lib.asarray(rows)))
        assert not np.isfinite(found[3]).all()
        assert np.isfinite(np.delete(found, 3, axis=0)).all()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (np.zeros((2, 7)), "rows are [2, 7]; their last axis must be d_in=6"),
        (np.zeros(()), "rows are []; their last axis must be d_in=6"),
        (jnp.zeros((6, 5)), "rows are [6, 5]; their last axis must be d_in=6"),
    ],
)
def test_wrong_widths_are_told_in_one_line(rows, told):
    sae = random_autoencoder("standard")
    with pytest.raises(StoreError) as error:
        sae.encode(rows)
    assert str(error.value) == told
    with pytest.raises(StoreError, match=r"^latents are \[4, 6\].*d_sae=16$"):
        sae.decode(np.zeros((4, 6)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture": "batch_topk"}, "none of standard, topk, jumprelu"),
        ({"architecture": "jumprelu"}, "no threshold for jumprelu"),
        ({"threshold": np.zeros(16, np.float32)}, "a threshold for standard"),
        ({"architecture": "topk"}, "k=None"),
        ({"k": 3}, "topk has a k, and only it"),
        ({"architecture": "topk", "k": 17}, "k=17 is not between 1 and d_sae=16"),
        ({"architecture": "topk", "k": 0}, "k=0 is not between"),
        ({"rescale_acts_by_decoder_norm": True}, "for topk only"),
        ({"b_enc": np.zeros(15, np.float32)}, r"b_enc is \[15\]; .* need \[16\]"),
        ({"W_dec": np.zeros((15, 6), np.float32)}, r"W_dec is \[15, 6\].* need \[16, 6\]"),
        ({"W_dec": np.zeros((16, 7), np.float32)}, r"b_dec is \[6\].* need \[7\]"),
        ({"W_enc": np.zeros(6, np.float32)}, "W_enc is .6., not a matrix"),
        ({"W_enc": np.zeros((6, 16), np.float16)}, "W_enc is float16; numpy float32 or float64"),
        ({"b_dec": [0.0] * 6}, "b_dec is list; numpy float32 or float64"),
        (
            {"W_dec": np.zeros((16, 7), np.float32), "b_dec": np.zeros(7, np.float32)},
            "apply_b_dec_to_input=True with d_in=6 and d_out=7",
        ),
    ],
)
def test_arrays_and_settings_that_do_not_fit(changes, told):
    with pytest.raises(StoreError, match=told) as error:
        dataclasses.replace(random_autoencoder("standard"), **changes)
    assert "\n" not in str(error.value)


def test_a_latent_without_a_direction_adds_nothing():
    sae = random_autoencoder("topk rescaled")
    sae.W_dec[5] = 0
    for lib in (np, jnp):
        assert np.isfinite(np.asarray(sae(lib.asarray(ROWS)))).all()


def test_its_repr_names_its_sizes():
    sae = dataclasses.replace(random_autoencoder("topk"), metadata={"hook_point": "layer_6"})
    assert repr(sae) == "SparseAutoencoder(topk, k=3: 6 -> 16 latents -> 6, of layer_6)"
