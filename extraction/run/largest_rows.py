"""The rows of largest norm of a hook point, with their keys, which show where attention sinks are.

The largest rows of a run are the largest of its units' largest rows, in any order of the units:
rows of equal norm are in the order of their keys.
"""

import heapq
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from extraction.run.rows import RowBlock

MOST_KEPT = 64
"""Number of rows that are kept for each hook point of a unit, and of a run."""

LONGEST_TASK_ID = 200
"""Most characters of a task id that are kept, so that the size of a record is bounded."""

LARGEST_SUM = 1e200
"""Largest sum that is read: no row's sum comes near it, and no sum of such sums overflows."""

WHOLE_NUMBERS = {"sample_idx": 63, "position": 31, "token_id": 31, "step": 31}
"""Key columns of whole numbers, and the bits of a positive one."""


class LargeRow(NamedTuple):
    """The key of a row, its norm and its sum.

    Attributes:
        norm: Euclidean norm.
        total: sum of the row's numbers.
        task_id: task of the sample, cut to `LONGEST_TASK_ID` characters.
        sample_idx: number of the sample within the task.
        position: position of the token in the sample, from 0; -1 if it is not known.
        token_id: id of the token; -1 if it is not known.
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
        """Task, sample, position, token and step."""
        return self[2:]


def largest_rows(
    norms: np.ndarray, totals: np.ndarray, keys: RowBlock, most: int = MOST_KEPT
) -> tuple[LargeRow, ...]:
    """Return the rows of largest norm, the largest first.

    Args:
        norms: `[R]` float64, norm of each row; a row whose norm is not finite is never returned.
        totals: `[R]` float64, sum of each row's numbers.
        keys: keys of the R rows.
        most: most rows to return.
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
    """Return the largest of some rows, in the same order whatever the order of the rows."""
    return tuple(heapq.nsmallest(most, rows, key=lambda row: (-row.norm, row.key)))


def columns_of(rows: Sequence[LargeRow]) -> dict[str, list[Any]]:
    """Return rows as a commit record holds them: a list for each column."""
    return {name: [row[i] for row in rows] for i, name in enumerate(LargeRow._fields)}


def rows_of_columns(columns: Mapping[str, Any]) -> tuple[LargeRow, ...]:
    """Return the rows that `columns_of` made columns of.

    Args:
        columns: columns of a commit record; their content may be anything.

    Raises:
        ValueError: a column is missing, holds other values, or the rows are not in their order.
    """
    if set(columns) != set(LargeRow._fields):
        raise ValueError(f"the largest rows have columns {list(columns)!r:.200}")
    lists = [columns[name] for name in LargeRow._fields]
    if not all(type(column) is list for column in lists) or len(lists[0]) > MOST_KEPT:
        raise ValueError(f"the largest rows are no lists of at most {MOST_KEPT}")
    numbers = dict(zip(LargeRow._fields, lists, strict=True))
    norms, task_ids = numbers["norm"], numbers["task_id"]
    if not (
        are_sums(norms)
        and are_sums(numbers["total"])
        and min(norms, default=0) >= 0
        and all(map(operator.ge, norms, norms[1:]))
    ):
        raise ValueError("the largest norms are no numbers in their order")
    if not {*map(type, task_ids)} <= {str} or max(map(len, task_ids), default=0) > LONGEST_TASK_ID:
        raise ValueError("the task ids of the largest rows are no texts")
    for name, bits in WHOLE_NUMBERS.items():
        column, limit = numbers[name], 1 << bits
        if not {*map(type, column)} <= {int} or not (
            -limit <= min(column, default=0) <= max(column, default=0) < limit
        ):
            raise ValueError(f"{name} of the largest rows is no column of whole numbers")
    return tuple(map(LargeRow._make, zip(*lists, strict=True)))


def are_sums(values: Sequence[Any]) -> bool:
    """Return whether all values are numbers within `LARGEST_SUM`."""
    return {*map(type, values)} <= {int, float} and all(
        -LARGEST_SUM < value < LARGEST_SUM for value in values
    )
