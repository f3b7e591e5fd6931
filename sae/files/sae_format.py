"""What a format of autoencoders' files is."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.storage import Storage
from extraction.storage.bounded import get_at_most
from sae.autoencoder import SparseAutoencoder

MOST_CONFIG_BYTES = 1 << 20
MOST_WEIGHT_BYTES = 1 << 38


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeFormat:
    """A format.

    Attributes:
        name: its name in commands.
        files: names of the files by which it is recognised.
        read: reads an autoencoder from a storage that has these files.
        written: returns files by name, in the order in which they should appear.
    """

    name: str
    files: frozenset[str]
    read: Callable[[Storage], SparseAutoencoder]
    written: Callable[[SparseAutoencoder], Mapping[str, bytes]]


def read_json(storage: Storage, name: str) -> dict[str, Any]:
    """Return a JSON object from a file.

    Raises:
        StoreError: it is none.
    """
    data = get_at_most(storage, name, MOST_CONFIG_BYTES)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{storage.address}/{name} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise StoreError(f"{storage.address}/{name} holds no JSON object")
    return document


def read_tensors(storage: Storage, name: str) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file as float32; float64 stays.

    Raises:
        StoreError: it is damaged, or a number is not finite.
    """
    import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = get_at_most(storage, name, MOST_WEIGHT_BYTES)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise StoreError(f"{storage.address}/{name} is damaged: {error}") from None
    return {
        tensor: as_weights(array, f"{storage.address}/{name}: {tensor}")
        for tensor, array in tensors.items()
    }


def as_weights(array: np.ndarray, where: str) -> np.ndarray:
    """Return an array as float32, or float64 if it is.

    Raises:
        StoreError: a number is not finite.
    """
    array = array if array.dtype == np.float64 else array.astype(np.float32)
    if not np.isfinite(array).all():
        raise StoreError(f"{where} has numbers that are not finite")
    return array
