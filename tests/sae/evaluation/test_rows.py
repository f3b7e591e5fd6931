"""Figures of rows against a plain float64 computation on all of them at once."""

import dataclasses

import numpy as np
import pytest

from extraction.errors import StoreError
from sae.evaluation.rows import RowEvaluator, evaluate_rows
from tests.sae.autoencoders import KINDS, expected, random_autoencoder

ROWS, LIMIT = 10_000, 20.0


def rows_with_sinks(width: int, seed: int = 5) -> np.ndarray:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(ROWS, width)) + 3 * draw.normal(size=width)
    rows[::97] *= 40  # attention sinks
    return rows


def plain_figures(wanted: np.ndarray, made: np.ndarray, latents: np.ndarray) -> dict[str, float]:
    error = ((wanted - made) ** 2).sum(1).mean()
    fvu = error / ((wanted**2).sum(1).mean() - (wanted.mean(0) ** 2).sum())
    norms, made_norms = np.linalg.norm(wanted, axis=1), np.linalg.norm(made, axis=1)
    products = (wanted * made).sum(1)
    return {
        "rows": len(wanted),
        "explained_variance": 1 - fvu,
        "fvu": fvu,
        "mse": error,
        "l0": (latents > 0).sum(1).mean(),
        "cosine": (products / norms / made_norms).mean(),
        "norm_ratio": (made_norms / norms).mean(),
        "bias": (made_norms**2).mean() / products.mean(),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_figures_equal_a_plain_float64_computation(kind, dtype):
    sae = random_autoencoder(kind, dtype=dtype)
    rows = rows_with_sinks(6).astype(dtype)
    targets = rows_with_sinks(8, seed=6).astype(dtype) if kind == "transcoder" else rows
    evaluator = RowEvaluator(sae, LIMIT)
    for start in range(0, ROWS, 1700):
        part = slice(start, start + 1700)
        evaluator.add(rows[part], targets[part] if kind == "transcoder" else None)
    found = evaluator.result()

    latents, made = expected(sae, rows)
    wanted = targets.astype(np.float64)
    usual = np.linalg.norm(rows.astype(np.float64), axis=1) <= LIMIT
    assert 100 <= (~usual).sum() < 200
    close = {"rel": 1e-10} if dtype is np.float64 else {"rel": 1e-5}
    for figures, of in ((found.all_rows, slice(None)), (found.without_sinks, usual)):
        plain = plain_figures(wanted[of], made[of], latents[of])
        assert dataclasses.asdict(figures) == pytest.approx(plain, **close)
    densities = (latents[usual] > 0).mean(0)
    np.testing.assert_allclose(found.densities, densities, atol=0 if dtype is np.float64 else 2e-4)
    assert found.dead == (densities == 0).sum()


def test_a_mean_reconstruction_explains_nothing_and_the_rows_themselves_everything():
    rows = rows_with_sinks(4)
    sae = random_autoencoder("standard", d_in=4, d_sae=8, dtype=np.float64)
    zero = {name: np.zeros_like(array) for name, array in sae.arrays().items()}
    mean = dataclasses.replace(sae, **zero | {"b_dec": rows.mean(0)})
    both = np.concatenate([np.eye(4), -np.eye(4)])
    itself = dataclasses.replace(sae, **zero | {"W_enc": both.T.copy(), "W_dec": both})
    found = evaluate_rows({"mean": mean, "itself": itself}, [rows[:3000], rows[3000:]])
    assert found["mean"].all_rows.fvu == pytest.approx(1, abs=1e-12)
    assert found["mean"].dead == 8
    assert found["mean"].histogram() == []
    assert found["itself"].all_rows.fvu == pytest.approx(0, abs=1e-12)
    assert found["itself"].all_rows.l0 == 4
    assert found["itself"].all_rows.bias == pytest.approx(1)


def test_the_histogram_counts_each_living_latent_once():
    sae = random_autoencoder("jumprelu", d_sae=64)
    found = evaluate_rows({"a": sae}, rows_with_sinks(6).astype(np.float32))["a"]
    alive = found.densities[found.densities > 0]
    assert sum(latents for _, _, latents in found.histogram()) == len(alive)
    for low, high, latents in found.histogram():
        inside = (alive >= 10.0**low) & ((alive < 10.0**high) | (high == 0))
        assert latents == inside.sum()


def test_rows_that_are_not_finite_are_counted_and_left_out():
    sae, rows = random_autoencoder("topk"), rows_with_sinks(6).astype(np.float32)
    good = evaluate_rows({"a": sae}, rows[5:])["a"]
    rows[:5, 2] = [np.nan, np.inf, -np.inf, np.nan, np.nan]
    found = evaluate_rows({"a": sae}, rows)["a"]
    assert found.not_finite == 5
    assert found.all_rows == good.all_rows


def test_no_rows_and_rows_of_another_width_are_refused():
    sae = random_autoencoder("topk")
    with pytest.raises(StoreError, match="no rows"):
        evaluate_rows({"a": sae}, [])
    with pytest.raises(StoreError, match="last axis must be d_in=6"):
        evaluate_rows({"a": sae}, np.zeros((3, 7), np.float32))
    with pytest.raises(StoreError, match="max_norm"):
        evaluate_rows({"a": sae}, np.zeros((3, 6), np.float32), max_norm=0.0)
