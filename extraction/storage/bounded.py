"""Files that somebody else wrote are not read beyond the size that they may have."""

import os

from extraction.errors import StoreError
from extraction.storage import CloudStorage, Storage

LARGEST_DOCUMENT = 64 << 20
"""Bytes of a run's identity, or of a commit record of thousands of hook points, many times over."""


class TooLargeError(StoreError):
    """A file is larger than it may be; it was not read."""


def get_at_most(storage: Storage, name: str, largest: int = LARGEST_DOCUMENT) -> bytes:
    """Return the content of a file, unless it is larger; asks a bucket for its size first.

    Args:
        storage: of the run.
        name: of the file.
        largest: bytes.

    Raises:
        FileNotFoundError: there is none.
        TooLargeError: it has more bytes.
    """
    stream = storage.open_local(name)
    if stream is not None:
        with stream:
            check_size(name, os.fstat(stream.fileno()).st_size, largest)
            return stream.readall()
    if isinstance(storage, CloudStorage):
        check_size(name, storage.info(name).bytes, largest)
    return storage.get(name)


def get_listed(storage: Storage, name: str, largest: int = LARGEST_DOCUMENT) -> bytes:
    """Return the same, for many files of a run: a bucket is not asked about each.

    Raises:
        FileNotFoundError: there is none.
        TooLargeError: it lies on a disk of this machine and has more bytes.
    """
    return get_at_most(storage, name, largest) if storage.is_local else storage.get(name)


def check_size(name: str, size: int, largest: int) -> None:
    """Refuse a size.

    Raises:
        TooLargeError: it is too large.
    """
    if size > largest:
        raise TooLargeError(f"{name} has {size:,} bytes, and at most {largest:,} are read")
