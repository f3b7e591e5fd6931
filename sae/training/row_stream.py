"""The rows that a training reads: a stream of batches that can be continued, and their scale."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.reading.dataset import ActivationDataset
from extraction.run.statistics import BINS_PER_OCTAVE, ZERO
from extraction.setting_names import setting
from sae.training.run_settings import DataSettings
from sae.training.settings import Normalization

EVERY_FINITE_ROW = 1e300
"""Multiple of the median norm that leaves out nothing but rows that are not finite."""


class RowStream(Iterator[Mapping[str, np.ndarray]]):
    """Batches of a run without end: every row once in each epoch, in another order each time.

    Rows with numbers that are not finite are left out. So is what remains at the end of an epoch
    and is less than a batch.

    Args:
        settings: which run, and which of its rows.
        hook_points: hook points to read, by any name; None: the only one.

    Attributes:
        dataset: the run.
        hook_points: the hook points by their names in the run.

    Raises:
        StoreError: there is no such run or hook point; it has less than a batch of rows.
    """

    def __init__(self, settings: DataSettings, hook_points: Sequence[str] | None):
        self._settings = settings
        self.dataset = ActivationDataset(
            settings.activations_dir, None if hook_points is None else list(hook_points)
        )
        self.hook_points = self.dataset.hook_points
        if len(self.dataset) < settings.batch_size:
            raise StoreError(
                f"{settings.activations_dir} has {len(self.dataset):,} rows, less than one batch of"
                f" {setting('batch_size', settings.batch_size)}"
            )
        self._single = hook_points is None
        self._counted: Counter[str] = Counter()
        self._stream: Any = None

    def begin(self, start: Mapping[str, Any] | None = None) -> None:
        """Begin to read, or go on from a `position`."""
        self.close()
        settings = self._settings
        multiple = settings.max_norm_multiple
        statistics = self.dataset.info.statistics
        told = [statistics.get(hook, {}).get("nonfinite_rows") for hook in self.hook_points]
        if multiple is None and any(count is None or count for count in told):
            multiple = EVERY_FINITE_ROW
        self._counted = Counter(start["left_out"]) if start else Counter()
        self._stream = self.dataset.batches(
            settings.batch_size,
            shuffle_seed=settings.shuffle_seed,
            pool_rows=settings.pool_rows,
            drop_last=True,
            epochs=None,
            start=start["stream"] if start else None,
            max_norm_multiple=multiple,
            exclude_special=settings.exclude_special,
            skip_first=settings.skip_first,
        )

    def __next__(self) -> Mapping[str, np.ndarray]:
        """Return `[batch_size, width]` float32 of each hook point."""
        batch = next(self._stream)
        if self._single:
            return {self.hook_points[0]: batch}
        return dict(zip(self.hook_points, batch.values(), strict=True))

    @property
    def left_out(self) -> dict[str, int]:
        """Number of rows that each filter left out, by its name; `together` of all."""
        found = self._counted + self._stream.left_out
        if self._settings.max_norm_multiple is None and "max_norm_multiple" in found:
            found["not_finite"] = found.pop("max_norm_multiple")
        return dict(found)

    @property
    def position(self) -> dict[str, Any]:
        """Where the next batch begins, as a dictionary for JSON."""
        counted = self._counted + self._stream.left_out
        return {"stream": self._stream.position, "left_out": dict(counted)}

    def scale(self, hook_point: str, normalize: Normalization) -> float:
        """Return what rows of a hook point are multiplied by, from the run's statistics.

        Raises:
            StoreError: the run has no statistics, or no finite row.
        """
        if normalize == "none":
            return 1.0
        width = self.dataset.info.width[hook_point]
        entry = self.dataset.info.statistics.get(hook_point)
        if entry is None:
            raise StoreError(
                f"{self._settings.activations_dir} has no statistics of {hook_point}; use"
                f" {setting('normalize', 'none')}"
            )
        mean, mean_square = norm_means(entry, width, self._settings.max_norm_multiple)
        if not mean_square:
            raise StoreError(f"no row of {hook_point} is finite and not zero")
        return math.sqrt(width) / mean if normalize == "mean_norm" else 1 / math.sqrt(mean_square)

    def close(self) -> None:
        """End the stream and its threads."""
        if self._stream is not None:
            self._stream.close()


def norm_means(
    statistics: Mapping[str, Any], width: int, multiple: float | None
) -> tuple[float, float]:
    """Return the mean norm and the mean squared norm of rows, from a run's statistics.

    Without a multiple both are exact where the run records them; else they are read from the
    histogram of norms, within a percent.

    Args:
        statistics: entry of a hook point in `metadata.json`.
        width: width of the rows.
        multiple: only rows with norms up to this many times the median; None: all.
    """
    counts = statistics["norm_histogram"]["counts"]
    if multiple is None and statistics.get("mean_norm") and statistics.get("mean_square"):
        return statistics["mean_norm"], statistics["mean_square"] * width
    limit = math.inf if multiple is None else multiple * (statistics["median_norm"] or math.inf)
    total = norms = squares = 0.0
    for name, count in counts.items():
        norm = 0.0 if name == ZERO else 2 ** ((int(name) + 0.5) / BINS_PER_OCTAVE)
        if norm <= limit:
            total += count
            norms += count * norm
            squares += count * norm * norm
    return (norms / total, squares / total) if total else (0.0, 0.0)
