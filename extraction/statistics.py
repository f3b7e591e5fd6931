"""Statistics of a hook point's rows that add up alike, whoever counted which unit.

Each commit record holds those of its unit. Counts and histograms are whole numbers, and the sums
of all units are merged at once by `math.fsum`, which rounds once whatever their order; so a run on
four hosts and its resumption on two tell the same as one without interruption.

Norms are counted in bins of an eighth of an octave: bin k holds the norms from 2^(k/8) up to
2^((k+1)/8). A quantile read from it is right within 4.5 %.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

BINS_PER_OCTAVE = 8
ZERO = "zero"
"""Name of the bin of rows of zeros."""

OUTLIER_FACTOR = 10.0
"""Rows with a norm beyond this many times the median, as Qwen's attention sinks have."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RowStatistics:
    """Of the rows of one hook point.

    Attributes:
        rows: how many.
        nonfinite_rows: of them, rows with a number that is not finite; they are stored, and not
            counted in what follows.
        values: numbers in the finite rows.
        total: their sum.
        total_squares: the sum of their squares.
        norms: rows in each bin of norms, by the bin's number as text.
    """

    rows: int
    nonfinite_rows: int
    values: int
    total: float
    total_squares: float
    norms: Mapping[str, int]

    @classmethod
    def of(cls, rows: np.ndarray) -> "RowStatistics":
        """Those of `[R, D]` rows, any floating type, summed in float64."""
        # A row's sums must depend on nothing but its numbers, not on layout or neighbours: so rows
        # lie one behind the other, and einsum, which cuts long ones, is not used.
        with np.errstate(over="ignore", invalid="ignore"):
            exact = np.asarray(rows).astype(np.float64, order="C")
            totals = exact.sum(axis=1)
            np.multiply(exact, exact, out=exact)
            squares = exact.sum(axis=1)
        finite = np.isfinite(squares)
        totals, squares = totals[finite], squares[finite]
        norms = np.sqrt(squares)
        zero = norms == 0
        bins = np.floor(BINS_PER_OCTAVE * np.log2(norms[~zero])).astype(int).tolist()
        counts = Counter(map(str, bins))
        if zero.any():
            counts[ZERO] = int(zero.sum())
        return cls(
            rows=len(finite),
            nonfinite_rows=int((~finite).sum()),
            values=len(totals) * exact.shape[1],
            total=math.fsum(totals),
            total_squares=math.fsum(squares),
            norms=dict(counts),
        )

    @classmethod
    def merge(cls, parts: Iterable["RowStatistics"]) -> "RowStatistics":
        """Those of all rows together, the same for any order of the parts."""
        parts = list(parts)
        counts: Counter[str] = Counter()
        for part in parts:
            counts.update(part.norms)
        return cls(
            rows=sum(part.rows for part in parts),
            nonfinite_rows=sum(part.nonfinite_rows for part in parts),
            values=sum(part.values for part in parts),
            total=math.fsum(part.total for part in parts),
            total_squares=math.fsum(part.total_squares for part in parts),
            norms=dict(sorted(counts.items(), key=lambda item: _lower_edge(item[0]))),
        )

    def median_norm(self) -> float:
        """Of the finite rows, the lower one of two, within 4.5 %; NaN if there are none."""
        half, seen = sum(self.norms.values()) / 2, 0
        for name, count in sorted(self.norms.items(), key=lambda item: _lower_edge(item[0])):
            seen += count
            if seen >= half:
                return _lower_edge(name) * 2 ** (0.5 / BINS_PER_OCTAVE)
        return math.nan

    def summary(self) -> dict[str, Any]:
        """What stands in `metadata.json`; means are None if there are no finite rows."""
        return {
            "rows": self.rows,
            "nonfinite_rows": self.nonfinite_rows,
            "mean": self.total / self.values if self.values else None,
            "mean_square": self.total_squares / self.values if self.values else None,
            "median_norm": self.median_norm() if self.values else None,
            "norm_histogram": {
                "bins_per_octave": BINS_PER_OCTAVE,
                "counts": dict(self.norms),
            },
        }


def _lower_edge(bin_name: str) -> float:
    return 0.0 if bin_name == ZERO else 2 ** (int(bin_name) / BINS_PER_OCTAVE)
