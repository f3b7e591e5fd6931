"""Which names are allowed for a run's files and for hook points.

Commit records, `run.json` and `metadata.json` name files, and names of hook points become names of
files and of members in archives. Somebody else may have written them, so every back end checks each
name here before it uses it.
"""

import re

from extraction.errors import UnsafeNameError

LONGEST_PART = 255
"""Most bytes of a part of a name, in UTF-8; no file system allows more."""

LONGEST_HOOK_POINT = 200
"""Most bytes of a hook point's name; `_batch_000001.safetensors` is appended to it."""

_OF_NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")
"""Control characters, backslashes and halves of surrogate pairs."""


def check_name(name: str) -> str:
    """Return the name of a run's file or folder if it is safe, else raise.

    Raises:
        UnsafeNameError: it leads out of the run's folder, or not every file system allows it.
    """
    parts = name.split("/") if type(name) is str else [""]
    if {"", ".", ".."}.intersection(parts) or _OF_NO_NAME.search(name):
        raise UnsafeNameError(f"{name!r} is not a valid name of a file within a run's folder")
    if not name.isascii() or len(name) > LONGEST_PART:
        longest = max(len(part.encode()) for part in parts)
        if longest > LONGEST_PART:
            raise UnsafeNameError(
                f"{name[:80]!r}... has a part of {longest} bytes; at most {LONGEST_PART} are"
                " allowed"
            )
    return name


def check_hook_point(name: str) -> str:
    """Return the name of a hook point if a file can be named after it, else raise.

    Raises:
        UnsafeNameError: no file can be named after it.
    """
    check_name(name)
    if "/" in name or len(name.encode()) > LONGEST_HOOK_POINT:
        raise UnsafeNameError(
            f"{name[:80]!r} is not a valid name of a hook point: it must have no slash and at most"
            f" {LONGEST_HOOK_POINT} bytes"
        )
    return name
