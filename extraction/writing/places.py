"""The local folder that a run's files are written to, and the bucket they are uploaded to."""

import hashlib
import os
from pathlib import Path

from extraction.errors import StoreError
from extraction.storage import scheme_of


def cache_folder() -> Path:
    """Return this program's folder in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "qwen-activation-extraction"


def spool_folder(address: str) -> Path:
    """Return the folder in the user's cache where files wait to be uploaded to an address."""
    name = hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    return cache_folder() / "spool" / name


def places(address: str | Path, upload_to: str | None) -> tuple[str | Path, str | None]:
    """Return the local folder of a run, and the address it is uploaded to or None.

    Args:
        address: a folder, or `gs://bucket/prefix`, for which the local folder is in the user's
            cache.
        upload_to: `gs://bucket/prefix` to upload to, if `address` is a folder.

    Raises:
        StoreError: two buckets are named.
    """
    if scheme_of(address) is None:
        return address, upload_to
    if upload_to is not None:
        raise StoreError(
            f"{address} and {upload_to} are both in a bucket; give one of them alone, or a local"
            f" folder instead of {address}"
        )
    return spool_folder(str(address)), str(address)
