"""Where a run's files live. A back end is one class with the methods of `Storage`."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Storage(Protocol):
    """A set of named files; a name may hold folders (`_run/commits/000001.json`)."""

    def names(self, prefix: str = "") -> list[str]:
        """Names of the published files directly in a folder, sorted.

        Args:
            prefix: the folder, with a slash at its end; empty for the run's own.
        """
        ...

    def get(self, name: str) -> bytes:
        """The content of a published file, or raises FileNotFoundError."""
        ...

    def put_new(self, name: str, data: bytes) -> None:
        """Publishes a file, whole and durable, or raises FileExistsError."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Publishes a file over one that may exist; readers see the old one or the new one."""
        ...
