"""Where a run's files live. A back end is one class with the methods of `Storage`.

    local   a folder
    gcs     `gs://bucket/prefix`, by Google's client
    s3      `s3://bucket/prefix`, by obstore

`BACK_ENDS` finds the class for an address. A published file is never changed: `put_new` refuses to
overwrite. Only two kinds of files are replaced: those derived from others (`metadata.json`), and on
a disk the files of a unit whose commit record was never written.
"""

import dataclasses
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from extraction.errors import StoreError

Buffers = Sequence[bytes | memoryview]
"""The content of a file, in pieces."""

Content = bytes | memoryview | Buffers
"""The content of a file, in one piece or several."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """What a listing tells about a file.

    Attributes:
        bytes: size of the file.
        crc32c: checksum of its content, eight hexadecimal digits; None where only reading tells it.
    """

    bytes: int
    crc32c: str | None = None


@runtime_checkable
class Storage(Protocol):
    """A set of named files; a name may hold folders (`_run/commits/000001.json`).

    Every method that takes a name raises StoreError for one that `names.check_name` refuses, before
    anything is done, and UnsafeFileError for a link, a FIFO or a device in the place of a file.
    Every method raises StoreError with what would be right where the back end cannot be used at
    all: no permission, no such bucket, an outage longer than the retries.
    """

    address: str
    """The address as the user wrote it: a folder, or `gs://bucket/prefix`."""

    is_local: bool
    """Whether the files are on this machine's disks."""

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of the published files directly in a folder, sorted.

        Args:
            prefix: the folder, with a slash at its end; empty for the run's own.
        """
        ...

    def infos(self, prefix: str = "") -> dict[str, FileInfo]:
        """Return the same names, each with what the listing tells about the file."""
        ...

    def get(self, name: str) -> bytes:
        """Return the content of a published file, or raise FileNotFoundError."""
        ...

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Return part of a published file (less at its end), or raise FileNotFoundError."""
        ...

    def open_local(self, name: str) -> FileIO | None:
        """Open a file for reading or mapping; return None if it is not on this machine's disks."""
        ...

    def put_new(
        self, name: str, data: Content, attributes: Mapping[str, str] | None = None
    ) -> None:
        """Publish a file, whole and durable, or raise FileExistsError.

        Args:
            name: name of the file.
            data: content of the file.
            attributes: kept beside the file where the back end can, else dropped.
        """
        ...

    def replace(self, name: str, data: Content) -> None:
        """Publish a file over one that may exist; readers see the old file or the new one."""
        ...

    def replace_all(self, files: Iterable[tuple[str, Content]]) -> None:
        """Replace several files, faster on a disk than one by one; durable when it returns.

        The next file is taken from `files` when the one before it is written. After an error, any
        of them may have been published.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file; do nothing if there is none."""
        ...


@runtime_checkable
class CloudStorage(Storage, Protocol):
    """Storage that knows size, checksum and attributes of a file without reading it."""

    def info(self, name: str) -> FileInfo:
        """Return size and checksum of a published file, or raise FileNotFoundError."""
        ...

    def attributes(self, name: str) -> Mapping[str, str]:
        """Return the attributes that `put_new` stored with a file, or raise FileNotFoundError."""
        ...

    def missing_permissions(self) -> list[str]:
        """Return the permissions, by the provider's names, that a run needs and this account lacks.

        Nothing is written to find out. Grants on only a part of the bucket are not seen.
        """
        ...


class BackEnd(NamedTuple):
    """Module and name of a back end's class, imported on first use, and the package it needs."""

    module: str
    name: str
    package: str = ""


BACK_ENDS = {
    "gs": BackEnd("extraction.storage.gcs", "GcsStorage", "google-cloud-storage"),
    "s3": BackEnd("extraction.storage.s3", "S3Storage", "obstore"),
    "": BackEnd("extraction.storage.local", "LocalStorage"),
}
"""Back ends by the scheme of an address."""


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*[A-Za-z0-9]):/")
"""Start of an address; `Path("gs://...")` leaves one slash of the two."""


def scheme_of(address: str | Path) -> str | None:
    """Return the scheme of an address (`gs`), or None for a path on this machine."""
    match = _SCHEME.match(str(address))
    return None if match is None else match[1]


def check_address(address: str | Path) -> None:
    """Check that an address has a back end.

    Raises:
        StoreError: there is none for its scheme.
    """
    scheme = scheme_of(address)
    if scheme is None:
        return
    known = " or ".join(f"{name}://bucket/prefix" for name in BACK_ENDS if name)
    if scheme not in BACK_ENDS:
        raise StoreError(
            f"{address}: {scheme}:// is not supported; give a folder or {known}, as text"
        )
    if "://" not in str(address):
        raise StoreError(f"{address} lacks a slash: give {known}, as text")


def open_storage(address: str | Path, *, writable: bool = True) -> Storage:
    """Return the back end for an address.

    Args:
        address: a folder or `gs://bucket/prefix`.
        writable: False if nothing will be written; the folder may then be read-only.

    Raises:
        StoreError: the scheme has no back end, or the address cannot be used.
    """
    check_address(address)
    scheme = scheme_of(address)
    wanted = BACK_ENDS[scheme or ""]
    try:
        back_end = getattr(importlib.import_module(wanted.module), wanted.name)
    except ImportError as error:
        raise StoreError(
            f"{address} needs a package that is not installed ({error}); run `pip install"
            f" {wanted.package}`"
        ) from None
    return back_end(address) if scheme else back_end(address, writable=writable)


def open_cloud(address: str) -> CloudStorage:
    """Return the back end for an address that must be in the cloud.

    Raises:
        StoreError: the address is a folder, or cannot be used.
    """
    storage = open_storage(address)
    if not isinstance(storage, CloudStorage):
        raise StoreError(f"{address!r} must look like gs://bucket/prefix or s3://bucket/prefix")
    return storage


def pieces(data: Content) -> list[memoryview]:
    """Return the content as flat views."""
    parts = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    return [memoryview(part).cast("B") for part in parts]
