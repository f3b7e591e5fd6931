"""What a format of autoencoders' files is."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from extraction import documents
from extraction.errors import StoreError, first_line
from extraction.formats.float_types import widened
from extraction.storage import Storage
from extraction.storage.bounded import get_at_most
from sae.autoencoder import SparseAutoencoder
from tensor_files.safetensors_header import LENGTH_BYTES, HeaderError, header_bytes, parse_header

DENSITIES = "densities"
"""Metadata: how often each latent was active. SAELens' folders have a file for it, others none."""

MOST_CONFIG_BYTES = 1 << 20
MOST_WEIGHT_BYTES = 1 << 38

DTYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}
"""Stored types that are read; bfloat16 as its bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeFormat:
    """A format.

    Attributes:
        name: its name in commands.
        files: names of the files by which it is recognised.
        read: reads an autoencoder from a storage that has these files.
        written: returns files by name, in the order in which they should appear; None: the format
            is only read.
        file: pattern of names of files, each of which is an autoencoder; by them it is recognised
            too.
        read_file: reads one of these.
    """

    name: str
    files: frozenset[str]
    read: Callable[[Storage], SparseAutoencoder]
    written: Callable[[SparseAutoencoder], Mapping[str, bytes]] | None = None
    file: re.Pattern[str] | None = None
    read_file: Callable[[Storage, str], SparseAutoencoder] | None = None

    def is_in(self, names: Iterable[str]) -> bool:
        """Return whether a folder with these files holds an autoencoder of this format."""
        if self.file is not None:
            return any(map(self.file.fullmatch, names))
        return self.files <= set(names)


def read_json(storage: Storage, name: str) -> dict[str, Any]:
    """Return a JSON object from a file.

    Raises:
        StoreError: it is none.
    """
    data = get_at_most(storage, name, MOST_CONFIG_BYTES)
    try:
        document = documents.read_json(data)
    except ValueError as error:
        raise StoreError(f"{storage.address}/{name} is not JSON: {first_line(error)}") from None
    if not isinstance(document, dict):
        raise StoreError(f"{storage.address}/{name} holds no JSON object")
    return document


def read_tensors(storage: Storage, name: str) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file as float32; float64 stays.

    Raises:
        StoreError: it is damaged, or a number is not finite.
    """
    return read_tensors_and_texts(storage, name)[0]


def read_tensors_and_texts(
    storage: Storage, name: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors of a safetensors file, see `read_tensors`, and its header's metadata.

    Raises:
        StoreError: it is damaged, or a number is not finite.
    """
    data = get_at_most(storage, name, MOST_WEIGHT_BYTES)
    where = f"{storage.address}/{name}"
    try:
        start = LENGTH_BYTES + header_bytes(data[:LENGTH_BYTES], len(data))
        header = parse_header(data[LENGTH_BYTES:start], len(data) - start)
    except HeaderError as error:
        raise StoreError(f"{where} is damaged: {error}") from None
    found = {}
    for tensor, entry in header.tensors.items():
        if entry.dtype not in DTYPES:
            raise StoreError(f"{where}: {tensor[:100]!r} is {entry.dtype}, not {'/'.join(DTYPES)}")
        dtype = np.dtype(DTYPES[entry.dtype])
        count = (entry.end - entry.begin) // dtype.itemsize
        array = np.frombuffer(data, dtype, count, start + entry.begin).reshape(entry.shape)
        found[tensor] = as_weights(
            widened(array) if entry.dtype == "BF16" else array, f"{where}: {tensor}"
        )
    return found, header.metadata


def tensor_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return a safetensors file."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """Return a JSON file.

    Raises:
        StoreError: a value is none of JSON's.
    """
    try:
        return json.dumps(document, indent=1).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"the metadata hold what JSON cannot: {first_line(error)}") from None


def named_tensors(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, str], where: str
) -> dict[str, np.ndarray]:
    """Return a file's tensors by our names.

    Args:
        tensors: by their names in the file.
        names: name in the file for each of ours.
        where: the file, for messages.

    Raises:
        StoreError: a tensor is missing, there is another, or one has the wrong number of axes.
    """
    if tensors.keys() != set(names.values()):
        raise StoreError(
            f"{where} has the tensors {', '.join(sorted(tensors))[:200]};"
            f" {', '.join(sorted(names.values()))} are needed"
        )
    for name, stored in names.items():
        axes = 2 if name.startswith("W_") else 1
        if tensors[stored].ndim != axes:
            shape = list(tensors[stored].shape)
            raise StoreError(f"{where}: {stored} is {shape}; {axes} axes are needed")
    return {name: tensors[stored] for name, stored in names.items()}


def described(sae: SparseAutoencoder) -> dict[str, Any]:
    """Return the metadata that fit into a JSON file: all but `DENSITIES`."""
    return {key: value for key, value in sae.metadata.items() if key != DENSITIES}


def made(address: str, **fields: Any) -> SparseAutoencoder:
    """Return an autoencoder of a file's weights.

    Args:
        address: of the files, for messages.
        fields: arguments of `SparseAutoencoder`.

    Raises:
        StoreError: they do not fit each other.
    """
    try:
        return SparseAutoencoder(**fields)
    except StoreError as error:
        raise StoreError(f"{address}: {error}") from None


def as_weights(array: np.ndarray, where: str) -> np.ndarray:
    """Return an array as float32, or float64 if it is.

    Raises:
        StoreError: a number is not finite.
    """
    array = array.astype(np.float64 if array.dtype == np.float64 else np.float32, copy=False)
    if not np.isfinite(array).all():
        raise StoreError(f"{where} has numbers that are not finite")
    return array
