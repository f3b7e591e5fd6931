"""What one pass over the rows keeps of every latent; passes over different rows add up.

Memory is 20 bytes for each kept row and 24 for each latent, whatever the number of rows.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sae.latents.kept_rows import KeptRows, activation_keys, random_keys

SAMPLE_OF_RANGES = 4
"""Random rows that are kept of each latent, for each one that is shown of a range."""


class LatentPass:
    """Sums, top rows and random rows of latents.

    Args:
        latents: numbers of the latents; None: all.
        d_sae: number of latents of the autoencoder.
        top: rows of largest activation that are kept.
        sampled: random active rows that are kept.
        seed: seed of the random rows.

    Attributes:
        numbers: `[L]` int64, numbers of the latents.
        rows: number of finite rows.
        not_finite: rows left out as they or their latents are not finite.
        left_out: number of rows that each filter left out.
        active: `[L]` int64, rows in which a latent is above 0.
        total: `[L]` float64, sum of the activations.
        top: rows of largest activation.
        sample: random active rows.
    """

    def __init__(
        self, latents: Sequence[int] | None, d_sae: int, *, top: int, sampled: int, seed: int
    ):
        self.numbers = np.arange(d_sae) if latents is None else np.array(latents, np.int64)
        self._all, self._seed = latents is None, seed
        self.rows = self.not_finite = 0
        self.left_out: Counter[str] = Counter()
        self.active = np.zeros(len(self.numbers), np.int64)
        self.total = np.zeros(len(self.numbers))
        self.top = KeptRows(len(self.numbers), top)
        self.sample = KeptRows(len(self.numbers), sampled)

    def add(self, numbers: np.ndarray, latents: np.ndarray, finite: np.ndarray) -> None:
        """Add rows.

        Args:
            numbers: `[B]` int64, numbers of the rows.
            latents: `[B, d_sae]`, 0 where a latent is not active.
            finite: `[B]` bool; other rows are counted and left out.
        """
        if not finite.all():
            self.not_finite += int((~finite).sum())
            numbers, latents = numbers[finite], latents[finite]
        if not self._all:
            latents = latents[:, self.numbers]
        self.rows += len(latents)
        if not latents.size:
            return
        places = np.flatnonzero(latents > 0)
        values = latents.ravel()[places].astype(np.float32, copy=False)
        row, latent = np.divmod(places, latents.shape[1])
        self.active += np.bincount(latent, minlength=len(self.numbers))
        self.total += np.bincount(latent, values, len(self.numbers))
        self.top.offer(latent, activation_keys(values), numbers[row], values)
        self.sample.offer(latent, random_keys(numbers, self._seed)[row], numbers[row], values)

    def merge(self, other: "LatentPass") -> None:
        """Add a pass over other rows."""
        self.rows += other.rows
        self.not_finite += other.not_finite
        self.left_out.update(other.left_out)
        self.active += other.active
        self.total += other.total
        self.top.add(other.top)
        self.sample.add(other.sample)

    def settle(self) -> None:
        """Make the kept rows those of all rows so far."""
        self.top.settle()
        self.sample.settle()

    @property
    def all_left_out(self) -> dict[str, int]:
        """Number of rows that each filter left out, and of those that are not finite."""
        return {**self.left_out, "not finite": self.not_finite}

    @property
    def density(self) -> np.ndarray:
        """`[L]`, the part of the rows in which a latent is active."""
        return self.active / max(1, self.rows)

    @property
    def mean(self) -> np.ndarray:
        """`[L]`, mean over the rows in which a latent is active; 0 if there is none."""
        return self.total / np.maximum(1, self.active)

    @property
    def largest(self) -> np.ndarray:
        """`[L]` float32, the largest activation; 0 if a latent is never active."""
        return self.top.values[:, 0]
