"""Statistics of a hook point's rows that add up alike, whoever counted which unit.

Each commit record holds those of its unit. Counts and histograms are whole numbers, and the sums
of all units are merged at once by `math.fsum`, which rounds once whatever their order; so a run on
four hosts and its resumption on two tell the same as one without interruption.

Norms are counted in bins of an eighth of an octave: bin k holds the norms from 2^(k/8) up to
2^((k+1)/8). A quantile read from it is right within 4.5 %.
"""

import dataclasses
import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from extraction.formats.float_types import as_stored

BINS_PER_OCTAVE = 8
ZERO = "zero"
"""Name of the bin of rows of zeros."""

CACHED_VALUES = 1 << 17
"""Numbers looked at together: their float64 copies, 1 MiB, are about a core's own cache."""

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
    def of(cls, rows: np.ndarray, stored_as: str | None = None) -> "RowStatistics":
        """Those of `[R, D]` rows, any floating type, summed in float64.

        Args:
            rows: to count.
            stored_as: `float32` or `bfloat16`: count them as a file of that dtype gives them back,
                rounded, and infinite where they run over.
        """
        # A row's sums must depend on nothing but its numbers, not on layout or neighbours: so rows
        # lie one behind the other, and einsum, which cuts long ones, is not used.
        rows = np.asarray(rows)
        count, width = rows.shape
        totals, squares = np.empty(count), np.empty(count)
        step = max(1, CACHED_VALUES // max(1, width))
        scratch = np.empty((min(step, count), width))
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, count, step):
                part = slice(start, start + step)
                exact = scratch[: len(rows[part])]
                exact[...] = rows[part] if stored_as is None else as_stored(rows[part], stored_as)
                exact.sum(axis=1, out=totals[part])
                np.multiply(exact, exact, out=exact)
                exact.sum(axis=1, out=squares[part])
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
            values=len(totals) * width,
            total=math.fsum(totals),
            total_squares=math.fsum(squares),
            norms=dict(counts),
        )

    @classmethod
    def merge(cls, parts: Iterable["RowStatistics"]) -> "RowStatistics":
        """Those of all rows together, the same for any order of the parts."""
        total = StatisticsSum()
        for part in parts:
            total.add(part)
        return total.total()

    def median_norm(self) -> float:
        """Of the finite rows, the lower one of two, within 4.5 %; NaN if there are none."""
        half, seen = sum(self.norms.values()) / 2, 0
        for name, count in sorted(self.norms.items(), key=lambda item: _lower_edge(item[0])):
            seen += count
            if seen >= half:
                return _lower_edge(name) * 2 ** (0.5 / BINS_PER_OCTAVE)
        return math.nan

    def outlier_share(self) -> float:
        """Share of the finite rows whose norm is beyond `OUTLIER_FACTOR` medians, by their bins:
        attention sinks, mostly. NaN if there are none."""
        if not self.norms:
            return math.nan
        limit = OUTLIER_FACTOR * self.median_norm()
        beyond = sum(count for name, count in self.norms.items() if _lower_edge(name) >= limit > 0)
        return beyond / sum(self.norms.values())

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


class StatisticsSum:
    """Adds up statistics one by one; two numbers are kept of each part."""

    def __init__(self) -> None:
        self._rows = self._nonfinite_rows = self._values = 0
        self._totals, self._squares = array("d"), array("d")
        self._norms: defaultdict[str, int] = defaultdict(int)

    def add(self, part: RowStatistics) -> None:
        """Takes a part in."""
        self._rows += part.rows
        self._nonfinite_rows += part.nonfinite_rows
        self._values += part.values
        self._totals.append(part.total)
        self._squares.append(part.total_squares)
        for name, count in part.norms.items():
            self._norms[name] += count

    def total(self) -> RowStatistics:
        """Those of all rows together."""
        return RowStatistics(
            rows=self._rows,
            nonfinite_rows=self._nonfinite_rows,
            values=self._values,
            total=math.fsum(self._totals),
            total_squares=math.fsum(self._squares),
            norms=dict(sorted(self._norms.items(), key=lambda item: _lower_edge(item[0]))),
        )


def is_bin(name: Any) -> bool:
    """Whether a histogram of norms may have a bin of this name: float64 has no others."""
    return name == ZERO or (
        type(name) is str and re.fullmatch(r"-?\d{1,4}", name) is not None and abs(int(name)) < 8192
    )


def _lower_edge(bin_name: str) -> float:
    return 0.0 if bin_name == ZERO else 2 ** (int(bin_name) / BINS_PER_OCTAVE)
