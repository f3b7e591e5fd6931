"""Whether recorded statistics of a batch are those of its rows: level 3 of `verify`."""

import math
from collections.abc import Iterable

import numpy as np

from extraction.run.largest_rows import largest_rows
from extraction.run.rows import RowBlock
from extraction.run.statistics import BINS_PER_OCTAVE, RowStatistics, row_norms, row_sums

TOLERANCE = 2.0**-8
"""Of recorded sums and norms: rows may have been rounded to bfloat16 after they were counted, and
a second attempt at a unit may have run on another kind of machine."""


def differing_statistics(
    recorded: RowStatistics, found: RowStatistics, rows: np.ndarray
) -> list[str]:
    """Return the differences between recorded statistics and those of the rows.

    Args:
        recorded: those of the commit record.
        found: those of `rows`.
        rows: `[R, width]`.
    """
    problems = [
        f"{name} {getattr(found, name)}, {getattr(recorded, name)} by its record"
        for name in ("rows", "nonfinite_rows", "values")
        if getattr(found, name) != getattr(recorded, name)
    ]
    if problems:
        return problems
    largest = max(found.total_squares, recorded.total_squares)
    if abs(found.total_squares - recorded.total_squares) > 2 * TOLERANCE * largest:
        problems.append("the sum of squares is not that of its record")
    # |sum of errors| <= sqrt(values * sum of squared errors)
    if abs(found.total - recorded.total) > TOLERANCE * math.sqrt(found.values * largest):
        problems.append("the sum is not that of its record")
    moved = sum(
        abs(found.norms.get(name, 0) - recorded.norms.get(name, 0))
        for name in {*found.norms, *recorded.norms}
    )
    if moved and moved > 2 * _near_an_edge(rows):
        problems.append("the histogram of norms is not that of its record")
    elif recorded.bin_sums is not None and not (
        _same_sums(recorded, found, found.norms)
        or (_near_an_edge(rows) and _same_sums(recorded, found, None))
    ):
        problems.append("the sums of the bins of norms are not those of its record")
    return problems


def _near_an_edge(rows: np.ndarray) -> int:
    """Count the rows whose norm may fall into the next bin after rounding errors."""
    norms = row_norms(rows)
    norms = norms[np.isfinite(norms) & (norms > 0)]
    place = BINS_PER_OCTAVE * np.log2(norms)
    margin = BINS_PER_OCTAVE * math.log2(1 + TOLERANCE)
    return int((np.abs(place - np.round(place)) <= margin).sum())


def differing_large_rows(
    recorded: RowStatistics, found: RowStatistics, block: RowBlock, hook: str
) -> list[str]:
    """Return the differences between recorded largest rows and those of the rows.

    Args:
        recorded: those of the commit record, which has `largest`.
        found: those of the rows.
        block: the rows.
        hook: their hook point.
    """
    told, there = recorded.largest or (), found.largest or ()
    if len(told) != len(there):
        return [f"{len(there)} rows of largest norm, {len(told)} by its record"]
    if not all(_is_near(a.norm, b.norm) for a, b in zip(told, there, strict=True)):
        return ["the largest norms are not those of its record"]
    norms = {row.key: row.norm for row in there}
    if not norms.keys() >= {row.key for row in told}:  # rows of nearly the same norm, or others
        totals, squares = row_sums(block.activations[hook])
        every = largest_rows(np.sqrt(squares), totals, block, most=len(block))
        norms = {row.key: row.norm for row in every}
    if not all(row.key in norms and _is_near(row.norm, norms[row.key]) for row in told):
        return ["the keys of the largest norms are not those of its record"]
    return []


def _same_sums(recorded: RowStatistics, found: RowStatistics, bins: Iterable[str] | None) -> bool:
    """Return whether sums are the same in each bin; without `bins`, in all bins together."""
    told, there = recorded.bin_sums or {}, found.bin_sums or {}
    width = found.values / max(1, found.rows - found.nonfinite_rows)
    groups = [told.keys() | there.keys()] if bins is None else [{name} for name in bins]
    for group in groups:
        one, two = ([sums[name] for name in group if name in sums] for sums in (told, there))
        norms = [sum(entry.norms for entry in entries) for entries in (one, two)]
        totals = [sum(entry.total for entry in entries) for entries in (one, two)]
        first = [sum(entry.first for entry in entries) for entries in (one, two)]
        # |sum of a row's numbers| <= sqrt(width) * norm
        allowed = TOLERANCE * math.sqrt(width) * max(norms)
        if first[0] != first[1] or not _is_near(*norms) or abs(totals[0] - totals[1]) > allowed:
            return False
    return True


def _is_near(one: float, two: float) -> bool:
    return abs(one - two) <= TOLERANCE * max(one, two)
