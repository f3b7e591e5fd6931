"""A folded SAE gives for raw rows what the SAE gave for prepared ones; checked in float64."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extraction.errors import StoreError
from sae.folds import fold_b_dec, fold_decoder_norm, fold_mean, fold_scale, unfold_b_dec
from tests.sae.autoencoders import KINDS, expected, random_autoencoder

SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.floats(1e-3, 1e3)
SAES = st.builds(lambda kind, seed: random_autoencoder(kind, seed, dtype=np.float64),
                 st.sampled_from(KINDS), SEEDS)  # fmt: skip
NO_TRANSCODERS = SAES.filter(lambda sae: sae.d_in == sae.d_out)


def rows_of(sae, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(12, sae.d_in)) * 3


def assert_same(found: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-9 * max(1, np.abs(right).max()))


@given(NO_TRANSCODERS, SCALES, SEEDS)
def test_scale(sae, scale, seed):
    rows = rows_of(sae, seed)
    folded = fold_scale(sae, scale)
    latents, outputs = expected(sae, rows)
    norms = 1 / scale if sae.rescale_acts_by_decoder_norm else 1
    assert_same(folded.encode(rows / scale), latents * norms)
    assert_same(folded(rows / scale) * scale, outputs)


@given(NO_TRANSCODERS, SEEDS)
def test_mean(sae, seed):
    rows, mean = rows_of(sae, seed), rows_of(sae, seed + 1)[0]
    folded = fold_mean(sae, mean)
    latents, outputs = expected(sae, rows)
    assert_same(folded.encode(rows + mean), latents)
    assert_same(folded(rows + mean), outputs + mean)


@given(NO_TRANSCODERS, SCALES, SEEDS)
def test_scale_then_mean_takes_raw_rows(sae, scale, seed):
    raw, mean = rows_of(sae, seed), rows_of(sae, seed + 1)[0]
    folded = fold_mean(fold_scale(sae, scale), mean)
    assert_same(folded(raw), expected(sae, (raw - mean) * scale)[1] / scale + mean)


@given(SEEDS, SCALES, SCALES, SEEDS)
def test_a_transcoder_has_a_scale_and_a_mean_for_its_target(seed, scale, target_scale, rows_seed):
    sae = random_autoencoder("transcoder", seed, dtype=np.float64)
    raw, mean, target_mean = rows_of(sae, rows_seed), np.full(sae.d_in, 0.3), np.full(sae.d_out, -2)
    folded = fold_mean(
        fold_scale(sae, scale, target_scale=target_scale), mean, target_mean=target_mean
    )
    prepared = (raw - mean) * scale
    assert_same(folded.encode(raw), expected(sae, prepared)[0])
    assert_same(folded(raw), expected(sae, prepared)[1] / target_scale + target_mean)


@given(SAES.filter(lambda sae: sae.k is None or sae.rescale_acts_by_decoder_norm), SEEDS)
def test_decoder_norm(sae, seed):
    sae.W_dec[3] = 0  # a latent without a direction
    rows = rows_of(sae, seed)
    folded = fold_decoder_norm(sae)
    latents, outputs = expected(sae, rows)
    norms = 1 if sae.rescale_acts_by_decoder_norm else np.linalg.norm(sae.W_dec, axis=1)
    assert_same(folded.encode(rows), latents * norms)
    assert_same(folded(rows), outputs)
    assert not folded.rescale_acts_by_decoder_norm
    assert_same(np.linalg.norm(folded.W_dec, axis=1), np.arange(sae.d_sae) != 3)


@given(SAES, SEEDS)
def test_b_dec(sae, seed):
    rows = rows_of(sae, seed)
    folded = fold_b_dec(sae)
    assert not folded.apply_b_dec_to_input
    for same in (folded, unfold_b_dec(folded) if sae.d_in == sae.d_out else folded):
        for found, right in zip((same.encode(rows), same(rows)), expected(sae, rows), strict=True):
            assert_same(found, right)


def test_all_folds_together_in_float32():
    sae = dataclasses.replace(random_autoencoder("jumprelu"), metadata={"run_id": "r"})
    rows = np.random.default_rng(2).normal(size=(50, 6)).astype(np.float32)
    mean = rows[0] * 10
    folded = fold_b_dec(fold_decoder_norm(fold_mean(fold_scale(sae, 0.25), mean)))
    assert folded.W_enc.dtype == folded.b_enc.dtype == np.float32
    assert folded.metadata == {"run_id": "r"}
    right = expected(sae, (rows - mean) * 0.25)[1] / 0.25 + mean
    np.testing.assert_allclose(folded(rows), right, rtol=0, atol=1e-5 * np.abs(right).max())


def test_folds_that_would_change_something_are_refused():
    with pytest.raises(StoreError, match="other latents would be chosen"):
        fold_decoder_norm(random_autoencoder("topk"))
    sae = random_autoencoder("standard")
    for scale in (0, -1, np.nan, np.inf):
        with pytest.raises(StoreError, match="a positive number"):
            fold_scale(sae, scale)
    for mean in (np.zeros(5), np.full(6, np.nan), np.float64(1)):
        with pytest.raises(StoreError, match=r"mean \[.*\] must be finite, \[6\]"):
            fold_mean(sae, mean)
    with pytest.raises(StoreError, match="need apply_b_dec_to_input=False"):
        fold_scale(sae, 2, target_scale=3)
    with pytest.raises(StoreError, match="need apply_b_dec_to_input=False"):
        fold_mean(sae, np.zeros(6), target_mean=np.ones(6))
    with pytest.raises(StoreError, match="width 8 cannot be subtracted from rows of 6"):
        unfold_b_dec(random_autoencoder("transcoder"))
