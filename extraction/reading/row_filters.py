"""Rows that a reader leaves out: norms far above the median, special tokens, first positions.

    for batch in acts.batches(4096, max_norm_multiple=10, exclude_special=True, skip_first=1):
        ...

Attention sinks have norms of a hundred medians and more; few of them decide what a mean, a PCA or a
loss becomes. They are stored as any other row, and left out here if that is asked for.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from extraction.errors import StoreError
from extraction.formats import ParsedBatch
from extraction.formats.float_types import to_float32
from extraction.reading.frameworks import Rows
from extraction.run.large_norms import check_multiple
from extraction.run.rows import UNKNOWN
from extraction.run.statistics import row_norms
from extraction.setting_names import setting

TOGETHER = "together"
"""Name in the counts of the rows that any of the filters leaves out."""


class KeptRows(NamedTuple):
    """Rows that filters keep.

    Attributes:
        numbers: `[kept]` int64, of the rows, ascending.
        left_out: rows that each filter leaves out, by its name, and all of them `together`.
    """

    numbers: np.ndarray
    left_out: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFilters:
    """What a user asks to leave out.

    Attributes:
        max_norm_multiple: rows whose norm is above this many times the median norm of their hook
            point, or not finite; of several hook points, at any of them. None: none.
        exclude_special: rows of special tokens, those whose ids the run records; or token ids.
        skip_first: rows at positions below this number.

    Raises:
        StoreError: one of them is no such number.
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
        """Return the token ids whose rows are left out; None: no such are asked for.

        Args:
            recorded: by the run; None: it records none.
            address: of the run.

        Raises:
            StoreError: they are those of the run, which records none.
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
    """`RowFilters` for the hook points of a run.

    Args:
        filters: what is asked for.
        limits: of each hook point, the norm that rows are left out above; None: no row has a finite
            norm. Empty if norms do not matter.
        special_ids: token ids whose rows are left out; None: they do not matter.
    """

    def __init__(
        self,
        filters: RowFilters,
        limits: Mapping[str, float | None],
        special_ids: Sequence[int] | None,
    ):
        self._filters, self._limits, self._special_ids = filters, dict(limits), special_ids

    def position(self) -> dict[str, Any]:
        """Return what a stream's position tells of the filters."""
        special = self._special_ids
        return {
            "max_norm_multiple": self._filters.max_norm_multiple,
            "limits": self._limits,
            "exclude_special": None if special is None else list(special),
            "skip_first": self._filters.skip_first,
        }

    def kept(self, batch: Mapping[str, ParsedBatch], name: str) -> KeptRows:
        """Return which rows of a batch are kept.

        Args:
            batch: of each hook point.
            name: of the batch, for a message.

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
            token_id = _known(some.keys.token_id, "exclude_special", "token id", name)
            masks["exclude_special"] = np.isin(token_id, self._special_ids)
        if self._filters.skip_first:
            position = _known(some.keys.position, "skip_first", "position", name)
            masks["skip_first"] = position < self._filters.skip_first
        masks[TOGETHER] = np.logical_or.reduce(list(masks.values()))
        return KeptRows(
            np.flatnonzero(~masks[TOGETHER]),
            {filter_name: int(mask.sum()) for filter_name, mask in masks.items()},
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReadBatch:
    """The rows of a batch that a stream gives.

    Attributes:
        rows: of each hook point, those that are kept.
        kept: `[kept]` int64, their numbers in the batch; None: all rows are kept.
        left_out: see `KeptRows`.
    """

    rows: Rows
    kept: np.ndarray | None = None
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows, kept: KeptRows) -> "ReadBatch":
        """Return a batch of whose rows these are kept."""
        if not kept.left_out[TOGETHER]:
            return cls(rows=rows, left_out=kept.left_out)
        few = {hook: values[kept.numbers] for hook, values in rows.items()}
        return cls(rows=few, kept=kept.numbers, left_out=kept.left_out)


def above_limit(rows: np.ndarray, limit: float | None) -> np.ndarray:
    """Return `[R]` bool: rows whose norm is above the limit, or not finite.

    Args:
        rows: `[R, width]`.
        limit: None: none of them is above it.
    """
    norms = row_norms(rows)
    above = ~(norms < np.inf)
    return above if limit is None else above | (norms > limit)


def limits_of(position: Any, hook_points: Sequence[str]) -> dict[str, float | None] | None:
    """Return the limits of norms that a stream's position tells; None: it tells none of these.

    Args:
        position: as a user gave it; it may be anything.
        hook_points: whose limits they must be.
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


def _known(column: np.ndarray, name: str, what: str, batch: str) -> np.ndarray:
    if (column == UNKNOWN).any():
        raise StoreError(f"{setting(name)} needs the {what} of every row; {batch} has rows without")
    return column
