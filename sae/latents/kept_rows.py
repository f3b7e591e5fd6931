"""For each latent, the rows of smallest keys among all rows that were offered.

With the negated activation as key these are a latent's top rows; with a hash of the row's number
they are a uniform sample of its active rows. What is kept does not depend on the order of offers.
"""

import numpy as np

NO_ROW = -1
NO_KEY = np.uint64(np.iinfo(np.uint64).max)

BUFFERED = 1 << 18
"""Offers that are collected before they are sorted in."""


class KeptRows:
    """Keys, rows and activations, sorted by key and row; `NO_ROW` where there are fewer rows.

    Args:
        latents: number of latents.
        most: most rows of each latent.

    Attributes:
        keys: `[latents, most]` uint64.
        rows: `[latents, most]` int64, numbers of the rows.
        values: `[latents, most]` float32, activations.
    """

    def __init__(self, latents: int, most: int):
        self.keys = np.full((latents, most), NO_KEY)
        self.rows = np.full((latents, most), NO_ROW, np.int64)
        self.values = np.zeros((latents, most), np.float32)
        self._offers: list[tuple[np.ndarray, ...]] = []
        self._waiting = 0

    def offer(
        self, latents: np.ndarray, keys: np.ndarray, rows: np.ndarray, values: np.ndarray
    ) -> None:
        """Keep rows if their keys are among the smallest; of equal keys the lower row is kept.

        Args:
            latents: `[N]` int, the latent of each offer.
            keys: `[N]` uint64, below `NO_KEY`.
            rows: `[N]` int64; a latent and a row come together once.
            values: `[N]` float32.
        """
        if not self.keys.shape[1]:
            return
        chosen = np.flatnonzero(keys <= self.keys[latents, -1])
        if len(chosen):
            self._offers.append(tuple(a[chosen] for a in (latents, keys, rows, values)))
            self._waiting += len(chosen)
        if self._waiting >= BUFFERED:
            self.settle()

    def settle(self) -> None:
        """Sort the collected offers in, so that the attributes are of all offers so far."""
        if not self._offers:
            return
        latents, keys, rows, values = map(np.concatenate, zip(*self._offers, strict=True))
        self._offers, self._waiting = [], 0
        order = np.lexsort((rows, keys, latents))
        touched, first, counts = np.unique(latents[order], return_index=True, return_counts=True)
        place = np.repeat(np.arange(len(touched)), counts)
        rank = np.arange(len(order)) - np.repeat(first, counts)
        most = self.keys.shape[1]
        order, place, rank = (a[rank < most] for a in (order, place, rank))
        new = KeptRows(len(touched), most)
        for name, column in (("keys", keys), ("rows", rows), ("values", values)):
            getattr(new, name)[place, rank] = column[order]
        self._merge(touched, new)

    def add(self, other: "KeptRows") -> None:
        """Keep also the rows of another one, over other rows."""
        self.settle()
        other.settle()
        self._merge(np.arange(len(self.keys)), other)

    def _merge(self, latents: np.ndarray, other: "KeptRows") -> None:
        both = {
            name: np.concatenate([getattr(self, name)[latents], getattr(other, name)], axis=1)
            for name in ("keys", "rows", "values")
        }
        order = np.lexsort((both["rows"], both["keys"]), axis=1)[:, : self.keys.shape[1]]
        for name, values in both.items():
            getattr(self, name)[latents] = np.take_along_axis(values, order, axis=1)


def activation_keys(values: np.ndarray) -> np.ndarray:
    """Return keys `[N]` uint64 that are smaller for larger float32 activations above 0."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.uint64(0xFFFFFFFF) - bits.astype(np.uint64)


def random_keys(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return keys `[N]` uint64 in random order: SplitMix64 of the rows' numbers, all different."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) + np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + golden
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.minimum(z ^ (z >> np.uint64(31)), NO_KEY - np.uint64(1))
