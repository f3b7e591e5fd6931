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

    def names(self) -> list[str]:
        """See `Storage.names`."""
        if not self.folder.exists():
            return []
        hidden = file_operations.TEMPORARY_PREFIX
        return sorted(p.name for p in self.folder.iterdir() if not p.name.startswith(hidden))

    def put_new(self, name: str, data: bytes) -> None:
        """See `Storage.put_new`."""
        self.make_folder()
        file_operations.publish_new(self.folder / name, data)

    def replace(self, name: str, data: bytes) -> None:
        """See `Storage.replace`."""
        self.make_folder()
        file_operations.publish_over(self.folder / name, data)

    def make_folder(self) -> None:
        """Makes the folder if need be.

        Raises:
            StoreError: it cannot be made.
        """
        try:
            file_operations.make_folder(self.folder)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.folder}: {error.strerror}") from None
