"""The text of the token ids that occur in a run, so that its rows can be read without a tokenizer.

Each commit record holds the ids that its process had not met before; together they are the run's
vocabulary, and `_run/vocabulary.jsonl` lists it. A token is bytes, which need not be whole
characters: those that are UTF-8 are written as text, the others as hexadecimal digits.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from extraction.documents import is_count
from extraction.errors import StoreError

Vocabulary = Mapping[int, bytes]
"""The bytes of token ids."""

TokenBytes = Callable[[int], bytes | None]
"""Returns the bytes of a token id; None if it has none."""

HEX = "hex"
LONGEST_TOKEN = 1 << 20
"""Most bytes of a token."""

MOST_TEXT = 8 << 20
"""Most bytes of all texts of a commit record; as JSON a byte takes up to six, and readers refuse
records of more than 64 MiB."""


def to_document(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return a vocabulary as JSON: text, or an object with hexadecimal digits, by token id."""
    return {str(token_id): _entry(text) for token_id, text in sorted(vocabulary.items())}


def from_document(document: Any) -> dict[int, bytes]:
    """Return the vocabulary of a document.

    Raises:
        ValueError: it is none.
    """
    if type(document) is not dict:
        raise ValueError("a vocabulary must be an object")
    found = {}
    for name, entry in document.items():
        if not (name.isascii() and name.isdecimal() and is_count(int(name[:20]))):
            raise ValueError(f"{name[:40]!r} is no token id")
        text = entry.get(HEX) if type(entry) is dict else entry
        if type(text) is not str or len(text) > 2 * LONGEST_TOKEN:
            raise ValueError(f"the text of token {name} is none")
        found[int(name)] = bytes.fromhex(text) if type(entry) is dict else text.encode()
    return found


def lines(vocabulary: Vocabulary) -> bytes:
    """Return `_run/vocabulary.jsonl`: lines `{"token_id": 12, "text": " the"}`, or with `"hex"`."""
    written = []
    for token_id, text in sorted(vocabulary.items()):
        entry = _entry(text)
        line = {"token_id": token_id} | ({"text": entry} if isinstance(entry, str) else entry)
        written.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(written).encode()


def text_of(text: bytes) -> str:
    r"""Return a token as text; bytes that are no UTF-8 are shown as `\xe2`."""
    return text.decode("utf-8", "backslashreplace")


def as_token_bytes(
    texts: Mapping[int, str | bytes] | Callable[[int], str | bytes | None],
) -> TokenBytes:
    """Return a function from token ids to bytes, from a mapping or a function that gives text.

    Raises:
        StoreError: when it is called: a text is neither text nor bytes, or has half of a surrogate
            pair.
    """
    look_up = texts.get if isinstance(texts, Mapping) else texts

    def of(token_id: int) -> bytes | None:
        text = look_up(token_id)
        if isinstance(text, str):
            try:
                return text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                raise StoreError(
                    f"the text of token {token_id} has half of a surrogate pair; give its bytes"
                ) from None
        if text is None or isinstance(text, bytes):
            return text
        raise StoreError(f"token {token_id} needs a text, as str or bytes, or None")

    return of


def of_ids(token_ids: Iterable[int], token_bytes: TokenBytes) -> dict[int, bytes]:
    """Return the bytes of token ids, each once; ids below 0 and unknown ones are left out.

    Raises:
        StoreError: a text is longer than `LONGEST_TOKEN`, or all together than `MOST_TEXT`.
    """
    distinct = np.unique(np.fromiter(token_ids, np.int64))
    found = {int(token_id): token_bytes(int(token_id)) for token_id in distinct if token_id >= 0}
    texts = {token_id: text for token_id, text in found.items() if text is not None}
    longest = max(texts, key=lambda token_id: len(texts[token_id]), default=0)
    if texts and len(texts[longest]) > LONGEST_TOKEN:
        raise StoreError(
            f"the text of token {longest} has {len(texts[longest]):,} bytes; at most"
            f" {LONGEST_TOKEN:,} are allowed"
        )
    total = sum(map(len, texts.values()))
    if total > MOST_TEXT:
        raise StoreError(
            f"the texts of the {len(texts):,} new token ids of a batch have {total:,} bytes; at"
            f" most {MOST_TEXT:,} are allowed"
        )
    return texts


def _entry(text: bytes) -> str | dict[str, str]:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return {HEX: text.hex()}
