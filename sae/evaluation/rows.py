"""How well autoencoders reconstruct rows: one pass over them, for any number of autoencoders.

With x a row (of a transcoder: the row that it should give), x̂ its reconstruction, and E the mean
over rows:

    explained_variance   1 - E||x - x̂||² / (E||x||² - ||E x||²)
    fvu                  1 - explained_variance, the fraction of variance unexplained
    mse                  E||x - x̂||², summed over the width
    cosine               E of the cosine of x and x̂
    norm_ratio           E of ||x̂|| / ||x||
    bias                 E||x̂||² / E<x, x̂>, 1 if x̂ is x; below 1 if reconstructions are too short
    l0                   E of the number of active latents

Sums are float64; reconstructions are float32, or float64 if rows or weights are.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.progress import Progress, silent
from sae.autoencoder import SparseAutoencoder

LATENT_BYTES = 1 << 28
"""Most bytes of the latents of the rows that are encoded at a time."""

DENSITY_FLOOR, BINS_PER_DECADE = -8, 4
"""The histogram of densities begins at 10^-8, in quarters of a power of ten."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFigures:
    """How well some rows are reconstructed; see the module. None where there is no such number.

    Attributes:
        rows: number of rows.
        explained_variance: of the variant in the module's docstring.
        fvu: 1 - `explained_variance`.
        mse: mean squared distance.
        l0: mean number of active latents.
        cosine: mean cosine.
        norm_ratio: mean ratio of norms.
        bias: relative reconstruction bias.
    """

    rows: int
    explained_variance: float | None
    fvu: float | None
    mse: float | None
    l0: float | None
    cosine: float | None
    norm_ratio: float | None
    bias: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RowEvaluation:
    """What an autoencoder does to rows.

    Attributes:
        all_rows: figures of all finite rows.
        without_sinks: figures of the rows whose norm is at most `max_norm`.
        max_norm: norm above which a row is a sink; None: no row is.
        not_finite: rows that are left out, as they have a number that is not finite.
        densities: `[d_sae]` float64, the part of the rows without sinks in which each latent is
            active; a sink may activate hundreds that nothing else does.
    """

    all_rows: RowFigures
    without_sinks: RowFigures
    max_norm: float | None
    not_finite: int
    densities: np.ndarray

    @property
    def dead(self) -> int:
        """Number of latents that are active in no row, sinks apart."""
        return int((self.densities == 0).sum())

    def histogram(self) -> list[tuple[float, float, int]]:
        """Return the histogram of log10 of the densities above 0: from, to, latents."""
        return density_histogram(self.densities)

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "all_rows": dataclasses.asdict(self.all_rows),
            "without_sinks": dataclasses.asdict(self.without_sinks),
            "max_norm": self.max_norm,
            "not_finite": self.not_finite,
            "dead": self.dead,
            "density_histogram": [
                {"log10_from": low, "log10_to": high, "latents": latents}
                for low, high, latents in self.histogram()
            ],
        }


def density_histogram(densities: np.ndarray) -> list[tuple[float, float, int]]:
    """Return the histogram of log10 of the densities above 0: from, to, latents.

    Args:
        densities: `[d_sae]`, the part of the rows in which each latent is active.
    """
    alive = densities[densities > 0]
    bins = np.floor(np.log10(alive) * BINS_PER_DECADE).clip(DENSITY_FLOOR * BINS_PER_DECADE, -1)
    found, counts = np.unique(bins.astype(int), return_counts=True)
    return [
        (place / BINS_PER_DECADE, (place + 1) / BINS_PER_DECADE, int(count))
        for place, count in zip(found, counts, strict=True)
    ]


class _Sums:
    """Sums over rows, from which `RowFigures` are computed."""

    def __init__(self, width: int):
        self.rows = self.active = self.with_direction = 0
        self.values = np.zeros(width)
        self.squares = self.errors = self.made_squares = self.products = 0.0
        self.cosines = self.ratios = 0.0

    def add(self, wanted: np.ndarray, made: np.ndarray, active: np.ndarray) -> None:
        """Add rows `[B, width]` float64, their reconstructions, and their active latents `[B]`."""
        squares, made_squares = (wanted**2).sum(1), (made**2).sum(1)
        products = (wanted * made).sum(1)
        self.rows += len(wanted)
        self.active += int(active.sum())
        self.values += wanted.sum(0)
        self.squares += squares.sum()
        self.errors += ((wanted - made) ** 2).sum()
        self.made_squares += made_squares.sum()
        self.products += products.sum()
        some = squares > 0
        norms, made_norms = np.sqrt(squares[some]), np.sqrt(made_squares[some])
        self.with_direction += int(some.sum())
        self.ratios += (made_norms / norms).sum()
        self.cosines += (products[some] / np.maximum(norms * made_norms, 1e-300)).sum()

    def figures(self) -> RowFigures:
        def mean(total: float, count: int) -> float | None:
            return float(total / count) if count else None

        rows = self.rows
        variance = self.squares / rows - float(self.values @ self.values) / rows**2 if rows else 0
        fvu = float(self.errors / rows / variance) if variance > 0 else None
        return RowFigures(
            rows=rows,
            explained_variance=None if fvu is None else 1 - fvu,
            fvu=fvu,
            mse=mean(self.errors, rows),
            l0=mean(self.active, rows),
            cosine=mean(self.cosines, self.with_direction),
            norm_ratio=mean(self.ratios, self.with_direction),
            bias=float(self.made_squares / self.products) if self.products else None,
        )


