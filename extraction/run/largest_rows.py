"""The rows of largest norm of a hook point, with their keys: they say where attention sinks stand.

The largest rows of a run are the largest of those of its units, whatever the order of the units:
rows of equal norm stand in the order of their keys.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from extraction.run.rows import RowBlock

MOST_KEPT = 64
"""Rows that are kept of each hook point of a unit, and of a run."""

LONGEST_TASK_ID = 200
"""Characters of a task id that are kept, so that the size of a record is bounded."""

LARGEST_SUM = 1e200
"""No sum of a row's numbers comes near it, and no sum of such sums overflows."""

WHOLE_NUMBERS = {"sample_idx": 63, "position": 31, "token_id": 31, "step": 31}
"""Key columns and the bits of their numbers."""


class LargeRow(NamedTuple):
    """One row.

    Attributes:
        norm: its Euclidean norm.
        total: sum of its numbers.
        task_id: of its sample; of longer ones the first `LONGEST_TASK_ID` characters.
        sample_idx: of its sample within the task.
        position: of its token in the sample, from 0; -1: not known.
        token_id: of its token; -1: not known.
        step: 0 for a prompt token, t for the t-th generated one.
    """

    norm: float
    total: float
    task_id: str
    sample_idx: int
    position: int
    token_id: int
    step: int

    @property
    def key(self) -> tuple[str, int, int, int, int]:
        """All but the numbers."""
        return self[2:]


def largest_rows(
    norms: np.ndarray, totals: np.ndarray, keys: RowBlock, most: int = MOST_KEPT
) -> tuple[LargeRow, ...]:
    """Return the rows of largest norm, the largest first.

    Args:
        norms: `[R]` float64, of all rows; those of rows that are not finite are not finite.
        totals: `[R]` float64, sums of each row's numbers.
        keys: of the R rows.
        most: rows to return.
    """
    numbers = np.flatnonzero(np.isfinite(norms))
    if len(numbers) > most:
        least = np.partition(norms[numbers], len(numbers) - most)[len(numbers) - most]
        numbers = numbers[norms[numbers] >= least]  # more than wanted where norms are equal
    columns = (
        norms[numbers].tolist(),
        totals[numbers].tolist(),
        [str(task_id)[:LONGEST_TASK_ID] for task_id in keys.task_ids[numbers].tolist()],
        *(getattr(keys, name)[numbers].tolist() for name in WHOLE_NUMBERS),
    )
    return largest_of(map(LargeRow._make, zip(*columns, strict=True)), most)


def largest_of(rows: Iterable[LargeRow], most: int = MOST_KEPT) -> tuple[LargeRow, ...]:
    """Return the largest of some rows, in an order that does not depend on theirs."""
    return tuple(heapq.nsmallest(most, rows, key=lambda row: (-row.norm, row.key)))


def columns_of(rows: Sequence[LargeRow]) -> dict[str, list[Any]]:
    """Return rows as JSON holds them: a list for each column."""
    return {name: [row[i] for row in rows] for i, name in enumerate(LargeRow._fields)}


def rows_of_columns(columns: Mapping[str, Any]) -> tuple[LargeRow, ...]:
    """Return the rows of `columns_of`.

    Args:
        columns: as JSON gave them; they may be anything.

    Raises:
        ValueError: they are no such rows, or not in their order.
        TypeError: as ValueError.
    """
    if set(columns) != set(LargeRow._fields):
        raise ValueError(f"the largest rows have columns {list(columns)!r:.200}")
    lists = [columns[name] for name in LargeRow._fields]
    if not all(type(column) is list for column in lists) or len(lists[0]) > MOST_KEPT:
        raise ValueError(f"the largest rows are no lists of at most {MOST_KEPT}")
    rows = tuple(map(LargeRow._make, zip(*lists, strict=True)))
    for row in rows:
        numbers = zip(WHOLE_NUMBERS.items(), row[3:], strict=True)
        if not (
            is_sum(row.norm)
            and is_sum(row.total)
            and row.norm >= 0
            and type(row.task_id) is str
            and len(row.task_id) <= LONGEST_TASK_ID
            and all(type(n) is int and -(1 << bits) <= n < 1 << bits for (_, bits), n in numbers)
        ):
            raise ValueError(f"{row!r:.300} is none of the largest rows")
    if any(one.norm < two.norm for one, two in zip(rows, islice(rows, 1, None), strict=False)):
        raise ValueError("the largest rows are not in their order")
    return rows


def is_sum(value: Any) -> bool:
    """Whether it is a float that sums of a row's numbers can be."""
    return type(value) in (int, float) and abs(value) < LARGEST_SUM
