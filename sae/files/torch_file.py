"""State dicts in files of `torch.save` (`.pt`), read and written without torch.

Such a file is an uncompressed zip archive, https://docs.pytorch.org/docs/stable/notes/serialization.html:

    archive/data.pkl    a pickle with the names, shapes and strides of the tensors
    archive/data/0 ...  their numbers
    archive/byteorder   little
    archive/version     3

`torch_pickle` reads the pickle; no code in a file is run. Memory is in proportion to the file.
"""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

from extraction.errors import CorruptBatchError, StoreError
from extraction.formats.float_types import widened
from sae.files.torch_pickle import Storage, Tensor, read_state_dict, state_dict_pickle

LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""Time of all files in an archive, so that the same tensors give the same bytes."""


def read_torch_file(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a file, bfloat16 as float32.

    Args:
        data: the file's content.

    Raises:
        UnsafePickleError: its pickle contains something that no state dict needs.
        CorruptBatchError: it is damaged, or no file of `torch.save`.
    """
    with _damage_refused(), zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = _Entries(archive, len(data))
        if entries.has("byteorder") and entries.read("byteorder") != b"little":
            raise CorruptBatchError("its numbers are big-endian; save it on another machine")
        tensors = read_state_dict(entries.read("data.pkl"))
        storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        numbers = {key: _numbers(storage, entries) for key, storage in storages.items()}
        # Strides may repeat numbers: a small file would take any amount of memory.
        claimed = sum(math.prod(tensor.shape) for tensor in tensors.values())
        if claimed > sum(map(len, numbers.values())):
            raise CorruptBatchError("the tensors have more numbers than the file")
        return {name: _array(tensor, numbers) for name, tensor in tensors.items()}


def torch_file(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return a file that `torch.load(path, weights_only=True)` reads as a state dict.

    Args:
        arrays: float32, float64, int32 or int64, by name.
    """
    tensors, contents = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        storage = Storage(array.dtype.name, str(key), array.size)
        tensors[name] = Tensor(storage, 0, array.shape, strides)
        contents[f"data/{key}"] = array.astype(array.dtype.newbyteorder("<")).tobytes()
    files = {"data.pkl": state_dict_pickle(tensors), "byteorder": b"little", **contents}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {**files, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", LONG_AGO), content)
    return stream.getvalue()


@contextlib.contextmanager
def _damage_refused() -> Iterator[None]:
    """Turn whatever a damaged archive raises into CorruptBatchError."""
    try:
        yield
    except StoreError:
        raise
    except zipfile.BadZipFile as error:
        raise CorruptBatchError(
            f"no whole file of torch.save, of torch 1.6 or newer: {error}"
        ) from None
    except (OSError, EOFError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise CorruptBatchError(f"a damaged archive ({type(error).__name__})") from None


class _Entries:
    """The files of an archive, each of which is read once, and which together fit into it."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        found = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(found) != 1:
            raise CorruptBatchError("an archive without one data.pkl is no file of torch.save")
        self._folder = found[0].removesuffix("data.pkl")
        self._archive, self._left = archive, size

    def has(self, name: str) -> bool:
        return self._folder + name in self._archive.NameToInfo

    def read(self, name: str) -> bytes:
        if not self.has(name):
            raise CorruptBatchError(f"{name[:50]!r} is missing in the archive")
        entry = self._archive.getinfo(self._folder + name)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CorruptBatchError(f"{name[:50]!r} is compressed, as torch never does")
        self._left -= entry.file_size
        if self._left < 0:
            raise CorruptBatchError("the files of the archive are larger than the archive")
        return self._archive.read(entry)


def _numbers(storage: Storage, entries: _Entries) -> np.ndarray:
    data = entries.read(f"data/{storage.key}")
    kind = "uint16" if storage.dtype == "bfloat16" else storage.dtype
    dtype = np.dtype(kind).newbyteorder("<")
    if len(data) != storage.count * dtype.itemsize:
        raise CorruptBatchError(
            f"a storage of {storage.count} {storage.dtype} has {len(data)} bytes"
        )
    array = np.frombuffer(data, dtype)
    return widened(array) if storage.dtype == "bfloat16" else array


def _array(tensor: Tensor, numbers: Mapping[str, np.ndarray]) -> np.ndarray:
    storage = numbers[tensor.storage.key]
    size = math.prod(tensor.shape)
    reach = sum(
        (length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if size and tensor.offset + reach >= len(storage):
        raise CorruptBatchError(
            f"a tensor {list(tensor.shape)} lies beyond its storage of {len(storage)} numbers"
        )
    if not size:
        return np.zeros(tensor.shape, storage.dtype)
    strides = [stride * storage.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(
        storage[tensor.offset :], tensor.shape, strides, writeable=False
    )
    return np.array(view, order="C")