class RowEvaluator:
    """Adds up what an autoencoder does to rows.

    Args:
        sae: the autoencoder.
        max_norm: norm above which a row is a sink; None: no row is.

    Raises:
        StoreError: see `add`.
    """

    def __init__(self, sae: SparseAutoencoder, max_norm: float | None = None):
        self.sae = sae
        self.max_norm = max_norm
        self._all, self._without = _Sums(sae.d_out), _Sums(sae.d_out)
        self._fired = np.zeros(sae.d_sae, np.int64)
        self._not_finite = 0

    def add(self, rows: np.ndarray, targets: np.ndarray | None = None) -> None:
        """Add rows.

        Args:
            rows: `[B, d_in]`.
            targets: `[B, d_out]`, the rows that a transcoder should give; None: `rows`.

        Raises:
            StoreError: rows of another width than the autoencoder's.
        """
        step = max(1, LATENT_BYTES // (4 * self.sae.d_sae))
        wanted = rows if targets is None else targets
        with np.errstate(over="ignore", invalid="ignore"):  # such figures are not finite
            for start in range(0, len(rows), step):
                self._add(rows[start : start + step], wanted[start : start + step])

    def _add(self, rows: np.ndarray, wanted: np.ndarray) -> None:
        finite = np.isfinite(rows).all(1) & np.isfinite(wanted).all(1)
        if not finite.all():
            self._not_finite += int((~finite).sum())
            rows, wanted = rows[finite], wanted[finite]
        latents = self.sae.encode(placed(rows))
        active = latents > 0
        made = np.asarray(self.sae.decode(latents), np.float64)
        counts = np.asarray(active.sum(1))
        fired = np.asarray(active.sum(0), np.int64)
        wanted = wanted.astype(np.float64)
        self._all.add(wanted, made, counts)
        if self.max_norm is not None:
            usual = np.linalg.norm(rows.astype(np.float64), axis=1) <= self.max_norm
            wanted, made, counts = wanted[usual], made[usual], counts[usual]
            fired -= np.asarray(active[np.flatnonzero(~usual)].sum(0), np.int64)
        self._fired += fired
        self._without.add(wanted, made, counts)

    def result(self) -> RowEvaluation:
        """Return the figures of the rows so far."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._result()

    def _result(self) -> RowEvaluation:
        return RowEvaluation(
            all_rows=self._all.figures(),
            without_sinks=self._without.figures(),
            max_norm=self.max_norm,
            not_finite=self._not_finite,
            densities=self._fired / max(1, self._without.rows),
        )


def placed(rows: np.ndarray) -> Any:
    """Return the rows on an accelerator if JAX is in use and there is one, else as they are."""
    jax = sys.modules.get("jax")
    if jax is None or jax.default_backend() == "cpu":
        return rows
    return jax.numpy.asarray(rows)


def evaluate_rows(
    saes: Mapping[str, SparseAutoencoder],
    batches: np.ndarray | Iterable[np.ndarray],
    *,
    max_norm: float | None = None,
    progress: Progress = silent,
) -> dict[str, RowEvaluation]:
    """Return what autoencoders do to rows, by the autoencoders' names.

        evaluate_rows({"k=32": sae}, dataset.batches(4096))["k=32"].all_rows.fvu

    Args:
        saes: autoencoders of one hook point, by name.
        batches: rows `[rows, width]`, or batches of rows.
        max_norm: norm above which a row is an attention sink; None: no row is.
        progress: called with the number of rows.

    Raises:
        StoreError: rows of another width than an autoencoder's, or none.
    """
    if max_norm is not None and not 0 < max_norm < math.inf:
        raise StoreError(f"max_norm must be a number above 0, not {max_norm}")
    evaluators = {name: RowEvaluator(sae, max_norm) for name, sae in saes.items()}
    rows = 0
    for batch in [batches] if isinstance(batches, np.ndarray) else batches:
        for evaluator in evaluators.values():
            evaluator.add(batch)
        rows += len(batch)
        progress("rows evaluated", rows, 0)
    if not rows:
        raise StoreError("there are no rows to evaluate on")
    return {name: evaluator.result() for name, evaluator in evaluators.items()}
