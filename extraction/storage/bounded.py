"""Reads with a size limit, for files that somebody else may have written."""

import os

from extraction.errors import StoreError
from extraction.storage import CloudStorage, Storage

LARGEST_DOCUMENT = 64 << 20
"""Bytes; far more than a commit record of thousands of hook points needs."""


class TooLargeError(StoreError):
    """A file is larger than it may be; it was not read."""


def get_at_most(storage: Storage, name: str, largest: int = LARGEST_DOCUMENT) -> bytes:
    """Return the content of a file, unless it is too large; ask a bucket for its size first.

    Args:
        storage: storage of the run.
        name: name of the file.
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
    """Return the content of a file, for many files of a run: a bucket is not asked for sizes.

    Raises:
        FileNotFoundError: there is none.
        TooLargeError: it is on a disk of this machine and has more bytes.
    """
    return get_at_most(storage, name, largest) if storage.is_local else storage.get(name)


def check_size(name: str, size: int, largest: int) -> None:
    """Refuse a file that is too large.

    Raises:
        TooLargeError: it is too large.
    """
    if size > largest:
        raise TooLargeError(f"{name} has {size:,} bytes; at most {largest:,} are allowed")
