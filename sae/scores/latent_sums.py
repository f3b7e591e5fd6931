"""Sums over rows from which all figures of latents follow; sums of files and hosts add up with `+`.

A latent is active where it is above 0. Beside counts, means and squared deviations, the active
values themselves are counted, for the area under the ROC curve: values as float32, exact as long
as there are few enough different ones, else with fewer bits of their mantissas.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from extraction.errors import StoreError

MOST_KEYS = 1 << 22
"""Most pairs of a latent and a value that are counted apart, 16 bytes each."""

DROPPED_AT_A_TIME = 4
VALUE_BITS = np.uint64(32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ActiveValues:
    """How often each latent has each value above 0.

    Attributes:
        keys: `[K]` uint64, ascending: the latent in the upper 32 bits, the bits of the float32
            value in the lower ones; bits of positive floats have the order of the floats.
        counts: `[K]` int64, rows with that value.
        dropped_bits: low bits of the values that are 0 here, so that there are fewer values.
        most: most keys.
    """

    keys: np.ndarray
    counts: np.ndarray
    dropped_bits: int = 0
    most: int = MOST_KEYS

    @classmethod
    def of(cls, latents: np.ndarray, values: np.ndarray, most: int = MOST_KEYS) -> "ActiveValues":
        """Count values.

        Args:
            latents: `[N]` int, the latent of each value.
            values: `[N]`, above 0.
            most: most keys.
        """
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
        keys = (latents.astype(np.uint64) << VALUE_BITS) | bits
        return cls._counted(keys, np.ones(len(keys), np.int64), 0, most)

    @classmethod
    def _counted(
        cls, keys: np.ndarray, counts: np.ndarray, dropped: int, most: int
    ) -> "ActiveValues":
        while True:
            order = np.argsort(keys, kind="stable")
            keys, counts = keys[order], counts[order]
            first = np.flatnonzero(np.diff(keys, prepend=~keys[:1]) != 0)
            keys, counts = keys[first], np.add.reduceat(counts, first) if len(first) else counts
            if len(keys) <= most or dropped >= int(VALUE_BITS):
                return cls(keys=keys, counts=counts, dropped_bits=dropped, most=most)
            dropped += DROPPED_AT_A_TIME
            keys = _without_bits(keys, dropped)

    def __add__(self, other: "ActiveValues") -> "ActiveValues":
        dropped = max(self.dropped_bits, other.dropped_bits)
        return self._counted(
            np.concatenate([_without_bits(part.keys, dropped) for part in (self, other)]),
            np.concatenate([self.counts, other.counts]),
            dropped,
            min(self.most, other.most),
        )

    def with_dropped(self, bits: int) -> "ActiveValues":
        """Return the same counts of values with at least so many low bits dropped."""
        dropped = max(bits, self.dropped_bits)
        return self._counted(_without_bits(self.keys, dropped), self.counts, dropped, self.most)


def _without_bits(keys: np.ndarray, dropped: int) -> np.ndarray:
    return keys >> np.uint64(dropped) << np.uint64(dropped)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatentSums:
    """Sums over rows, of each of `d_sae` latents.

    Attributes:
        rows: number of rows.
        active: `[d_sae]` int64, rows in which a latent is above 0.
        mean: `[d_sae]` float64, mean over all rows.
        deviations: `[d_sae]` float64, sum of squared distances from the mean.
        values: counts of the values above 0.
    """

    rows: int
    active: np.ndarray
    mean: np.ndarray
    deviations: np.ndarray
    values: ActiveValues

    @classmethod
    def of(cls, latents: np.ndarray, most_values: int = MOST_KEYS) -> "LatentSums":
        """Return the sums of some rows.

        Args:
            latents: `[B, d_sae]`, finite, 0 where a latent is not active.
            most_values: most pairs of a latent and a value that are counted apart.
        """
        rows, d_sae = latents.shape
        row, latent = np.nonzero(latents > 0)
        values = latents[row, latent].astype(np.float64)
        active = np.bincount(latent, minlength=d_sae)
        mean = np.bincount(latent, values, d_sae) / max(1, rows)
        apart = np.bincount(latent, (values - mean[latent]) ** 2, d_sae)
        return cls(
            rows=rows,
            active=active,
            mean=mean,
            deviations=apart + (rows - active) * mean**2,
            values=ActiveValues.of(latent, values, most_values),
        )

    @classmethod
    def empty(cls, d_sae: int, most_values: int = MOST_KEYS) -> "LatentSums":
        """Return the sums of no rows."""
        return cls.of(np.zeros((0, d_sae), np.float32), most_values)

    def __add__(self, other: "LatentSums") -> "LatentSums":
        if self.d_sae != other.d_sae:
            raise StoreError(f"sums of {self.d_sae} and of {other.d_sae} latents do not add up")
        rows = self.rows + other.rows
        part = other.rows / max(1, rows)
        apart = other.mean - self.mean
        return LatentSums(
            rows=rows,
            active=self.active + other.active,
            mean=self.mean + apart * part,
            deviations=self.deviations + other.deviations + apart**2 * (self.rows * part),
            values=self.values + other.values,
        )

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.active)

    @property
    def frequency(self) -> np.ndarray:
        """`[d_sae]`, the part of the rows in which a latent is active; NaN without rows."""
        with np.errstate(invalid="ignore"):
            return self.active / np.float64(self.rows)

    @property
    def variance(self) -> np.ndarray:
        """`[d_sae]`, the unbiased variance; NaN with fewer than two rows."""
        with np.errstate(invalid="ignore"):
            return np.where(self.rows > 1, self.deviations, np.nan) / max(1, self.rows - 1)


class SumsInParts:
    """Adds up sums of batches, so that a long sum is seldom added to a short one.

    Args:
        d_sae: number of latents.
        most_values: most pairs of a latent and a value that are counted apart.
    """

    def __init__(self, d_sae: int, most_values: int = MOST_KEYS):
        self._parts = [LatentSums.empty(d_sae, most_values)]
        self._most = most_values

    def add(self, latents: np.ndarray) -> None:
        """Add the latents `[B, d_sae]` of some rows."""
        parts = self._parts
        parts.append(LatentSums.of(latents, self._most))
        while len(parts) > 1 and parts[-1].rows >= parts[-2].rows:
            parts[-2:] = [parts[-2] + parts[-1]]

    def total(self) -> LatentSums:
        """Return the sums of all rows so far."""
        return total_of(self._parts)


def total_of(parts: Iterable[LatentSums]) -> LatentSums:
    """Return the sum of at least one."""
    first, *others = parts
    for other in others:
        first = first + other
    return first
