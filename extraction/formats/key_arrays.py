"""Row keys as arrays stored beside the activations: item i of each array belongs to row i.

Numbers are stored as in a `RowBlock`. Texts (`task_id`, `timestamp`) are shared by many rows, so
each distinct text is stored once: `task_id.utf8` holds the UTF-8 of all texts joined,
`task_id.offsets` where each starts (and the last ends), `task_id.index` the text of each row.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from extraction.errors import CorruptBatchError
from extraction.run.rows import DistinctTexts, RowBlock, text_column

NUMBERS = {"sample_idx": "<i8", "step": "<i4", "position": "<i4", "token_id": "<i4"}
TEXTS = {"task_id": "task_ids", "timestamp": "timestamps"}
"""Text keys, and the column of a `RowBlock` that holds each."""
KEY_DTYPES = {
    "sample_idx": "<i8",
    **{f"{text}.offsets": "<i8" for text in TEXTS},
    "step": "<i4",
    "position": "<i4",
    "token_id": "<i4",
    **{f"{text}.index": "<i4" for text in TEXTS},
    **{f"{text}.utf8": "|u1" for text in TEXTS},
}
"""Names and dtypes of the one-dimensional arrays, widest first so that they stay aligned."""


def key_arrays(block: RowBlock) -> dict[str, np.ndarray]:
    """Return a block's keys as arrays, in the order of `KEY_DTYPES`.

    Raises:
        StoreError: a text holds half of a surrogate pair, so it is not valid Unicode.
    """
    arrays = {name: getattr(block, name) for name in NUMBERS}
    for name, column in TEXTS.items():
        distinct: DistinctTexts = getattr(block, f"distinct_{column}")
        encoded = [text.encode() for text in distinct.texts]
        arrays[f"{name}.offsets"] = np.cumsum([0, *map(len, encoded)])
        arrays[f"{name}.index"] = distinct.index
        arrays[f"{name}.utf8"] = np.frombuffer(b"".join(encoded), np.uint8)
    return {
        name: np.ascontiguousarray(arrays[name], dtype=dtype) for name, dtype in KEY_DTYPES.items()
    }


class KeyTable:
    """A batch's row keys as stored in a file; texts are decoded only on request.

    Args:
        arrays: one-dimensional arrays with the names and dtypes of `KEY_DTYPES`. They are kept, not
            copied, and must not change.

    Raises:
        CorruptBatchError: the arrays do not fit each other.
        UnicodeDecodeError: a text is not UTF-8.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        rows = {name: len(arrays[name]) for name in NUMBERS}
        for name in TEXTS:
            rows[name] = len(arrays[f"{name}.index"])
            _check_texts(name, arrays)
        if len(set(rows.values())) > 1:
            raise CorruptBatchError(f"the row keys differ in length: {rows}")
        self._arrays = arrays
        self._rows = rows["sample_idx"]

    def __len__(self) -> int:
        return self._rows

    def block(self) -> RowBlock:
        """Return the keys as a block without hook points; its numbers are views of the arrays."""
        columns: dict[str, Any] = {name: self._arrays[name] for name in NUMBERS}
        for name, column in TEXTS.items():
            encoded = self._arrays[f"{name}.utf8"].tobytes()
            bounds = itertools.pairwise(self._arrays[f"{name}.offsets"].tolist())
            texts = text_column([str(encoded[start:stop], "utf-8") for start, stop in bounds])
            columns[column] = texts[self._arrays[f"{name}.index"]]
        return RowBlock(**columns, activations={})

    def same_rows(self, other: "KeyTable") -> bool:
        """Return whether the rows have the same keys, in the same order."""
        if all(
            self._arrays[name].tobytes() == other._arrays[name].tobytes() for name in KEY_DTYPES
        ):
            return True
        one, two = self.block(), other.block()  # equal texts may be stored in another order
        columns = (*NUMBERS, *TEXTS.values())
        return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in columns)


def _check_texts(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Check that every row has a text."""
    utf8, offsets, index = (arrays[f"{name}.{part}"] for part in ("utf8", "offsets", "index"))
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(utf8):
        raise CorruptBatchError(f"{name}.offsets does not span {name}.utf8")
    if (offsets[1:] < offsets[:-1]).any():
        raise CorruptBatchError(f"{name}.offsets decreases")
    if len(index) and not 0 <= index.min() <= index.max() < len(offsets) - 1:
        raise CorruptBatchError(f"{name}.index points beyond the {len(offsets) - 1} texts")
    str(utf8.data, "utf-8")
    starts = utf8[offsets[offsets < len(utf8)]]
    if (starts & 0xC0 == 0x80).any():
        raise CorruptBatchError(f"{name}.offsets cuts a character")
