"""One file that a user names, on this machine or in a bucket."""

from pathlib import Path

from extraction.errors import StoreError
from extraction.storage import Storage, open_storage, scheme_of


def single_file(address: str | Path, *, writable: bool) -> tuple[Storage, str]:
    """Return the storage of a file's folder, and its name there.

    A file to read may be a link; where it leads is read.

    Args:
        address: path, `gs://bucket/prefix/name` or `s3://bucket/prefix/name`.
        writable: whether the file is to be written.

    Raises:
        StoreError: the address names no file, or cannot be used.
    """
    text = str(address)
    if scheme_of(text) is None:
        path = Path(text).expanduser()
        if not path.name or text.endswith("/") or path.is_dir():
            raise StoreError(f"{text!r} names a folder, not a file")
        path = path if writable else path.resolve()
        return open_storage(path.parent, writable=writable), path.name
    folder, _, name = text.rpartition("/")
    if not name or folder.endswith("/"):
        raise StoreError(f"{text!r} names no file; one is gs://bucket/prefix/name")
    return open_storage(folder, writable=writable), name
