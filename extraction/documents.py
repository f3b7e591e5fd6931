"""Reading JSON that somebody else may have written, with limits that keep later code safe."""

import json
from typing import Any

DEEPEST = 64
"""Most levels of nesting, so that recursive code can handle every document that was read."""

LARGEST_COUNT = (1 << 63) - 1
"""Largest count, that of int64, the largest number an array can hold."""


def read_json(data: bytes | str) -> Any:
    """Return what a JSON document holds.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or holds half of a surrogate pair.
    """
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    waiting = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if type(value) is str:
            if not value.isascii():
                value.encode()  # raises UnicodeEncodeError, a ValueError
        elif type(value) in (dict, list):
            if depth == DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} levels deep")
            parts = value if type(value) is list else [*value, *value.values()]
            waiting += [(part, depth + 1) for part in parts if type(part) in (str, dict, list)]
    return document


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0 that an int64 array can hold."""
    return type(value) is int and 0 <= value <= LARGEST_COUNT
