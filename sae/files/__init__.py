"""Autoencoders in files: SAELens' folders, which are ours too, and those of other libraries.

    sae = load("saes/layer_12")                     # a folder, gs:// or s3://
    save(sae, "converted", format="sparsify")

`FORMATS` has one entry for each format. A format is recognised by its files.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from extraction.errors import StorageUnavailableError, StoreError
from extraction.exports.new_place import new_place
from extraction.storage import Storage, open_storage
from extraction.storage.local import LocalStorage
from sae.autoencoder import SparseAutoencoder
from sae.files.dictionary_learning import DICTIONARY_LEARNING
from sae.files.sae_format import SaeFormat
from sae.files.saelens import SAELENS
from sae.files.sparsify import SPARSIFY

FORMATS: Mapping[str, SaeFormat] = {
    format.name: format for format in (SAELENS, DICTIONARY_LEARNING, SPARSIFY)
}
"""Each is one file and one line here."""


def load(address: str | Path | Storage, *, format: str | None = None) -> SparseAutoencoder:
    """Read an autoencoder from a folder or a bucket.

    Args:
        address: folder, `gs://bucket/prefix`, `s3://bucket/prefix`, or an open storage.
        format: a name in `FORMATS`; None: the one that the files have.

    Raises:
        StoreError: there is none, it is damaged, or it cannot be used here.
    """
    chosen = [_format(format)] if format else list(FORMATS.values())
    storage = _opened(address, writable=False)
    with disk_errors_told(storage, "read"):
        names = set(storage.names())
        found = [candidate for candidate in chosen if candidate.files <= names]
        if len(found) > 1:
            raise StoreError(
                f"{storage.address} holds the files of several formats:"
                f" {', '.join(candidate.name for candidate in found)}; say which one to read"
            )
        if found:
            return found[0].read(storage)
    if len(chosen) == 1:
        what = f"{', '.join(sorted(chosen[0].files - names))} is missing"
    else:
        what = f"its files are {', '.join(sorted(names)[:6])}" if names else "there is no file"
    raise StoreError(f"{storage.address} holds no autoencoder of a known format: {what}")


def save(
    sae: SparseAutoencoder,
    address: str | Path | Storage,
    *,
    format: str = "saelens",
    replace: bool = False,
) -> None:
    """Write an autoencoder.

    A new folder appears whole: it is written under a temporary name beside it. In a bucket, and in
    a folder that exists, the last file that the format needs appears last.

    Args:
        sae: the autoencoder.
        address: where: a new folder, or an address in a bucket.
        format: a name in `FORMATS`.
        replace: whether files of the same names may be there.

    Raises:
        StoreError: the format cannot hold it, or there is one already.
        StorageUnavailableError: the disk is full, or fails.
    """
    chosen = _format(format)
    storage = _opened(address, writable=True)
    files = chosen.written(sae)
    with disk_errors_told(storage, "written"):
        if isinstance(storage, LocalStorage) and not storage.folder.exists():
            with new_place(storage.folder) as place:
                place.mkdir()
                for name, data in files.items():
                    (place / name).write_bytes(data)
            return
        known = {name for candidate in FORMATS.values() for name in candidate.files}
        there = sorted(set(storage.names()) & (known | files.keys()))
        if there and not replace:
            raise StoreError(f"{storage.address} has {there[0]} already; choose another folder")
        for name, data in files.items():
            storage.replace(name, data)


@contextlib.contextmanager
def disk_errors_told(storage: Storage, what: str) -> Iterator[None]:
    """Turn errors of a disk into one line; those of a bucket are already.

    Args:
        storage: storage that is used.
        what: what its files cannot be, such as `written`.

    Raises:
        StoreError: a file is missing, or may not be used.
        StorageUnavailableError: the disk is full, or fails.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        told = error.strerror or error
        raise StoreError(f"{storage.address} cannot be {what}: {told}") from None
    except OSError as error:
        told = error.strerror or error
        raise StorageUnavailableError(f"{storage.address} cannot be {what}: {told}") from None


def _opened(address: str | Path | Storage, *, writable: bool) -> Storage:
    if isinstance(address, str | Path):
        return open_storage(address, writable=writable)
    return address


def _format(name: str) -> SaeFormat:
    if name not in FORMATS:
        raise StoreError(f"format must be one of {', '.join(FORMATS)}, not {name!r}")
    return FORMATS[name]
