"""Where a run's files live. A back end is one class with the methods of `Storage`."""

from typing import Protocol


class Storage(Protocol):
    """A flat set of named, immutable-once-published files, and a few that are replaced whole."""

    def names(self) -> list[str]:
        """Names of all published files, sorted."""
        ...

    def put_new(self, name: str, data: bytes) -> None:
        """Publishes a file, whole and durable, or raises FileExistsError."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Publishes a file over one that may exist; readers see the old one or the new one."""
        ...
