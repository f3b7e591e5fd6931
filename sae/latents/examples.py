"""The rows of each latent that are shown: the top ones, and random ones of ranges of activation.

The ranges divide a latent's random active rows by activation into parts of equal numbers of rows.
A latent with fewer active rows than the sample has its exact quantiles.
"""

import dataclasses

import numpy as np

from sae.latents.kept_rows import NO_ROW
from sae.latents.latent_pass import LatentPass

TOP = -1
"""Number of the range of top rows."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Rows of latents, sorted by latent; a latent's top rows come first, then range by range.

    Attributes:
        latents: `[E]` int64, place of the latent in `LatentPass.numbers`.
        ranges: `[E]` int64, number of the range, from the largest activations; `TOP` for top rows.
        rows: `[E]` int64, number of the row in the run.
        values: `[E]` float32, activation.
        bounds: `[L, ranges, 2]` float32, smallest and largest activation in each range of the
            sample; NaN for a range without rows.
    """

    latents: np.ndarray
    ranges: np.ndarray
    rows: np.ndarray
    values: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def examples_of(found: LatentPass, ranges: int, rows_per_range: int) -> Examples:
    """Return the rows that are shown.

    Args:
        found: the pass over all rows.
        ranges: number of ranges.
        rows_per_range: most rows of a range.
    """
    found.settle()
    bounds = np.full((len(found.numbers), ranges, 2), np.nan, np.float32)
    columns: list[tuple[np.ndarray, ...]] = []
    for latent in range(len(found.numbers)):
        top, sample = found.top.rows[latent] != NO_ROW, found.sample.rows[latent] != NO_ROW
        columns.append(_column(latent, TOP, found.top.rows[latent], found.top.values[latent], top))
        rows, values = found.sample.rows[latent][sample], found.sample.values[latent][sample]
        order = np.lexsort((rows, -values))
        for number, places in enumerate(np.array_split(order, ranges) if ranges else ()):
            if not len(places):
                continue
            bounds[latent, number] = values[places].min(), values[places].max()
            chosen = np.sort(places)[:rows_per_range]  # the sample is in random order
            columns.append(
                _column(latent, number, rows[chosen], values[chosen], np.ones(len(chosen), bool))
            )
    latents, numbers, rows, values = map(np.concatenate, zip(*columns, strict=True))
    return Examples(latents=latents, ranges=numbers, rows=rows, values=values, bounds=bounds)


def _column(
    latent: int, number: int, rows: np.ndarray, values: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, ...]:
    count = int(kept.sum())
    return np.full(count, latent), np.full(count, number), rows[kept], values[kept]
