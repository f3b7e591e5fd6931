"""Rows: one activation vector per hook point for one token, with the keys that trace it.

The model hands `RowBlock`s to the store. Row i of every array of a block belongs to the same token.
"""

import dataclasses
import datetime
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.hook_point_names import few
from extraction.run.vocabulary import Vocabulary, text_of

UNKNOWN = -1
"""Value of an unknown position or token id."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RowBlock:
    """R rows of every hook point.

    Attributes:
        task_ids: `[R]` object array of str.
        sample_idx: `[R]` int64.
        step: `[R]` int32, 0 for prompt tokens, t for the t-th generated token.
        position: `[R]` int32, index of the token in its sample, from 0.
        token_id: `[R]` int32, the token at `position`.
        timestamps: `[R]` object array of str, when the row came off the device (ISO 8601, UTC).
        activations: hook point name to `[R, width]`.
        vocabulary: text of token ids; None if it is not known.

    Raises:
        StoreError: the arrays differ in length.
    """

    task_ids: np.ndarray
    sample_idx: np.ndarray
    step: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    timestamps: np.ndarray
    activations: Mapping[str, np.ndarray]
    vocabulary: Vocabulary | None = None

    def __post_init__(self):
        lengths = {name: len(column) for name, column in self._columns().items()}
        lengths |= {name: len(rows) for name, rows in self.activations.items()}
        if len(set(lengths.values())) > 1:
            raise StoreError(f"a block's arrays differ in length: {lengths}")

    @classmethod
    def of(
        cls,
        activations: Mapping[str, np.ndarray],
        task_ids: Sequence[str],
        *,
        sample_idx: int | Sequence[int] | np.ndarray = 0,
        step: int | Sequence[int] | np.ndarray = 0,
        position: int | Sequence[int] | np.ndarray = UNKNOWN,
        token_id: int | Sequence[int] | np.ndarray = UNKNOWN,
    ) -> "RowBlock":
        """Return a block of rows with the present time; a number as a column applies to all rows.

        Args:
            activations: hook point name to `[R, width]`.
            task_ids: `[R]`, id of each row's task.
            sample_idx: `[R]`, number of the sample within its task.
            step: `[R]`, 0 for prompt tokens, t for the t-th generated token.
            position: `[R]`, index of the token in its sample, from 0.
            token_id: `[R]`, the token at `position`.

        Raises:
            StoreError: the columns differ in length.
        """
        count = len(task_ids)

        def column(values: int | Sequence[int] | np.ndarray, dtype: type) -> np.ndarray:
            return (
                np.full(count, values, dtype) if np.ndim(values) == 0 else np.array(values, dtype)
            )

        return cls(
            task_ids=text_column(list(task_ids)),
            sample_idx=column(sample_idx, np.int64),
            step=column(step, np.int32),
            position=column(position, np.int32),
            token_id=column(token_id, np.int32),
            timestamps=text_column([timestamp()] * count),
            activations=activations,
        )

    def __repr__(self) -> str:
        hooks = [f"{hook} {v.dtype} {list(v.shape)}" for hook, v in self.activations.items()]
        return f"RowBlock({len(self):,} rows of {few(hooks)})"

    def _repr_html_(self) -> str:
        from extraction.notebook_html import ROWS_SHOWN, table

        first = self[:ROWS_SHOWN]
        names = ["task", "sample", "step", "position", "token id"]
        columns = [first.task_ids, first.sample_idx, first.step, first.position, first.token_id]
        if first.vocabulary:
            names.append("token")
            columns.append(first.token_text)
        rows = (list(map(str, row)) for row in zip(*columns, strict=True))
        return table(repr(self), names, rows, len(self))

    def __len__(self) -> int:
        return len(self.task_ids)

    @property
    def token_text(self) -> np.ndarray:
        """Return `[R]` object array of str: the text of each row's token.

        A token may be a part of a character; bytes that are no UTF-8 are shown as `\\xe2`. Tokens
        whose text the run does not record are "".

        Raises:
            StoreError: the run records no texts.
        """
        if not self.vocabulary:
            raise StoreError(
                "the text of tokens is not recorded: by runs of version 0.1.0, of token ids without"
                " a tokenizer, or by a writer that was not told `token_text`"
            )
        ids, places = np.unique(self.token_id, return_inverse=True)
        texts = [text_of(self.vocabulary.get(int(token_id), b"")) for token_id in ids]
        return text_column(texts)[places.ravel()]

    @functools.cached_property
    def distinct_task_ids(self) -> "DistinctTexts":
        """The distinct `task_ids`; computed once for the files of all hook points.

        Raises:
            StoreError: a text holds half of a surrogate pair.
        """
        return DistinctTexts.of(self.task_ids, "task_id")

    @functools.cached_property
    def distinct_timestamps(self) -> "DistinctTexts":
        """The distinct `timestamps`; see `distinct_task_ids`."""
        return DistinctTexts.of(self.timestamps, "timestamp")

    def __getitem__(self, rows: slice) -> "RowBlock":
        return RowBlock(
            **{name: column[rows] for name, column in self._columns().items()},
            activations={name: values[rows] for name, values in self.activations.items()},
            vocabulary=self.vocabulary,
        )

    def _columns(self) -> dict[str, np.ndarray]:
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("activations", "vocabulary")
        }

    @classmethod
    def concatenate(cls, blocks: Sequence["RowBlock"]) -> "RowBlock":
        """Return the rows of several blocks with the same hook points, in order."""
        names = list(blocks[0]._columns())
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(b, name) for b in blocks]) for name in names
        }
        return cls(
            **columns,
            vocabulary=blocks[0].vocabulary,
            activations={
                hook: np.concatenate([b.activations[hook] for b in blocks])
                for hook in blocks[0].activations
            },
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DistinctTexts:
    """The distinct texts of a column that many rows share.

    Attributes:
        texts: each text once, in order of first occurrence.
        index: `[R]` int32, index of each row's text in `texts`.
    """

    texts: Sequence[str]
    index: np.ndarray

    @classmethod
    def of(cls, column: np.ndarray, name: str) -> "DistinctTexts":
        """Return the distinct texts of a column.

        Args:
            column: `[R]` of str.
            name: name of the column, for the message.

        Raises:
            StoreError: a text holds half of a surrogate pair, which UTF-8 cannot hold.
        """
        texts = list(map(str, column))
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        try:
            "".join(places).encode()
        except UnicodeEncodeError as error:
            text = ascii(error.object[error.start : error.end])
            raise StoreError(f"{name} holds {text}, half of a surrogate pair") from None
        index = np.fromiter(map(places.__getitem__, texts), np.int32, len(texts))
        return cls(texts=tuple(places), index=index)


def text_column(values: Sequence[str]) -> np.ndarray:
    """Return texts as an object array."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def timestamp() -> str:
    """Return the present time, UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
