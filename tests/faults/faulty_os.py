"""An `os` for the store's file operations that tells of each, and lets it fail.

The store calls the operating system in two modules: `storage.file_operations`, and `run.identity`
for the lock. `install` puts a `FaultyOs` into both.
"""

import dataclasses
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from extraction.run import identity
from extraction.storage import file_operations
from extraction.storage.file_operations import TEMPORARY_PREFIX

OPERATIONS = frozenset(
    {
        "open", "posix_fallocate", "write", "posix_fadvise", "fsync", "close", "link", "replace",
        "unlink", "mkdir", "rmdir",
    }
)  # fmt: skip


OF_DESCRIPTORS = frozenset({"posix_fallocate", "write", "posix_fadvise", "fsync", "close"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One call.

    Attributes:
        number: from 1.
        name: of the function.
        path: that it is about; of a descriptor, the path it was opened by.
        descriptor: that it is about, for those that take one.
        target: the new name, of `link` and `replace`.
        arguments: of the call.
    """

    number: int
    name: str
    path: str
    descriptor: int | None
    target: str | None
    arguments: tuple[Any, ...]

    def is_of_file(self) -> bool:
        """Whether the descriptor is one of a file, not of a folder."""
        assert self.descriptor is not None
        return stat.S_ISREG(os.fstat(self.descriptor).st_mode)


Before = Callable[[Operation], int | None]
"""Called before an operation: raises what it fails with, or gives how many bytes a write writes."""

After = Callable[[Operation], None]
"""Called when an operation has succeeded."""


class FaultyOs:
    """Has the operating system's functions.

    Args:
        before: called before each operation.
        after: called after each.

    Attributes:
        count: of operations so far.
    """

    def __init__(self, before: Before = lambda _: None, after: After = lambda _: None):
        self._before, self._after = before, after
        self._paths: dict[int, str] = {}
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in OPERATIONS:
            return real

        def call(*arguments: Any) -> Any:
            return self._call(name, real, arguments)

        return call

    def _call(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self.count += 1
        descriptor = arguments[0] if name in OF_DESCRIPTORS else None
        operation = Operation(
            number=self.count,
            name=name,
            path=str(arguments[0]) if descriptor is None else self._path(descriptor),
            descriptor=descriptor,
            target=str(arguments[1]) if name in {"link", "replace"} else None,
            arguments=tuple(bytes(a) if isinstance(a, memoryview) else a for a in arguments),
        )
        try:
            most = self._before(operation)
        except OSError:
            if name == "close":
                real(*arguments)  # a failed close has closed nevertheless
            raise
        if most is not None:
            arguments = (descriptor, bytes(arguments[1][:most]))
            operation = dataclasses.replace(operation, arguments=arguments)
        result = real(*arguments)
        if name == "open":
            self._paths[result] = str(arguments[0])
        elif name == "close":
            self._paths.pop(arguments[0], None)
        self._after(operation)
        return result

    def _path(self, descriptor: int) -> str:
        # A stream that was not opened here is known to the system.
        return self._paths.get(descriptor) or os.readlink(f"/proc/self/fd/{descriptor}")


def install(faulty: FaultyOs) -> None:
    """Puts it in the place of the store's `os`, for the rest of this process."""
    file_operations.os = faulty  # pyright: ignore
    # Fewer than a unit's files, so that some are synced while others are still to be written.
    file_operations.UNSYNCED_FILES = 2  # pyright: ignore
    identity.os = faulty  # pyright: ignore


def failure(code: int) -> OSError:
    """What the operating system raises."""
    return OSError(code, os.strerror(code))


def lose_pages(operation: Operation) -> None:
    """What a failed fsync does to a file: its pages count as clean, though they were not written.

    https://www.usenix.org/conference/atc20/presentation/rebello
    """
    assert operation.descriptor is not None
    if operation.is_of_file():
        size = os.fstat(operation.descriptor).st_size
        os.pwrite(operation.descriptor, bytes(size), 0)


CODES = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EMFILE": errno.EMFILE}


def file_kind(name: str) -> str:
    """What a file of a run is, by its place."""
    path = Path(name)
    if path.parent.name == "commits":
        return "commit record"
    if path.parent.name == "_run" and path.name.startswith("lock"):
        return "lock"
    if path.parent.name == "outputs" and path.parent.parent.name == "_run":
        return "output lines"
    if "_batch_" in path.name:
        return "batch file"
    return path.name  # run.json, metadata.json, outputs.jsonl


def kinds(operations: list[Operation]) -> list[str]:
    """What each operation of a run without faults works on."""
    names = {op.path: op.target for op in operations if op.target is not None}
    found, last = [], ""
    for op in operations:
        if op.name in {"mkdir", "rmdir"}:
            last = "folders"
        elif Path(op.path).name.startswith(TEMPORARY_PREFIX):
            name = names.get(op.path)
            last = file_kind(name) if name else "a file that was there already"
        elif op.name == "open" and not op.arguments[1] & os.O_DIRECTORY:
            last = file_kind(op.path)
        # What is done with a folder's descriptor belongs to what was named before.
        found.append("lock" if Path(op.path).name.startswith("lock.") else last)
    return found
