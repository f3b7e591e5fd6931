"""Rows that a reader leaves out: norms far above the median, special tokens, first positions.

    for batch in acts.batches(4096, max_norm_multiple=10, exclude_special=True, skip_first=1):
        ...

Attention sinks have norms of a hundred medians and more, so a few of them dominate a mean, a PCA or
a loss. They are stored like any other row; readers leave them out on request.
"""

import dataclasses
import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from extraction.errors import StoreError
from extraction.formats import ParsedBatch
from extraction.formats.float_types import to_float32
from extraction.reading.frameworks import Rows
from extraction.run.large_norms import check_multiple
from extraction.run.rows import UNKNOWN
from extraction.run.statistics import RowStatistics, StatisticsSum, row_norms
from extraction.setting_names import setting

NumberedBatch = tuple[int, int, Mapping[str, ParsedBatch]]
"""Number of a batch's first row, the batch's id, and its rows by hook point."""

TOGETHER = "together"
"""Name of the count of rows that at least one filter leaves out."""


class KeptRows(NamedTuple):
    """The rows that filters keep.

    Attributes:
        numbers: `[kept]` int64, ascending numbers of the kept rows.
        left_out: number of rows that each filter leaves out, by the filter's name, and of all rows
            that are left out, `together`.
    """

    numbers: np.ndarray
    left_out: dict[str, int]

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.left_out.items())
        return f"KeptRows({len(self.numbers):,} rows; left out: {counts})"

    def _repr_html_(self) -> str:
        from extraction.notebook_html import summary

        counts = {f"left out by {name}": f"{count:,}" for name, count in self.left_out.items()}
        together = counts.pop(f"left out by {TOGETHER}")
        facts = {"kept": f"{len(self.numbers):,}", **counts, "left out together": together}
        return summary("Kept rows", facts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFilters:
    """The rows that a user asks to leave out.

    Attributes:
        max_norm_multiple: leave out rows whose norm is above this many times the median norm of
            their hook point, or not finite; with several hook points, at any of them. None: no row.
        exclude_special: leave out rows of special tokens: True for the ids that the run records,
            or token ids.
        skip_first: leave out rows at positions below this number.

    Raises:
        StoreError: a value has another type, or is out of range.
    """

    max_norm_multiple: float | None = None
    exclude_special: bool | Sequence[int] = False
    skip_first: int = 0

    def __post_init__(self):
        if self.max_norm_multiple is not None:
            object.__setattr__(self, "max_norm_multiple", check_multiple(self.max_norm_multiple))
        if not isinstance(self.exclude_special, bool):
            try:
                ids = tuple(sorted({operator.index(i) for i in self.exclude_special}))
            except TypeError:
                raise StoreError(
                    f"exclude_special is True or token ids, not {self.exclude_special!r:.100}"
                ) from None
            object.__setattr__(self, "exclude_special", ids)
        skip = self.skip_first
        if isinstance(skip, bool) or not hasattr(skip, "__index__") or skip < 0:
            raise StoreError(f"{setting('skip_first', skip)} is no whole number from 0")
        object.__setattr__(self, "skip_first", operator.index(skip))

    def __bool__(self) -> bool:
        return (
            self.max_norm_multiple is not None
            or self.exclude_special is not False
            or self.skip_first > 0
        )

    def special_ids(self, recorded: Sequence[int] | None, address: str) -> tuple[int, ...] | None:
        """Return the token ids whose rows are left out; None without `exclude_special`.

        Args:
            recorded: ids that the run records; None if it records none.
            address: address of the run, for the message.

        Raises:
            StoreError: `exclude_special` is True, and the run records no ids.
        """
        if self.exclude_special is False:
            return None
        if self.exclude_special is not True:
            return tuple(self.exclude_special)
        if recorded is None:
            raise StoreError(
                f"{address} does not record which tokens are special; name their ids:"
                f" {setting('exclude_special', 151643, 151644)}"
            )
        return tuple(recorded)


class RowFilter:
    """Row filters with the limits and token ids of a run.

    Args:
        filters: the filters that the user asks for.
        limits: largest norm of a kept row, by hook point; None where no row has a finite norm.
            Empty without `max_norm_multiple`.
        special_ids: token ids whose rows are left out; None without `exclude_special`.
    """

    def __init__(
        self,
        filters: RowFilters,
        limits: Mapping[str, float | None],
        special_ids: Sequence[int] | None,
    ):
        self._filters, self._limits, self._special_ids = filters, dict(limits), special_ids

    def position(self) -> dict[str, Any]:
        """Return the filters as a stream's position holds them, JSON."""
        special = self._special_ids
        return {
            "max_norm_multiple": self._filters.max_norm_multiple,
            "limits": self._limits,
            "exclude_special": None if special is None else list(special),
            "skip_first": self._filters.skip_first,
        }

    def kept(self, batch: Mapping[str, ParsedBatch], batch_id: int) -> KeptRows:
        """Return which rows of a batch are kept.

        Args:
            batch: rows of each hook point.
            batch_id: number of the batch, for messages.

        Raises:
            StoreError: positions or token ids are not known, and a filter needs them.
        """
        some = next(iter(batch.values()))
        masks: dict[str, np.ndarray] = {}
        if self._limits:
            masks["max_norm_multiple"] = np.zeros(len(some.row_keys), bool)
            for hook, parsed in batch.items():
                above = above_limit(to_float32(parsed.stored, parsed.dtype), self._limits[hook])
                masks["max_norm_multiple"] |= above
        if self._special_ids is not None:
            token_id = _known(some.keys.token_id, "exclude_special", "token id", batch_id)
            masks["exclude_special"] = np.isin(token_id, self._special_ids)
        if self._filters.skip_first:
            position = _known(some.keys.position, "skip_first", "position", batch_id)
            masks["skip_first"] = position < self._filters.skip_first
        masks[TOGETHER] = np.logical_or.reduce(list(masks.values()))
        return KeptRows(
            np.flatnonzero(~masks[TOGETHER]),
            {filter_name: int(mask.sum()) for filter_name, mask in masks.items()},
        )

    def kept_of_all(self, batches: Iterable[NumberedBatch]) -> KeptRows:
        """Return which rows of all batches are kept.

        Args:
            batches: all rows of the run.

        Raises:
            StoreError: see `kept`.
        """
        numbers, left_out = [np.zeros(0, np.int64)], Counter()
        for first, batch_id, parsed in batches:
            kept = self.kept(parsed, batch_id)
            numbers.append(first + kept.numbers)
            left_out.update(kept.left_out)
        return KeptRows(np.concatenate(numbers), dict(left_out))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReadBatch:
    """The kept rows of a batch.

    Attributes:
        rows: kept rows of each hook point.
        kept: `[kept]` int64, numbers of the kept rows in the batch; None if all rows are kept.
        left_out: see `KeptRows`.
    """

    rows: Rows
    kept: np.ndarray | None = None
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows, kept: KeptRows) -> "ReadBatch":
        """Return a batch without the rows that are not kept."""
        if not kept.left_out[TOGETHER]:
            return cls(rows=rows, left_out=kept.left_out)
        few = {hook: values[kept.numbers] for hook, values in rows.items()}
        return cls(rows=few, kept=kept.numbers, left_out=kept.left_out)


