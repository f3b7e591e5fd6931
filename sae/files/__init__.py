"""Autoencoders in files: SAELens' folders, which are ours too, and those of other libraries.

    sae = load("saes/layer_12")                     # a folder, gs:// or s3://
    save(sae, "converted", format="sparsify")

`FORMATS` has one entry for each format. A format is recognised by its files.
"""

from collections.abc import Mapping
from pathlib import Path

from extraction.errors import StoreError
from extraction.storage import Storage, open_storage
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
    storage = _opened(address, writable=False)
    names = set(storage.names())
    chosen = [_format(format)] if format else list(FORMATS.values())
    for candidate in chosen:
        if candidate.files <= names:
            return candidate.read(storage)
    missing = ", ".join(sorted(chosen[0].files - names)) if len(chosen) == 1 else ""
    what = f"{missing} is missing" if missing else f"its files are {sorted(names)[:6]}"
    raise StoreError(f"{storage.address} holds no autoencoder of a known format: {what}")


def save(
    sae: SparseAutoencoder,
    address: str | Path | Storage,
    *,
    format: str = "saelens",
    replace: bool = False,
) -> None:
    """Write an autoencoder; its last file appears last, so that a folder is whole or unreadable.

    Args:
        sae: the autoencoder.
        address: where: a new folder, or an address in a bucket.
        format: a name in `FORMATS`.
        replace: whether files of the same names may be there.

    Raises:
        StoreError: the format cannot hold it, or there is one already.
    """
    chosen = _format(format)
    storage = _opened(address, writable=True)
    files = chosen.written(sae)
    there = sorted(set(storage.names()) & files.keys())
    if there and not replace:
        raise StoreError(f"{storage.address} has {there[0]} already; choose another folder")
    for name, data in files.items():
        storage.replace(name, data)


def _opened(address: str | Path | Storage, *, writable: bool) -> Storage:
    if isinstance(address, str | Path):
        return open_storage(address, writable=writable)
    return address


def _format(name: str) -> SaeFormat:
    if name not in FORMATS:
        raise StoreError(f"format must be one of {', '.join(FORMATS)}, not {name!r}")
    return FORMATS[name]
