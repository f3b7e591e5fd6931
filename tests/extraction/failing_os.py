"""An `os` for `extraction.storage.file_operations` whose operations can fail."""

import os
from collections.abc import Callable
from typing import Any

OPERATIONS = {
    "open", "posix_fallocate", "write", "posix_fadvise", "fsync", "close", "link", "replace",
    "unlink", "mkdir",
}  # fmt: skip


class FailingOs:
    """Put it in the place of `file_operations.os`.

    Args:
        failure: is given an operation's number, from 1, and its name; returns what it shall fail
            with, from `errno`, or None.

    Attributes:
        calls: name and first argument of every operation so far.
    """

    def __init__(self, failure: Callable[[int, str], int | None]):
        self._failure = failure
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in OPERATIONS:
            return real

        def operation(*args, **kwargs):
            self.calls.append((name, args[0]))
            code = self._failure(len(self.calls), name)
            if code is None:
                return real(*args, **kwargs)
            if name == "close":
                real(*args)  # a failed close has closed nevertheless
            raise OSError(code, os.strerror(code))

        return operation
