"""Autoencoders in files: SAELens' folders, which are ours too, and those of other libraries.

    sae = load("saes/layer_12")                     # a folder, gs:// or s3://
    save(sae, "converted", format="sparsify")
    sae = load("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82")

`FORMATS` has one entry for each format. A format is recognised by its files; some are only read.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from extraction.errors import StorageUnavailableError, StoreError
from extraction.exports.new_place import new_place
from extraction.storage import Storage, open_storage
from extraction.storage.local import LocalStorage
from sae.autoencoder import SparseAutoencoder
from sae.files.dictionary_learning import DICTIONARY_LEARNING
from sae.files.gemma_scope import GEMMA_SCOPE, GEMMA_SCOPE_2
from sae.files.hub import downloaded, is_on_hub
from sae.files.llama_scope import LLAMA_SCOPE
from sae.files.qwen_scope import QWEN_SCOPE
from sae.files.sae_format import SaeFormat
from sae.files.saelens import SAELENS
from sae.files.sparsify import SPARSIFY

FORMATS: Mapping[str, SaeFormat] = {
    format.name: format
    for format in (
        SAELENS,
        DICTIONARY_LEARNING,
        SPARSIFY,
        GEMMA_SCOPE,
        GEMMA_SCOPE_2,
        LLAMA_SCOPE,
        QWEN_SCOPE,
    )
}
"""Each is one line here, and one file with its relatives."""

WRITTEN = tuple(name for name, format in FORMATS.items() if format.written is not None)
"""Names of those that are written; the others are only read."""


def load(address: str | Path | Storage, *, format: str | None = None) -> SparseAutoencoder:
    """Read an autoencoder from a folder, a bucket or the Hugging Face hub.

    Args:
        address: folder, `gs://bucket/prefix`, `s3://bucket/prefix`, `hf://owner/name/folder`, or an
            open storage; for Qwen-Scope also the address of one of its files.
        format: a name in `FORMATS`; None: the one that the files have.

    Raises:
        StoreError: there is none, it is damaged, or it cannot be used here.
    """
    chosen = [_format(format)] if format else list(FORMATS.values())
    place = downloaded(str(address)) if is_on_hub(address) else address
    folder, file = _file_of(place, chosen)
    storage = _opened(folder, writable=False)
    with disk_errors_told(storage, "read"):
        names = set(storage.names())
        if file is not None:
            if file[0] not in names:
                raise StoreError(f"{storage.address} has no {file[0]}")
            return file[1](storage, file[0])
        found = [candidate for candidate in chosen if candidate.is_in(names)]
        if len(found) > 1:
            raise StoreError(
                f"{storage.address} holds the files of several formats:"
                f" {', '.join(candidate.name for candidate in found)}; say which one to read"
            )
        if found:
            return found[0].read(storage)
    if len(chosen) == 1:
        wanted = chosen[0].files - names or {chosen[0].file.pattern if chosen[0].file else ""}
        what = f"{', '.join(sorted(wanted))} is missing"
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
        format: a name in `WRITTEN`.
        replace: whether files of the same names may be there.

    Raises:
        StoreError: the format cannot hold it, or there is one already.
        StorageUnavailableError: the disk is full, or fails.
    """
    chosen = _format(format)
    if chosen.written is None:
        raise StoreError(f"{format} is only read; format must be one of {', '.join(WRITTEN)}")
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


def _file_of(
    address: str | Path | Storage, chosen: Sequence[SaeFormat]
) -> tuple[str | Path | Storage, tuple[str, Callable[[Storage, str], SparseAutoencoder]] | None]:
    """Return the folder of an address and, if it is that of one file, its name and reader."""
    if isinstance(address, str | Path):
        folder, _, name = str(address).rstrip("/").rpartition("/")
        for candidate in chosen:
            if candidate.file and candidate.read_file and candidate.file.fullmatch(name):
                return folder or ".", (name, candidate.read_file)
    return address, None


def _opened(address: str | Path | Storage, *, writable: bool) -> Storage:
    if isinstance(address, str | Path):
        return open_storage(address, writable=writable)
    return address


def _format(name: str) -> SaeFormat:
    if name not in FORMATS:
        raise StoreError(f"format must be one of {', '.join(FORMATS)}, not {name!r}")
    return FORMATS[name]
