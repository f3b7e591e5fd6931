"""Statistics of a hook point's rows, whose total does not depend on the order of the units.

Each commit record holds the statistics of its unit. Counts and histograms are whole numbers, and
the sums of all units are rounded once, in any order (`exact_sum`). So a run that began on four
hosts and was resumed on two has the same statistics as a run without interruption.

Norms are counted in bins of an eighth of an octave: bin k holds the norms from 2^(k/8) up to
2^((k+1)/8). A quantile read from the bins is right within 4.5 %. Each bin has the sums of its rows,
and the rows of largest norm are kept with their keys (`largest_rows`). From these, `large_norms`
computes the means without the few rows of very large norm.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from extraction.formats.float_types import as_stored
from extraction.run.exact_sum import ExactSum
from extraction.run.largest_rows import MOST_KEPT, LargeRow, largest_of, largest_rows
from extraction.run.rows import RowBlock

BINS_PER_OCTAVE = 8
ZERO = "zero"
"""Name of the bin of rows of zeros."""

_ZERO_BIN = -(1 << 14)
"""Number of the bin `zero`, below the numbers of all other bins."""

CACHED_VALUES = 1 << 17
"""Numbers summed at a time: their float64 copies, 1 MiB, fit a core's own cache."""

MAX_NORM_MULTIPLE = 10.0
"""Multiple of the median norm above which rows are counted: attention sinks, mostly."""


class BinSums(NamedTuple):
    """Sums over the rows of a bin of norms.

    Attributes:
        total: sum of all numbers of the rows.
        norms: sum of the rows' norms.
        first: number of rows at position 0.
    """

    total: float
    norms: float
    first: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RowStatistics:
    """Counts and sums over the rows of one hook point.

    Attributes:
        rows: number of rows.
        nonfinite_rows: number of rows with a number that is not finite; they are stored, and left
            out of the fields below.
        values: number of numbers in the finite rows.
        total: sum of these numbers.
        total_squares: sum of their squares.
        norms: number of rows in each bin of norms, by the bin's number as text.
        bin_sums: sums over the rows of each bin; None if they are not recorded: by version 0.1.0,
            or because the keys of the rows were not given.
        largest: finite rows of largest norm, the largest first; None if they are not recorded.
    """

    rows: int
    nonfinite_rows: int
    values: int
    total: float
    total_squares: float
    norms: Mapping[str, int]
    bin_sums: Mapping[str, BinSums] | None = None
    largest: tuple[LargeRow, ...] | None = None

    @classmethod
    def of(
        cls, rows: np.ndarray, stored_as: str | None = None, keys: RowBlock | None = None
    ) -> "RowStatistics":
        """Return the statistics of `[R, D]` rows, any floating type, summed in float64.

        Args:
            rows: rows to count.
            stored_as: `float32` or `bfloat16`: count the rows as a file of that dtype returns
                them: rounded, and infinite where they overflow.
            keys: keys of the rows; without them there are no `bin_sums` and no `largest`.
        """
        row_totals, squares = row_sums(rows, stored_as)
        finite = np.isfinite(squares)
        norms = np.sqrt(squares[finite])
        totals = row_totals[finite]
        bins = bins_of(norms)
        numbers, counts = np.unique(bins, return_counts=True)
        sums = largest = None
        if keys is not None:
            sums = _bin_sums(bins, totals, norms, keys.position[finite])
            largest = largest_rows(np.sqrt(squares), row_totals, keys)
        return cls(
            rows=len(finite),
            nonfinite_rows=int((~finite).sum()),
            values=len(totals) * rows.shape[1],
            total=math.fsum(totals),
            total_squares=math.fsum(squares[finite]),
            norms=dict(zip(map(bin_name, numbers.tolist()), counts.tolist(), strict=True)),
            bin_sums=sums,
            largest=largest,
        )

    @classmethod
    def merge(cls, parts: Iterable["RowStatistics"]) -> "RowStatistics":
        """Return the statistics of all rows together, the same for any order of the parts."""
        total = StatisticsSum()
        for part in parts:
            total.add(part)
        return total.total()

    def median_norm(self) -> float:
        """Return the (lower) median norm of the finite rows within 4.5 %; NaN if there are none."""
        half, seen = sum(self.norms.values()) / 2, 0
        for name, count in sorted(self.norms.items(), key=lambda item: lower_edge(item[0])):
            seen += count
            if seen >= half:
                return lower_edge(name) * 2 ** (0.5 / BINS_PER_OCTAVE)
        return math.nan

    def mean_norm(self) -> float | None:
        """Return the mean norm of the finite rows; None if there are none or it is not recorded."""
        finite = self.rows - self.nonfinite_rows
        if self.bin_sums is None or not finite:
            return None
        return math.fsum(sums.norms for sums in self.bin_sums.values()) / finite


