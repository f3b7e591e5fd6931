"""The rows of a run file by file, for one pass over runs of any size."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from extraction.reading.frameworks import Rows
from extraction.run.rows import RowBlock

FilePart = tuple[int, int]
"""`(index, parts)`: of all files, this reader takes each one whose number leaves this rest."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class KeptFile:
    """The rows of one stored batch that filters keep.

    Attributes:
        batch_id: id of the batch.
        first: number of its first row in the run.
        end: number after its last row.
        numbers: `[kept]` int64, ascending numbers of the kept rows in the run.
        rows: kept rows of each hook point, `[kept, width]`.
        left_out: number of rows that each filter leaves out; empty without filters.
        read_keys: returns the keys of all rows of the batch, kept or not.
    """

    batch_id: int
    first: int
    end: int
    numbers: np.ndarray
    rows: Rows
    left_out: Mapping[str, int]
    read_keys: Callable[[], RowBlock]

    @functools.cached_property
    def keys(self) -> RowBlock:
        """Keys of all rows of the batch, kept or not, without token texts."""
        return self.read_keys()


KeptFiles = Iterator[KeptFile]
"""Files in their stored order."""
