"""Figures of latents against scipy's on the latents themselves; sums that add up."""

import numpy as np
import pytest
from scipy import stats

from extraction.errors import StoreError
from sae import latent_scores, latent_sums
from sae.scores.figures import LatentFigures, q_values
from sae.scores.latent_sums import LatentSums, SumsInParts, total_of
from tests.sae.autoencoders import KINDS, random_autoencoder

ROWS = 5000
D_SAE = 40


@pytest.fixture(scope="module")
def latents() -> tuple[np.ndarray, np.ndarray]:
    """Latents of two groups of together 5,000 rows: rare, dense, large, dead and constant ones."""
    draw = np.random.default_rng(3)
    rate = draw.uniform(0, 0.7, D_SAE)
    rate[:4] = 0.001, 1, 0, 0
    groups = []
    for rows, shift in ((1900, 0.2), (ROWS - 1900, 0)):
        values = draw.gamma(2, 1, (rows, D_SAE)) * 10 ** draw.uniform(-3, 3, D_SAE).round()
        values[:, 5] = values[:, 5].round()  # many ties
        values[:, 6] += 1e4  # a mean far above the spread
        active = draw.random((rows, D_SAE)) < rate + shift * (np.arange(D_SAE) % 3 == 0)
        groups.append((values * active).astype(np.float32))
    for group in groups:
        group[:, 2], group[:, 3] = 0, 2.5
    return groups[0], groups[1]


def check(figures: LatentFigures, first: np.ndarray, second: np.ndarray) -> None:
    """Compare figures with scipy's, latent by latent."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    assert figures.rows == (len(a), len(b))
    freq_a, freq_b = (a > 0).mean(0), (b > 0).mean(0)
    assert np.allclose(figures.frequency_difference, freq_a - freq_b, rtol=0, atol=1e-12)
    assert np.allclose(figures.relative_difference, (freq_a - freq_b) / (freq_b + 1e-6))
    assert np.allclose(figures.mean_difference, a.mean(0) - b.mean(0), rtol=1e-9, atol=1e-12)
    constant = (np.ptp(a, axis=0) == 0) & (np.ptp(b, axis=0) == 0)
    with np.errstate(all="ignore"):
        test = stats.ttest_ind(a[:, ~constant], b[:, ~constant], equal_var=False)
    assert np.isnan(figures.welch_t[constant]).all()
    assert np.isnan(figures.p[constant]).all()
    assert np.allclose(figures.welch_t[~constant], test.statistic, rtol=1e-7, atol=1e-9)
    assert np.allclose(figures.p[~constant], test.pvalue, rtol=1e-6, atol=1e-300)
    u = stats.mannwhitneyu(a, b).statistic
    assert np.allclose(figures.auroc, u / (len(a) * len(b)), rtol=0, atol=1e-12)
    assert not figures.auroc_error.any()


def test_figures_are_scipys(latents):
    check(LatentFigures.of(*map(LatentSums.of, latents)), *latents)


@pytest.mark.parametrize("sizes", [(1,), (7, 1), (64, 1000), (1, 1, 500)])
def test_sums_of_parts_add_up(latents, sizes):
    def in_parts(values: np.ndarray) -> LatentSums:
        parts, start = [], 0
        while start < len(values):
            size = sizes[len(parts) % len(sizes)]
            parts.append(LatentSums.of(values[start : start + size]))
            start += size
        return total_of(parts)

    short = tuple(values[:600] for values in latents)
    check(LatentFigures.of(*map(in_parts, short)), *short)


def test_two_hosts_with_many_batches_each(latents):
    hosts = []
    for host in range(2):
        groups = []
        for values in latents:
            sums = SumsInParts(D_SAE)
            for batch in np.array_split(values[host::2], 23):
                sums.add(batch)
            groups.append(sums.total())
        hosts.append(groups)
    first, second = (a + b for a, b in zip(*hosts, strict=True))
    order = [np.concatenate([values[0::2], values[1::2]]) for values in latents]
    check(LatentFigures.of(first, second), *order)


def test_exchanged_groups(latents):
    a, b = map(LatentSums.of, latents)
    exchanged, wanted = LatentFigures.of(a, b).reversed(), LatentFigures.of(b, a)
    for name in ("rows", "relative_difference", "mean_difference", "welch_t", "p", "q", "auroc"):
        assert np.allclose(getattr(exchanged, name), getattr(wanted, name), equal_nan=True)


@pytest.mark.parametrize("most", [200, 2000])
def test_with_fewer_different_values_the_error_is_told(latents, most):
    exact = LatentFigures.of(*map(LatentSums.of, latents))
    groups = [LatentSums.of(values, most) for values in latents]
    halves = [LatentSums.of(values[:900], most) + LatentSums.of(values[900:], most)
              for values in latents]  # fmt: skip
    for first, second in (groups, halves):
        assert max(len(first.values.keys), len(second.values.keys)) <= most
        rough = LatentFigures.of(first, second)
        apart = np.abs(rough.auroc - exact.auroc)
        assert 0 < apart.max() < 0.5
        assert (apart <= rough.auroc_error + 1e-12).all()
        assert np.median(rough.auroc_error) < (0.1 if most == 200 else 0.002)
        assert np.allclose(rough.welch_t, exact.welch_t, equal_nan=True)


def test_q_is_benjamini_and_hochbergs():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5, 0.04])
    by_hand = []
    known = np.sort(p[~np.isnan(p)])
    for value in p:
        above = [known[k] * len(known) / (k + 1) for k in range(len(known)) if known[k] >= value]
        by_hand.append(min([*above, 1]) if not np.isnan(value) else np.nan)
    assert np.allclose(q_values(p), by_hand, equal_nan=True)
    assert np.isnan(q_values(np.full(3, np.nan))).all()


def test_one_row_in_a_group_has_no_test():
    figures = LatentFigures.of(
        LatentSums.of(np.array([[1.0, 0]])), LatentSums.of(np.array([[0.0, 0], [2, 0], [3, 0]]))
    )
    assert np.isnan(figures.welch_t).all()
    assert np.isnan(figures.q).all()
    assert figures.auroc == pytest.approx([1 / 3, 0.5])


@pytest.mark.parametrize("kind", KINDS)
def test_an_autoencoders_latents(kind):
    sae = random_autoencoder(kind)
    draw = np.random.default_rng(1)
    first = draw.standard_normal((300, sae.d_in)).astype(np.float32)
    second = draw.standard_normal((200, sae.d_in)).astype(np.float32) + 0.3
    bad = second.copy()
    bad[[3, 77], [0, 2]] = np.nan, -np.inf
    found = latent_scores(sae, first, (part for part in np.array_split(bad, 9)))
    good = np.delete(second, [3, 77], axis=0)
    check(found, np.asarray(sae.encode(first)), np.asarray(sae.encode(good)))
    total = latent_sums(sae, first[:100]) + latent_sums(sae, first[100:])
    assert total.rows == 300
    assert np.array_equal(total.active, latent_sums(sae, first).active)


def test_refusals():
    one, none = LatentSums.of(np.ones((2, 3))), LatentSums.empty(3)
    with pytest.raises(StoreError, match="second group has no row"):
        LatentFigures.of(one, none)
    with pytest.raises(StoreError, match="first group has no row"):
        LatentFigures.of(none, one)
    with pytest.raises(StoreError, match="3 and of 4"):
        one + LatentSums.empty(4)
    with pytest.raises(StoreError, match="first group has 3 latents and the second 4"):
        LatentFigures.of(one, LatentSums.of(np.ones((2, 4))))