class StatisticsSum:
    """A sum of statistics, added one by one in bounded memory."""

    def __init__(self) -> None:
        self._rows = self._nonfinite_rows = self._values = 0
        self._total, self._squares = ExactSum(), ExactSum()
        self._norms: defaultdict[str, int] = defaultdict(int)
        self._bin_totals: defaultdict[str, ExactSum] = defaultdict(ExactSum)
        self._bin_norms: defaultdict[str, ExactSum] = defaultdict(ExactSum)
        self._first: defaultdict[str, int] = defaultdict(int)
        self._largest: tuple[LargeRow, ...] = ()
        self._keys_known = True

    def add(self, part: RowStatistics) -> None:
        """Add the statistics of some rows."""
        self._rows += part.rows
        self._nonfinite_rows += part.nonfinite_rows
        self._values += part.values
        self._total.add(part.total)
        self._squares.add(part.total_squares)
        for name, count in part.norms.items():
            self._norms[name] += count
        if part.bin_sums is None or part.largest is None:
            self._keys_known = self._keys_known and not part.rows
            return
        for name, sums in part.bin_sums.items():
            self._bin_totals[name].add(sums.total)
            self._bin_norms[name].add(sums.norms)
            self._first[name] += sums.first
        kept = self._largest
        if len(kept) < MOST_KEPT or (part.largest and part.largest[0].norm >= kept[-1].norm):
            self._largest = largest_of((*kept, *part.largest))

    def total(self) -> RowStatistics:
        """Return the statistics of all rows; a field that one part does not record is None."""
        names = sorted(self._norms, key=lower_edge)
        sums = {
            name: BinSums(
                total=self._bin_totals[name].total(),
                norms=self._bin_norms[name].total(),
                first=self._first[name],
            )
            for name in (names if self._keys_known else ())
        }
        return RowStatistics(
            rows=self._rows,
            nonfinite_rows=self._nonfinite_rows,
            values=self._values,
            total=self._total.total(),
            total_squares=self._squares.total(),
            norms={name: self._norms[name] for name in names},
            bin_sums=sums if self._keys_known else None,
            largest=self._largest if self._keys_known else None,
        )


def row_sums(rows: np.ndarray, stored_as: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of each row's numbers and the sum of their squares, `[R]` float64 each.

    Both depend on the row's numbers alone. The sum of squares is not finite where a number is not.

    Args:
        rows: `[R, D]`, any floating type.
        stored_as: see `RowStatistics.of`.
    """
    # The sums must not depend on memory layout or on neighbouring rows. So rows are copied to a
    # contiguous array, and einsum, which splits long rows, is not used.
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
    return totals, squares


def row_norms(rows: np.ndarray) -> np.ndarray:
    """Return the norm of each row, `[R]` float64; it is not finite where a number is not.

    Args:
        rows: `[R, D]`, any floating type.
    """
    return np.sqrt(row_sums(rows)[1])


def bins_of(norms: np.ndarray) -> np.ndarray:
    """Return the number of each norm's bin, `[R]` int64, for `bin_name`.

    Args:
        norms: `[R]` float64, finite.
    """
    bins = np.full(len(norms), _ZERO_BIN)
    positive = norms > 0
    bins[positive] = np.floor(BINS_PER_OCTAVE * np.log2(norms[positive]))
    return bins


def bin_name(number: int) -> str:
    """Return the name of a bin."""
    return ZERO if number == _ZERO_BIN else str(number)


def bin_number(name: str) -> int:
    """Return the number of a bin."""
    return _ZERO_BIN if name == ZERO else int(name)


def is_bin(name: Any) -> bool:
    """Return whether this is the name of a bin that a float64 norm can be in."""
    return name == ZERO or (
        type(name) is str and re.fullmatch(r"-?\d{1,4}", name) is not None and abs(int(name)) < 8192
    )


def lower_edge(bin_name: str) -> float:
    """Return the smallest norm that a bin holds."""
    return 0.0 if bin_name == ZERO else 2 ** (int(bin_name) / BINS_PER_OCTAVE)


def _bin_sums(
    bins: np.ndarray, totals: np.ndarray, norms: np.ndarray, position: np.ndarray
) -> dict[str, BinSums]:
    order = bins.argsort(kind="stable")
    numbers, starts = np.unique(bins[order], return_index=True)
    return {
        bin_name(number): BinSums(
            total=math.fsum(totals[members]),
            norms=math.fsum(norms[members]),
            first=int(np.count_nonzero(position[members] == 0)),
        )
        for number, members in zip(
            numbers.tolist(), np.split(order, starts[1:]) if len(order) else (), strict=True
        )
    }
