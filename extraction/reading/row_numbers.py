"""Numbers of rows: which row of which batch each one is."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from extraction.reading.run_contents import StoredBatch

Place = slice | np.ndarray
"""Where rows are: a stretch, or their numbers."""

EVERY = slice(None)


class RowNumbers:
    """Rows counted through batches one behind the other; iterating gives first row and batch.

    Attributes:
        batches: in this order.
        rows: of all together.
    """

    def __init__(self, batches: Sequence[StoredBatch]):
        self.batches = tuple(batches)
        self._ends = np.cumsum([batch.rows for batch in batches], dtype=np.int64)
        self.rows = int(self._ends[-1]) if batches else 0

    def __iter__(self) -> Iterator[tuple[int, StoredBatch]]:
        for batch, end in zip(self.batches, self._ends.tolist(), strict=True):
            yield end - batch.rows, batch

    def pieces(self, rows: Any) -> tuple[list[tuple[StoredBatch, Place, Place]], int]:
        """Which rows of which batches are asked for, and where each belongs in the answer.

        Args:
            rows: a number, a slice, numbers in any order, or a mask of all rows.

        Returns:
            The pieces (batch, places there, places in the answer), each batch once; and how many
            rows the answer has.

        Raises:
            IndexError: there is no such row, or that is no way to ask for rows.
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
                f"{wanted.dtype} {list(wanted.shape)} asks for no rows; a number, a slice, numbers"
                f" or a mask of {self.rows} do"
            )
        return list(self._scattered(self._checked(wanted.astype(np.int64)))), len(wanted)

    def _checked(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers from 0, of those that may count from the end."""
        bad = (numbers < -self.rows) | (numbers >= self.rows)
        if bad.any():
            raise IndexError(f"there is no row {numbers[bad][0]} of {self.rows}")
        return np.where(numbers < 0, numbers + self.rows, numbers)

    def _stretch(self, start: int, stop: int) -> Iterator[tuple[StoredBatch, Place, Place]]:
        """Of rows that follow each other."""
        number, at = int(np.searchsorted(self._ends, start, side="right")), start
        while at < stop:
            batch, end = self.batches[number], int(self._ends[number])
            first, to = end - batch.rows, min(stop, end)
            yield batch, slice(at - first, to - first), slice(at - start, to - start)
            number, at = number + 1, to

    def _scattered(self, wanted: np.ndarray) -> Iterator[tuple[StoredBatch, Place, Place]]:
        """Of rows in any order; each batch is taken up once."""
        numbers = np.searchsorted(self._ends, wanted, side="right")
        order = np.argsort(numbers, kind="stable")
        cuts = np.flatnonzero(np.diff(numbers[order])) + 1
        for places in np.split(order, cuts) if len(order) else ():
            number = int(numbers[places[0]])
            batch = self.batches[number]
            yield batch, wanted[places] - (int(self._ends[number]) - batch.rows), places


def is_number(rows: Any) -> bool:
    """Whether one row is asked for by its number."""
    return hasattr(rows, "__index__") and np.ndim(rows) == 0 and not isinstance(rows, bool)
