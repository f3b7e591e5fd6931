"""A run's files in a local folder."""

import contextlib
import errno
import functools
import os
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path

from extraction.errors import StoreError
from extraction.run_layout import RUN_FOLDER
from extraction.setting_names import setting
from extraction.storage import Content, FileInfo, file_operations, regular_files, scheme_of
from extraction.storage.names import check_name
from extraction.writing.disk_retry import FULL, patiently

MAY_PASS = (*FULL, errno.EIO, errno.EMFILE, errno.ENFILE)
"""Error numbers that may pass, so that another attempt is worthwhile."""


class LocalStorage:
    """Files in `folder`, which is made when the first file is written.

    Raises:
        StoreError: it is an address or a file, or nothing can be written there.
    """

    is_local = True

    def __init__(self, folder: str | Path, *, writable: bool = True):
        scheme = scheme_of(folder)
        if scheme is not None:
            raise StoreError(
                f"{folder} is a {scheme}:// address, but a folder on this machine is needed here;"
                f" {setting('gcs_bucket', 'gs://bucket/prefix')} uploads a run to a bucket"
            )
        self.address = str(folder)
        if not self.address.strip():
            raise StoreError("the folder's name is empty; give a folder (. is the current one)")
        try:
            self.folder = Path(folder).expanduser()
            path = self.folder.absolute()
            there = next(p for p in (path, *path.parents) if p.exists())
        except (OSError, RuntimeError) as error:  # a name too long; ~ of an unknown user
            raise StoreError(f"{folder} cannot be a folder: {error}") from None
        if not there.is_dir():
            place = "is" if there == path else f"is below {there}, which is"
            raise StoreError(f"{folder} {place} a file; a folder is needed there")
        if writable and not os.access(there, os.W_OK | os.X_OK):
            raise StoreError(f"{folder} cannot be written to: no permission to write in {there}")
        self._identity: tuple[int, int] | None = None

    def names(self, prefix: str = "") -> list[str]:
        """See `Storage.names`."""
        return sorted(prefix + entry.name for entry in self._entries(prefix))

    def infos(self, prefix: str = "") -> dict[str, FileInfo]:
        """See `Storage.infos`."""
        found = {}
        # In the order of inodes, which is the order on the disk. A folder lists its entries by
        # hash, so in that order an uncached disk would seek for each of them.
        for entry in sorted(self._entries(prefix), key=os.DirEntry.inode):
            with contextlib.suppress(FileNotFoundError):  # taken away since it was listed
                size = entry.stat(follow_symlinks=False).st_size
                found[prefix + entry.name] = FileInfo(bytes=size)
        return found

    def _entries(self, prefix: str) -> list[os.DirEntry]:
        """Return all entries but folders; whoever reads a link instead of a file refuses it."""
        if prefix:
            regular_files.check_folders(self.folder, check_name(prefix.removesuffix("/")) + "/")
        return [
            entry
            for entry in _scan(self.folder / prefix)
            if not entry.name.startswith(file_operations.TEMPORARY_PREFIX)
            and not entry.is_dir(follow_symlinks=False)
        ]

    def get(self, name: str) -> bytes:
        """See `Storage.get`."""
        with self.open_local(name) as stream:
            return stream.readall()

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """See `Storage.get_range`."""
        with self.open_local(name) as stream:
            stream.seek(start)
            return stream.read(length)

    def open_local(self, name: str) -> FileIO:
        """See `Storage.open_local`."""
        return regular_files.open_within(self.folder, check_name(name))

    def put_new(
        self, name: str, data: Content, attributes: Mapping[str, str] | None = None
    ) -> None:
        """See `Storage.put_new`; attributes are dropped."""
        file_operations.publish_new(self._place(name), data)

    def replace(self, name: str, data: Content) -> None:
        """See `Storage.replace`."""
        file_operations.publish_over(self._place(name), data)

    def replace_all(self, files: Iterable[tuple[str, Content]]) -> None:
        """See `Storage.replace_all`."""
        file_operations.publish_all_over((self._place(name), data) for name, data in files)

    def remove(self, name: str) -> None:
        """See `Storage.remove`."""
        regular_files.check_folders(self.folder, check_name(name))
        file_operations.remove_if_there(self.folder / name)

    def make_folder(self) -> None:
        """Make the folder if it is missing, and make its entry durable.

        Raises:
            StoreError: the folder cannot be made.
        """
        self._place("")
        file_operations.sync_above(self.folder)

    def remove_left_overs(self) -> None:
        """Remove temporary files that a killed process left, and make all others durable.

        A process may have been killed between naming a commit record and syncing the folder; from
        now on that record counts. Only the holder of the run's lock may call this.

        Raises:
            StorageUnavailableError: the disk fails.
        """
        for path in self.temporary_files():
            file_operations.remove_if_there(path)
        for folder in self._folders():
            patiently(self.address, functools.partial(file_operations.sync_folder, folder))
        patiently(self.address, functools.partial(file_operations.sync_above, self.folder))

    def temporary_files(self) -> list[Path]:
        """Return the temporary files of processes that are writing or were killed."""
        return [
            Path(entry.path)
            for folder in self._folders()
            for entry in _scan(folder)
            if entry.name.startswith(file_operations.TEMPORARY_PREFIX)
        ]

    def _folders(self) -> list[Path]:
        """Return the folders of the run."""
        found = [self.folder]
        regular_files.check_folders(self.folder, RUN_FOLDER)
        waiting = [self.folder / RUN_FOLDER]
        while waiting:
            folder = waiting.pop()
            if folder.is_dir():
                found.append(folder)
            waiting += [
                Path(entry.path) for entry in _scan(folder) if entry.is_dir(follow_symlinks=False)
            ]
        return found

    def _place(self, name: str) -> Path:
        """Return the path of a file, in a folder that exists afterwards.

        Raises:
            StoreError: the folder cannot be made; or the run's folder disappeared or was replaced
                (another disk may be mounted there now).
        """
        if name:
            regular_files.check_folders(self.folder, check_name(name))
        path = self.folder / name
        folder = path.parent if name else path
        try:
            if self._identity is None:
                file_operations.make_folder(self.folder)
                self._identity = _identity(self.folder)
            elif self._identity != _identity(self.folder):
                raise StoreError(
                    f"{self.folder} was replaced by another folder during the run; is another disk"
                    " mounted there?"
                )
            if folder != self.folder:
                file_operations.make_folder(folder)
        except FileNotFoundError:
            raise StoreError(
                f"{self.folder} disappeared during the run; is its disk still mounted?"
            ) from None
        except OSError as error:
            if error.errno in MAY_PASS:  # the caller retries these
                raise
            raise StoreError(f"cannot make the folder {folder}: {error.strerror}") from None
        return path


def _scan(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
