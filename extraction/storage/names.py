"""Which names a file of a run, and a hook point, may have.

Records, `run.json` and `metadata.json` name files, and names of hook points become names of files
and of members in archives. Somebody else may have written them, so every back end checks each name
here before it does anything.
"""

import re

from extraction.errors import UnsafeNameError

LONGEST_PART = 255
"""Bytes of a part of a name, in UTF-8; no file system takes more."""

LONGEST_HOOK_POINT = 200
"""Bytes; `_batch_000001.safetensors` and its like come after it."""

_OF_NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")
"""Control characters, backslashes and halves of surrogate pairs."""


def check_name(name: str) -> str:
    """Return the name of a file in a run, or of a folder there.

    Raises:
        UnsafeNameError: it leads out of the run's folder, or is none that every file system takes.
    """
    parts = name.split("/") if type(name) is str else [""]
    if {"", ".", ".."}.intersection(parts) or _OF_NO_NAME.search(name):
        raise UnsafeNameError(f"{name!r} is no name of a file within a run's folder")
    if not name.isascii() or len(name) > LONGEST_PART:
        longest = max(len(part.encode()) for part in parts)
        if longest > LONGEST_PART:
            raise UnsafeNameError(
                f"a name of {longest} bytes is longer than {LONGEST_PART}: {name[:80]!r}..."
            )
    return name


def check_hook_point(name: str) -> str:
    """Return the name of a hook point.

    Raises:
        UnsafeNameError: no file can be named after it.
    """
    check_name(name)
    if "/" in name or len(name.encode()) > LONGEST_HOOK_POINT:
        raise UnsafeNameError(
            f"{name[:80]!r} is no name of a hook point: it has no slash and at most"
            f" {LONGEST_HOOK_POINT} bytes"
        )
    return name
