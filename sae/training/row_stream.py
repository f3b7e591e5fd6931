"""The rows that a training reads: batches put together from a few streams, and their scale.

Each batch is put together from the same number of rows of each of `streams` streams, and each
stream reads its part of the files. A process has some of the streams. So the rows of every step are
the same for any number of processes, each row is read once in each epoch, and the positions of the
streams are all that is needed to go on.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.reading.batch_stream import BatchStream
from extraction.reading.dataset import ActivationDataset
from extraction.run.statistics import BINS_PER_OCTAVE, ZERO
from extraction.setting_names import setting
from sae.training.run_settings import DataSettings
from sae.training.settings import Normalization

EVERY_FINITE_ROW = 1e300
"""Multiple of the median norm that leaves out nothing but rows that are not finite."""

MOST_STREAMS, LEAST_FILES = 8, 8
"""By default: at most so many streams, each with at least so many files."""


class RowStream(Iterator[Mapping[str, np.ndarray]]):
    """Batches of a run without end: every row once in each epoch, in another order each time.

    Rows with numbers that are not finite are left out. So is what remains of a stream at the end of
    an epoch and does not fill its part of a batch.

    Args:
        settings: which run, and which of its rows.
        hook_points: hook points to read, by any name; None: the only one.
        process: number of this process, and of all.

    Attributes:
        dataset: the run.
        hook_points: the hook points by their names in the run.
        streams: number of streams, of all processes together.

    Raises:
        StoreError: there is no such run or hook point; it has less than a batch of rows; the
            streams cannot be shared out.
    """

    def __init__(
        self,
        settings: DataSettings,
        hook_points: Sequence[str] | None,
        process: tuple[int, int] = (0, 1),
    ):
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
        self.streams = settings.read_streams or self._default_streams()
        index, count = process
        if self.streams % count or settings.batch_size % self.streams:
            raise StoreError(
                f"{setting('read_streams', self.streams)} must be a multiple of the {count}"
                f" processes, and divide {setting('batch_size', settings.batch_size)}"
            )
        own = self.streams // count
        self._own = range(index * own, (index + 1) * own)
        self._single = hook_points is None
        self._counted: list[Counter[str]] = [Counter() for _ in self._own]
        self._parts: list[BatchStream] = []

    def _default_streams(self) -> int:
        count = MOST_STREAMS
        files = self.dataset.stored_batches
        while count > 1 and (files < count * LEAST_FILES or self._settings.batch_size % count):
            count //= 2
        return count

    def begin(self, start: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Begin to read, or go on from the `position`s of all streams."""
        self.close()
        settings = self._settings
        multiple = settings.max_norm_multiple
        if multiple is None and start:  # as it began; the run may have grown
            filters = start[self._own[0]]["stream"].get("filters") or {}
            multiple = filters.get("max_norm_multiple")
        elif multiple is None:
            statistics = self.dataset.info.statistics
            told = [statistics.get(hook, {}).get("nonfinite_rows") for hook in self.hook_points]
            if any(count is None or count for count in told):
                multiple = EVERY_FINITE_ROW
        self._counted = [
            Counter(start[number]["left_out"]) if start else Counter() for number in self._own
        ]
        self._parts = [
            self.dataset.batches(
                settings.batch_size // self.streams,
                shuffle_seed=settings.shuffle_seed,
                pool_rows=max(1, settings.pool_rows // self.streams),
                drop_last=True,
                epochs=None,
                start=start[number]["stream"] if start else None,
                part=(number, self.streams),
                max_norm_multiple=multiple,
                exclude_special=settings.exclude_special,
                skip_first=settings.skip_first,
            )
            for number in self._own
        ]

    def __next__(self) -> Mapping[str, np.ndarray]:
        """Return this process's rows of the next batch: `[B / processes, width]` float32 each."""
        found = [next(part) for part in self._parts]
        if self._single:
            return {self.hook_points[0]: _joined(found)}
        columns = zip(*(batch.values() for batch in found), strict=True)
        return {
            hook: _joined(column) for hook, column in zip(self.hook_points, columns, strict=True)
        }

    def positions(self) -> list[dict[str, Any]]:
        """Return where each stream of this process goes on, JSON."""
        return [
            {"stream": part.position, "left_out": dict(counted + part.left_out)}
            for part, counted in zip(self._parts, self._counted, strict=True)
        ]

    def left_out(self, positions: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """Return the number of rows that each filter left out, by its name; `together` of all.

        Args:
            positions: those of all streams.
        """
        found: Counter[str] = Counter()
        for position in positions:
            found.update(position["left_out"])
        if self._settings.max_norm_multiple is None and "max_norm_multiple" in found:
            found["not_finite"] = found.pop("max_norm_multiple")
        return dict(found)

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
        """End the streams and their threads."""
        for part in self._parts:
            part.close()


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
