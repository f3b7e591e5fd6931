"""A run's files in a local folder."""

import os
from pathlib import Path

from extraction.errors import StoreError
from extraction.storage import file_operations


class LocalStorage:
    """Files in `folder`, which is made when the first file is written.

    Raises:
        StoreError: the path is a file, or nothing can be written there.
    """

    def __init__(self, folder: str | Path):
        try:
            self.folder = Path(folder).expanduser()
            path = self.folder.absolute()
            there = next(p for p in (path, *path.parents) if p.exists())
        except (OSError, RuntimeError) as error:  # too long a name; ~ of a user that there is not
            raise StoreError(f"{folder} cannot be a folder: {error}") from None
        if not there.is_dir():
            place = "is" if there == path else f"lies below {there}, which is"
            raise StoreError(f"{folder} {place} a file; a folder is needed there")
        if not os.access(there, os.W_OK | os.X_OK):
            raise StoreError(f"{folder} cannot be written to: no permission for {there}")

    def names(self, prefix: str = "") -> list[str]:
        """See `Storage.names`."""
        folder = self.folder / prefix
        if not folder.exists():
            return []
        hidden = file_operations.TEMPORARY_PREFIX
        files = (path.name for path in folder.iterdir() if path.is_file())
        return sorted(prefix + name for name in files if not name.startswith(hidden))

    def get(self, name: str) -> bytes:
        """See `Storage.get`."""
        return (self.folder / name).read_bytes()

    def put_new(self, name: str, data: bytes) -> None:
        """See `Storage.put_new`."""
        file_operations.publish_new(self._place(name), data)

    def replace(self, name: str, data: bytes) -> None:
        """See `Storage.replace`."""
        file_operations.publish_over(self._place(name), data)

    def make_folder(self) -> None:
        """Makes the folder if need be.

        Raises:
            StoreError: it cannot be made.
        """
        self._place("")

    def _place(self, name: str) -> Path:
        """The path of a file, in a folder that exists."""
        path = self.folder / name
        folder = path.parent if name else path
        try:
            file_operations.make_folder(folder)
        except OSError as error:
            raise StoreError(f"cannot make the folder {folder}: {error.strerror}") from None
        return path