def above_limit(rows: np.ndarray, limit: float | None) -> np.ndarray:
    """Return `[R]` bool: whether a row's norm is above the limit, or not finite.

    Args:
        rows: `[R, width]`.
        limit: largest norm that is not above it; None for no limit.
    """
    norms = row_norms(rows)
    above = ~(norms < np.inf)
    return above if limit is None else above | (norms > limit)


def limits_above(medians: Mapping[str, float | None], multiple: float) -> dict[str, float | None]:
    """Return the largest norm that is not far above the median, by hook point.

    Args:
        medians: median norm of each hook point; None if no row is finite.
        multiple: number of medians that a norm may have.
    """
    return {hook: None if median is None else multiple * median for hook, median in medians.items()}


def limits_of(position: Any, hook_points: Sequence[str]) -> dict[str, float | None] | None:
    """Return the limits of norms in a stream's position; None if it has none of these hook points.

    Args:
        position: the user's value, of any type.
        hook_points: names of the hook points.
    """
    filters = position.get("filters") if isinstance(position, Mapping) else None
    limits = filters.get("limits") if isinstance(filters, Mapping) else None
    if not isinstance(limits, Mapping) or set(limits) != set(hook_points):
        return None
    if not all(
        limit is None or (type(limit) in (int, float) and 0 <= limit < math.inf)
        for limit in limits.values()
    ):
        return None
    return {hook: limits[hook] for hook in hook_points}


def rows_above(
    limits: Mapping[str, float | None], batches: Iterable[NumberedBatch]
) -> dict[str, np.ndarray]:
    """Return the numbers of the rows above a limit, `[found]` int64 of each hook point.

    Args:
        limits: norm of each hook point; None if no row has a finite one.
        batches: all rows of the run.
    """
    found = {hook: [np.zeros(0, np.int64)] for hook in limits}
    for first, _, parsed in batches:
        for hook, batch in parsed.items():
            above = above_limit(to_float32(batch.stored, batch.dtype), limits[hook])
            found[hook].append(first + np.flatnonzero(above))
    return {hook: np.concatenate(numbers) for hook, numbers in found.items()}


def median_norms(
    hook_points: Sequence[str], batches: Iterable[NumberedBatch]
) -> dict[str, float | None]:
    """Return the median norm of each hook point; None if no row is finite.

    Args:
        hook_points: names of the hook points.
        batches: all rows of a run that records no statistics.
    """
    sums = {hook: StatisticsSum() for hook in hook_points}
    for _, _, parsed in batches:
        for hook, batch in parsed.items():
            sums[hook].add(RowStatistics.of(to_float32(batch.stored, batch.dtype)))
    totals = {hook: part.total() for hook, part in sums.items()}
    return {hook: part.median_norm() if part.values else None for hook, part in totals.items()}


def _known(column: np.ndarray, name: str, what: str, batch_id: int) -> np.ndarray:
    """Return a column of keys, and raise StoreError if a row has none."""
    if (column == UNKNOWN).any():
        raise StoreError(
            f"{setting(name)} needs the {what} of every row, and batch {batch_id} has rows without"
        )
    return column
