"""Sums and figures of an autoencoder's latents over rows that are in memory or come in batches."""

from collections.abc import Iterable, Iterator

import numpy as np

from sae.autoencoder import SparseAutoencoder
from sae.evaluation.rows import LATENT_BYTES, placed
from sae.scores.figures import LatentFigures
from sae.scores.latent_sums import LatentSums, SumsInParts


def encoded(
    sae: SparseAutoencoder, rows: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield some rows at a time, so that memory stays bounded: slice, latents, which are finite.

    Args:
        sae: the autoencoder.
        rows: `[R, d_in]`.

    Yields:
        A slice of the rows; their latents `[B, d_sae]`; `[B]` bool, whether row and latents are
        finite.
    """
    step = max(1, LATENT_BYTES // (4 * sae.d_sae))
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        with np.errstate(over="ignore", invalid="ignore"):  # such rows are left out
            latents = np.asarray(sae.encode(placed(rows[part])))
        finite = np.isfinite(rows[part]).all(1) & np.isfinite(latents).all(1)
        yield part, latents, np.asarray(finite)


def latent_sums(sae: SparseAutoencoder, batches: np.ndarray | Iterable[np.ndarray]) -> LatentSums:
    """Return the sums of an autoencoder's latents over rows; rows that are not finite are left out.

        of_host_0 + of_host_1       # sums of different rows add up

    Args:
        sae: the autoencoder.
        batches: rows `[rows, d_in]`, or batches of rows.

    Raises:
        StoreError: rows of another width than the autoencoder's.
    """
    sums = SumsInParts(sae.d_sae)
    for batch in [batches] if isinstance(batches, np.ndarray) else batches:
        for _, latents, finite in encoded(sae, batch):
            sums.add(latents[finite])
    return sums.total()


def latent_scores(
    sae: SparseAutoencoder,
    first: np.ndarray | Iterable[np.ndarray],
    second: np.ndarray | Iterable[np.ndarray],
) -> LatentFigures:
    """Return how an autoencoder's latents differ between two groups of rows.

        latent_scores(sae, known_rows, unknown_rows).frequency_difference.argsort()[-20:]

    Args:
        sae: the autoencoder.
        first: rows `[rows, d_in]` of the first group, or batches of rows.
        second: rows of the second group.

    Raises:
        StoreError: a group has no row, or rows of another width than the autoencoder's.
    """
    return LatentFigures.of(latent_sums(sae, first), latent_sums(sae, second))
