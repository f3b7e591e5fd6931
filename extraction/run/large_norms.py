"""Rows whose norm is many times the median: their number, their positions, and their effect.

Attention sinks, such as a sample's first token, are such rows. Nothing is dropped when rows are
written; readers can leave them out (`max_norm_multiple`).

The median is read from the histogram of norms, within 4.5 %; readers use the same median.
Everything else is exact, with one exception: a row in the histogram's bin that holds the limit can
be compared with the limit only if its norm is kept (`largest_rows`). `unsettled` counts the rows of
that bin whose norms are not kept. The means without large rows leave out the counted rows, and are
exact up to float64 rounding.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.run.largest_rows import LargeRow
from extraction.run.statistics import (
    BINS_PER_OCTAVE,
    MAX_NORM_MULTIPLE,
    RowStatistics,
    bin_name,
    bin_number,
    bins_of,
)
from extraction.setting_names import setting

NAMED = 8
"""Most positions and token ids that `metadata.json` names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LargeNorms:
    """The rows of a hook point whose norm is above a multiple of the median norm.

    Attributes:
        multiple: the multiple of the median.
        limit: the multiple times the median; NaN if there are no finite rows.
        rows: number of rows that are known to be above the limit.
        unsettled: number of further rows that may be above it.
        mean: mean of all numbers of finite rows; None if there are none.
        mean_norm: mean norm of finite rows; None if there are none, or it is not recorded.
        at_position_0: how many of `rows` are at position 0; None if it is not recorded.
        largest: those of `rows` whose keys are kept, the largest first; None if not recorded.
        mean_without: mean of all numbers of the other finite rows; None if there are none, or it is
            not recorded.
        mean_norm_without: mean norm of the other finite rows; None as for `mean_without`.
    """

    multiple: float
    limit: float
    rows: int
    unsettled: int
    mean: float | None
    mean_norm: float | None
    at_position_0: int | None = None
    largest: tuple[LargeRow, ...] | None = None
    mean_without: float | None = None
    mean_norm_without: float | None = None

    @classmethod
    def of(cls, statistics: RowStatistics, multiple: float = MAX_NORM_MULTIPLE) -> "LargeNorms":
        """Return the large norms in some statistics.

        Args:
            statistics: statistics of the rows.
            multiple: multiple of the median norm, above 0.
        """
        limit = multiple * statistics.median_norm()
        edge = _bin_of(limit)
        beyond = {name for name in statistics.norms if bin_number(name) > edge}
        edge_rows = 0 if edge == math.inf else statistics.norms.get(bin_name(int(edge)), 0)
        kept = statistics.largest or ()
        above = tuple(row for row in kept if row.norm > limit)
        in_edge = [row for row in above if _bin_of(row.norm) == edge]
        # The kept rows are the largest: once one is not above the limit, none that is is missing.
        is_settled = limit == 0 or len(above) < len(kept) or len(in_edge) == edge_rows
        rows = sum(statistics.norms[name] for name in beyond) + len(in_edge)
        found = cls(
            multiple=multiple,
            limit=limit,
            rows=rows,
            unsettled=0 if is_settled else edge_rows - len(in_edge),
            mean=statistics.total / statistics.values if statistics.values else None,
            mean_norm=statistics.mean_norm(),
        )
        sums = statistics.bin_sums
        if sums is None or statistics.largest is None:
            return found
        left = statistics.rows - statistics.nonfinite_rows - rows
        without = [entry for name, entry in sums.items() if name not in beyond]
        total = math.fsum([*(s.total for s in without), *(-row.total for row in in_edge)])
        norm = math.fsum([*(s.norms for s in without), *(-row.norm for row in in_edge)])
        is_first = sum(row.position == 0 for row in in_edge)
        return dataclasses.replace(
            found,
            at_position_0=sum(sums[name].first for name in beyond) + is_first,
            largest=above,
            mean_without=total / (left * _width(statistics))
            if left and _width(statistics)
            else None,
            mean_norm_without=norm / left if left else None,
        )

    @property
    def places(self) -> tuple[list[list[int]], list[list[int]]]:
        """Positions and token ids of `largest`, `[value, rows]` each, the most frequent first."""
        rows = self.largest or ()
        return _most(row.position for row in rows), _most(row.token_id for row in rows)

    def document(self) -> dict[str, Any]:
        """Return the entry of `metadata.json`."""
        positions, token_ids = self.places
        return {
            "multiple_of_median": self.multiple,
            "rows": self.rows,
            "unsettled_rows": self.unsettled,
            "rows_at_position_0": self.at_position_0,
            "rows_with_keys": len(self.largest or ()),
            "positions": positions,
            "token_ids": token_ids,
            "mean_without": self.mean_without,
            "mean_norm_without": self.mean_norm_without,
        }


def check_multiple(multiple: Any) -> float:
    """Return a multiple of the median as a float.

    Raises:
        StoreError: it is not a finite number above 0.
    """
    is_number = isinstance(multiple, int | float | np.number) and not isinstance(multiple, bool)
    if not is_number or not 0 < multiple < math.inf:
        given = setting("max_norm_multiple", multiple)
        raise StoreError(f"{given} must be a finite number above 0, such as 10")
    return float(multiple)


def summary_of(statistics: RowStatistics) -> dict[str, Any]:
    """Return the entry of `metadata.json` for a hook point's statistics.

    Means are None if there are no finite rows. `mean_norm` and `large_norms` are missing if the
    statistics are those of version 0.1.0, which have no sums of norms and no keys.
    """
    some = statistics.values > 0
    summary: dict[str, Any] = {
        "rows": statistics.rows,
        "nonfinite_rows": statistics.nonfinite_rows,
        "mean": statistics.total / statistics.values if some else None,
        "mean_square": statistics.total_squares / statistics.values if some else None,
        "median_norm": statistics.median_norm() if some else None,
        "norm_histogram": {
            "bins_per_octave": BINS_PER_OCTAVE,
            "counts": dict(statistics.norms),
        },
    }
    if statistics.largest is not None:
        summary["mean_norm"] = statistics.mean_norm()
        summary["large_norms"] = LargeNorms.of(statistics).document()
    return summary


def _bin_of(norm: float) -> float:
    """Return the number of a norm's bin; infinity if the norm is not finite."""
    return int(bins_of(np.array([norm]))[0]) if math.isfinite(norm) else math.inf


def _width(statistics: RowStatistics) -> int:
    return statistics.values // (statistics.rows - statistics.nonfinite_rows)


def _most(values: Iterable[int]) -> list[list[int]]:
    ordered = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    return [[value, count] for value, count in ordered[:NAMED]]
