"""A run's files in a local folder."""

from pathlib import Path

from extraction.errors import StoreError
from extraction.storage import file_operations


class LocalStorage:
    """Files in `folder`, which is made when the first file is written.

    Raises:
        StoreError: the path is a file, or nothing can be written there.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{folder} is a file; a folder is needed there")

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
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.folder}: {error.strerror}") from None
