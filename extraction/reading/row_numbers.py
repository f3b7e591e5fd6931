"""Numbers of rows over all batches: which row of which batch each number is."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from extraction.reading.run_contents import StoredBatch

Place = slice | np.ndarray
"""Indices of rows: a slice, or their numbers."""

EVERY = slice(None)


class RowNumbers:
    """Row numbers through consecutive batches; iterating yields first row number and batch.

    Attributes:
        batches: the batches, in order.
        rows: number of rows of all batches.
    """

    def __init__(self, batches: Sequence[StoredBatch]):
        self.batches = tuple(batches)
        self._ends = np.cumsum([batch.rows for batch in batches], dtype=np.int64)
        self.rows = int(self._ends[-1]) if batches else 0

    def __iter__(self) -> Iterator[tuple[int, StoredBatch]]:
        for batch, end in zip(self.batches, self._ends.tolist(), strict=True):
            yield end - batch.rows, batch

    def pieces(self, rows: Any) -> tuple[list[tuple[StoredBatch, Place, Place]], int]:
        """Return which rows of which batches a request needs, and their places in the answer.

        Args:
            rows: a number, a slice, numbers in any order, or a mask of all rows.

        Returns:
            The pieces (batch, indices in it, indices in the answer), each batch once; and the
            number of rows of the answer.

        Raises:
            IndexError: there is no such row, or `rows` is of another kind.
        """
        if is_number(rows):
            number = int(self._checked(np.array([operator.index(rows)]))[0])
            return list(self._stretch(number, number + 1)), 1
        if isinstance(rows, slice):
            numbers = range(self.rows)[rows]
            if numbers.step == 1:
                return list(self._stretch(numbers.start, numbers.stop)), len(numbers)
            return list(self._scattered(np.array(numbers, np.int64))), len(numbers)
        wanted = np.asarray(rows)
        if wanted.dtype == bool and wanted.shape == (self.rows,):
            wanted = np.flatnonzero(wanted)
        if (
            isinstance(rows, tuple)
            or wanted.ndim != 1
            or (wanted.size and wanted.dtype.kind not in "iu")
        ):
            raise IndexError(
                f"rows cannot be chosen by an array {wanted.dtype} {list(wanted.shape)}; give a"
                f" number, a slice, a list of numbers or a mask of {self.rows}"
            )
        return list(self._scattered(self._checked(wanted.astype(np.int64)))), len(wanted)

    def _checked(self, numbers: np.ndarray) -> np.ndarray:
        """Return numbers counted from 0, for numbers that may count from the end."""
        bad = (numbers < -self.rows) | (numbers >= self.rows)
        if bad.any():
            raise IndexError(f"there is no row {numbers[bad][0]}; the run has {self.rows}")
        return np.where(numbers < 0, numbers + self.rows, numbers)

    def _stretch(self, start: int, stop: int) -> Iterator[tuple[StoredBatch, Place, Place]]:
        """Yield the pieces of consecutive rows."""
        number, at = int(np.searchsorted(self._ends, start, side="right")), start
        while at < stop:
            batch, end = self.batches[number], int(self._ends[number])
            first, to = end - batch.rows, min(stop, end)
            yield batch, slice(at - first, to - first), slice(at - start, to - start)
            number, at = number + 1, to

    def _scattered(self, wanted: np.ndarray) -> Iterator[tuple[StoredBatch, Place, Place]]:
        """Yield the pieces of rows in any order, each batch once."""
        numbers = np.searchsorted(self._ends, wanted, side="right")
        order = np.argsort(numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[order])) + 1
        for places in np.split(order, cuts) if len(order) else ():
            number = int(numbers[places[0]])
            batch = self.batches[number]
            yield batch, wanted[places] - (int(self._ends[number]) - batch.rows), places


def is_number(rows: Any) -> bool:
    """Return whether one row is asked for by its number."""
    return hasattr(rows, "__index__") and np.ndim(rows) == 0 and not isinstance(rows, bool)
