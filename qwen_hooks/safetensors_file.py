"""Reading parts of safetensors files with plain reads.

The `safetensors` package maps files into memory, where a tensor then counts twice (once as the
page cache's mapping, once as the array made of it), and on a network file system every page fault
fetches a whole chunk. Here a header scan touches only the header, and a tensor is read in pieces
of a few MiB straight into the array that is asked for.

`tensor_files` checks the headers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from qwen_hooks.errors import ModelError
from tensor_files.safetensors_header import HeaderError, header_bytes, parse_header

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Stored types that are read; anything else is refused."""

PIECE_BYTES = 16 << 20


@runtime_checkable
class WeightsFile(Protocol):
    """A safetensors file that is read in parts, on a disk or elsewhere; a `Path` is one."""

    @property
    def name(self) -> str:
        """Name of the file, without its folder."""
        ...

    def stat(self) -> Any:
        """Return an object with `st_size`."""
        ...

    @property
    def open(self) -> Callable[..., Any]:
        """Return a stream with `seek`, `read` and `readinto`, opened with mode and `buffering`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """File, offsets, dtype and shape of a stored tensor.

    Attributes:
        file: the safetensors file.
        dtype: the format's name of its type.
        shape: shape in the file.
        offset: offset of its first byte in the file.
        nbytes: size of the tensor in bytes.
    """

    file: WeightsFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(file: WeightsFile) -> dict[str, StoredTensor]:
    """Return the tensors of a file, from its header alone.

    Raises:
        ModelError: the file is not a safetensors file, or its size differs from its header.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = header_bytes(start, size)
            header = parse_header(stream.read(length), size - len(start) - length)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None
    except HeaderError as error:
        raise ModelError(f"{file}: {error}") from None
    return {
        name: StoredTensor(
            file=file,
            dtype=entry.dtype,
            shape=entry.shape,
            offset=len(start) + length + entry.begin,
            nbytes=entry.end - entry.begin,
        )
        for name, entry in header.tensors.items()
    }


def read_tensor(
    tensor: StoredTensor,
    dtype: np.dtype,
    *,
    transposed: bool = False,
    index: tuple[slice, ...] | None = None,
) -> np.ndarray:
    """Return a tensor, or a rectangular part of it, in another dtype, transposed if wanted.

    Only the rows in `index` are read, in pieces, so that besides the result no more than a few
    MiB are held.

    Args:
        tensor: of one or two dimensions.
        dtype: dtype of the result.
        transposed: give `[in, out]` of a stored `[out, in]`.
        index: slices without steps, in terms of the *result*; None: all of it.
    """
    stored_dtype = DTYPES[tensor.dtype]
    rows, columns = tensor.shape[0], int(np.prod(tensor.shape[1:]))
    if index is not None and transposed:
        index = index[::-1]
    row_index = index[0] if index else slice(None)
    column_index = index[1] if index and len(index) > 1 else slice(None)
    first, last, _ = row_index.indices(rows)
    shape = (last - first, len(range(*column_index.indices(columns))))
    result = np.empty(shape[::-1] if transposed else shape, dtype)
    by_row = result.T if transposed else result

    row_bytes = columns * stored_dtype.itemsize
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    piece = np.empty((min(step, shape[0]), columns), stored_dtype)
    with tensor.file.open("rb", buffering=0) as stream:
        for start in range(first, last, step):
            part = piece[: min(step, last - start)]
            stream.seek(tensor.offset + start * row_bytes)
            _read_exactly(stream, part.view(np.uint8).reshape(-1), tensor.file)
            by_row[start - first : start - first + len(part)] = part[:, column_index]
    return result.reshape(-1) if len(tensor.shape) == 1 else result


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Return whether two matrices of one shape hold the same numbers, whatever their dtypes.

    They are read in pieces, up to the first that differs.
    """
    rows = max(1, PIECE_BYTES // max(1, 4 * int(np.prod(one.shape[1:]))))
    for start in range(0, one.shape[0], rows):
        index = (slice(start, start + rows), slice(None))
        a, b = (read_tensor(t, np.dtype(np.float32), index=index) for t in (one, other))
        if not np.array_equal(a, b):
            return False
    return True


def _read_exactly(stream, buffer: np.ndarray, file: WeightsFile) -> None:
    view = memoryview(buffer)  # pyright: ignore[reportArgumentType]
    while view:
        count = stream.readinto(view)
        if not count:
            raise ModelError(f"{file} became shorter while it was read")
        view = view[count:]
