"""One pass over the rows of a run: sums of each autoencoder's latents in each cell of the rows.

A cell is a group, a category and a half (for choosing latents, or for testing them). Rows are read
in the order of their files, some megabytes at a time, and only those that are of a cell.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from extraction.interruption import stop_flag
from extraction.progress import Progress
from extraction.reading.dataset import ActivationDataset
from extraction.run.rows import RowBlock
from sae.autoencoder import SparseAutoencoder
from sae.scores.latent_sums import MOST_KEYS, LatentSums, SumsInParts
from sae.scores.of_rows import encoded

CHUNK_BYTES = 16 << 20
"""Approximate bytes of activations that are read at a time."""

NO_CELL = "in no group"
"""Name of the count of rows of no cell."""

MOST_KEYS_TOGETHER = 1 << 25
"""Most pairs of a latent and a value that are counted apart, in all cells together."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """An autoencoder, and the hook point of the rows that it encodes.

    Attributes:
        name: name in tables and files.
        address: where it was read.
        sae: the autoencoder.
        hook_point: name of the hook point.
    """

    name: str
    address: str
    sae: SparseAutoencoder
    hook_point: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CellSums:
    """The sums of one read.

    Attributes:
        sums: sums of each cell, by the autoencoder's name.
        left_out: number of rows that each filter left out, and of all rows of no cell.
        not_finite: rows of cells that are left out, by the autoencoder's name, as they or their
            latents have a number that is not finite.
    """

    sums: Mapping[str, Sequence[LatentSums]]
    left_out: Mapping[str, int]
    not_finite: Mapping[str, int]


class RowsOfCells:
    """The rows of a run that are of a cell, some at a time: `for rows, cell in RowsOfCells(...)`.

    Args:
        dataset: rows of several hook points.
        cell_of: returns the number of each row's cell `[R]`, -1 for none, from the rows' keys.
        filters: rows to leave out, arguments of `ActivationDataset.kept_rows`.
        progress: told about rows.
        part: `(number, parts)`: of several processes, this one reads each piece of the rows whose
            number leaves this rest.

    Attributes:
        left_out: number of rows that each filter left out, and of other rows of no cell.

    Raises:
        StoreError: the run does not record what a filter needs.
        CorruptBatchError: a file is damaged.
    """

    def __init__(
        self,
        dataset: ActivationDataset,
        cell_of: Callable[[RowBlock], np.ndarray],
        filters: Mapping[str, Any],
        progress: Progress,
        part: tuple[int, int] = (0, 1),
    ):
        self._part = part
        self._dataset, self._cell_of, self._progress = dataset, cell_of, progress
        kept = dataset.kept_rows(**filters)
        self._numbers = kept.numbers
        self.left_out = {**kept.left_out, NO_CELL: 0}

    def __iter__(self) -> Iterator[tuple[Mapping[str, np.ndarray], np.ndarray]]:
        """Yield rows of each hook point, by its name, and the numbers of their cells `[R]`."""
        total = len(self._dataset)
        step = max(1, CHUNK_BYTES // (4 * sum(self._dataset.info.width.values())))
        with stop_flag() as stop:
            for piece, start in enumerate(range(0, total, step)):
                if piece % self._part[1] != self._part[0]:
                    continue
                stop.check()
                end = min(start + step, total)
                part = slice(*np.searchsorted(self._numbers, (start, end)))
                numbers = self._numbers[part]
                if len(numbers):
                    cell = self._cell_of(self._dataset.keys(numbers))
                    self.left_out[NO_CELL] += int((cell < 0).sum())
                    if (cell >= 0).any():
                        yield self._dataset[numbers[cell >= 0]], cell[cell >= 0]
                self._progress("rows read", end, total)


def read_cells(
    dataset: ActivationDataset,
    scored: Sequence[Scored],
    cell_of: Callable[[RowBlock], np.ndarray],
    cells: int,
    filters: Mapping[str, Any],
    progress: Progress,
    part: tuple[int, int] = (0, 1),
) -> CellSums:
    """Return the sums of all cells.

    Args:
        dataset: rows of the autoencoders' hook points.
        scored: the autoencoders.
        cell_of: see `RowsOfCells`.
        cells: number of cells.
        filters: see `RowsOfCells`.
        progress: told about rows.
        part: see `RowsOfCells`.

    Raises:
        StoreError: the run does not record what a filter needs.
        CorruptBatchError: a file is damaged.
    """
    most = min(MOST_KEYS, MOST_KEYS_TOGETHER // max(1, cells * len(scored)))
    sums = {one.name: [SumsInParts(one.sae.d_sae, most) for _ in range(cells)] for one in scored}
    not_finite = {one.name: 0 for one in scored}
    read = RowsOfCells(dataset, cell_of, filters, progress, part)
    for rows, cell in read:
        for one in scored:
            not_finite[one.name] += _add(sums[one.name], one.sae, rows[one.hook_point], cell)
    return CellSums(
        sums={name: [part.total() for part in parts] for name, parts in sums.items()},
        left_out=read.left_out,
        not_finite=not_finite,
    )


def _add(
    sums: Sequence[SumsInParts], sae: SparseAutoencoder, rows: np.ndarray, cell: np.ndarray
) -> int:
    """Add rows to the sums of their cells; return how many are not finite."""
    not_finite = 0
    for part, latents, finite in encoded(sae, rows):
        not_finite += int((~finite).sum())
        for number in np.unique(cell[part]).tolist():
            sums[number].add(latents[finite & (cell[part] == number)])
    return not_finite
