"""Figures of each latent in two groups of rows, from the groups' sums.

With f and m a latent's frequency (part of the rows in which it is above 0) and its mean over all
rows of a group, and groups A and B:

    frequency_difference   f_A - f_B
    relative_difference    (f_A - f_B) / (f_B + 1e-6)
    mean_difference        m_A - m_B
    welch_t, p             Welch's t and its two-sided p, scipy's ttest_ind(equal_var=False)
    q                      p after Benjamini and Hochberg, over the latents that have a p
    auroc                  probability that the latent is larger in a row of A than in one of B;
                           ties count half

A latent that is constant in both groups has neither t nor p; with one row in a group none has.
"""

import dataclasses
import functools

import numpy as np

from extraction.errors import StoreError
from sae.scores.latent_sums import LatentSums

LEAST_FREQUENCY = 1e-6
"""Added to the denominator of a relative difference."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatentFigures:
    """Figures of `d_sae` latents, float64 arrays `[d_sae]` with NaN where there is none.

    Attributes:
        rows: numbers of rows of both groups.
        frequency_first: frequencies in the first group.
        frequency_second: frequencies in the second group.
        mean_first: means in the first group.
        mean_second: means in the second group.
        welch_t: Welch's t, above 0 where the first group's mean is larger.
        p: two-sided p of `welch_t`.
        auroc: area under the ROC curve, above 0.5 where the first group's values are larger.
        auroc_error: most that `auroc` may be off by; 0 if all different values were counted apart.
    """

    rows: tuple[int, int]
    frequency_first: np.ndarray
    frequency_second: np.ndarray
    mean_first: np.ndarray
    mean_second: np.ndarray
    welch_t: np.ndarray
    p: np.ndarray
    auroc: np.ndarray
    auroc_error: np.ndarray

    @classmethod
    def of(cls, first: LatentSums, second: LatentSums) -> "LatentFigures":
        """Return the figures of two groups.

        Args:
            first: sums of the first group, at least one row.
            second: sums of the second group, at least one row.

        Raises:
            StoreError: a group has no row, or the numbers of latents differ.
        """
        if first.d_sae != second.d_sae:
            raise StoreError(
                f"the first group has {first.d_sae} latents and the second {second.d_sae};"
                " give sums of one autoencoder"
            )
        for name, group in (("first", first), ("second", second)):
            if not group.rows:
                raise StoreError(f"the {name} group has no row")
        t, p = _welch(first, second)
        auroc, error = _auroc(first, second)
        return cls(
            rows=(first.rows, second.rows),
            frequency_first=first.frequency,
            frequency_second=second.frequency,
            mean_first=first.mean,
            mean_second=second.mean,
            welch_t=t,
            p=p,
            auroc=auroc,
            auroc_error=error,
        )

    def reversed(self) -> "LatentFigures":
        """Return the figures with the groups exchanged."""
        return LatentFigures(
            rows=(self.rows[1], self.rows[0]),
            frequency_first=self.frequency_second,
            frequency_second=self.frequency_first,
            mean_first=self.mean_second,
            mean_second=self.mean_first,
            welch_t=-self.welch_t,
            p=self.p,
            auroc=1 - self.auroc,
            auroc_error=self.auroc_error,
        )

    @property
    def frequency_difference(self) -> np.ndarray:
        """Frequency in the first group less that in the second."""
        return self.frequency_first - self.frequency_second

    @property
    def relative_difference(self) -> np.ndarray:
        """`frequency_difference` over the frequency in the second group and 1e-6."""
        return self.frequency_difference / (self.frequency_second + LEAST_FREQUENCY)

    @property
    def mean_difference(self) -> np.ndarray:
        """Mean in the first group less that in the second."""
        return self.mean_first - self.mean_second

    @functools.cached_property
    def q(self) -> np.ndarray:
        """`p` after Benjamini and Hochberg, over the latents that have one."""
        return q_values(self.p)


def q_values(p: np.ndarray) -> np.ndarray:
    """Return Benjamini and Hochberg's q of each p `[N]`; what is NaN is no test, and stays NaN."""
    from scipy.stats import false_discovery_control

    found = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        found[known] = false_discovery_control(p[known])
    return found


def _welch(first: LatentSums, second: LatentSums) -> tuple[np.ndarray, np.ndarray]:
    """Return t and p, `[d_sae]`."""
    from scipy.stats import ttest_ind_from_stats

    with np.errstate(all="ignore"):
        t, p = ttest_ind_from_stats(
            first.mean, np.sqrt(first.variance), first.rows,
            second.mean, np.sqrt(second.variance), second.rows,
            equal_var=False,
        )  # fmt: skip
    some = (first.variance > 0) | (second.variance > 0)
    return np.where(some, t, np.nan), np.where(some, p, np.nan)


def _auroc(first: LatentSums, second: LatentSums) -> tuple[np.ndarray, np.ndarray]:
    """Return the area under the ROC curve and how far it may be off, `[d_sae]`."""
    dropped = max(first.values.dropped_bits, second.values.dropped_bits)
    a, b = (group.values.with_dropped(dropped) for group in (first, second))
    keys = np.union1d(a.keys, b.keys)
    of_a, of_b = np.zeros(len(keys)), np.zeros(len(keys))
    of_a[np.searchsorted(keys, a.keys)] = a.counts
    of_b[np.searchsorted(keys, b.keys)] = b.counts
    latent = (keys >> np.uint64(32)).astype(np.int64)
    zeros_a, zeros_b = (group.rows - group.active for group in (first, second))
    smaller = np.cumsum(of_b) - of_b
    smaller -= smaller[np.searchsorted(latent, latent)] if len(keys) else 0
    wins = np.bincount(latent, of_a * (zeros_b[latent] + smaller + of_b / 2), first.d_sae)
    pairs = float(first.rows) * second.rows
    auroc = (wins + zeros_a * (zeros_b / 2)) / pairs
    ties = np.bincount(latent, of_a * of_b / 2, first.d_sae)
    return auroc, ties / pairs if dropped else np.zeros(first.d_sae)
