"""The interface of every format: rows of one hook point to a file, and files back to rows.

A format is a class with the members of `Format`, in its own file, and a line in `FORMATS`. Reading
needs numpy alone: bfloat16 is read as 16-bit integers and widened without ml_dtypes.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from extraction.errors import CorruptBatchError, StoreError
from extraction.formats.float_types import to_float32
from extraction.formats.key_arrays import KeyTable
from extraction.reading.buffer_pool import TakeMemory, fresh_memory
from extraction.run.rows import RowBlock

Buffer = bytes | memoryview
WIDTH_LIMIT = (1 << 31) - 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SerialisedBatch:
    """The content of a batch's file, or of its two files.

    Attributes:
        data: buffers of bytes, which joined are the file. They may be views of the block's own
            arrays, which must not change before the file is written.
        sidecar: content of the second file, for formats that have one.
    """

    data: Sequence[Buffer]
    sidecar: bytes | None = None

    @property
    def nbytes(self) -> int:
        """Size of the first file."""
        return sum(len(buffer) for buffer in self.data)

    def join(self) -> bytes:
        """Return the first file's content in one piece."""
        return b"".join(self.data)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ParsedBatch:
    """Content of a batch's file.

    Attributes:
        hook_point: name of the hook point, `layer_6`.
        dtype: dtype of the activations in the file: float32 or bfloat16; pickles of other writers
            also hold float16 or float64.
        stored: `[R, width]` activations as stored in the file, bfloat16 as uint16 with the same
            bits. For safetensors, npz and raw files it is a view of the parsed buffer, so of a
            mapped file only the pages that are used are read.
        row_keys: the rows' keys. Steps, positions and token ids missing in the file are
            `UNKNOWN`. Like `stored`, they may be views.
    """

    hook_point: str
    dtype: str
    stored: np.ndarray
    row_keys: KeyTable

    def __post_init__(self):
        shape = self.stored.shape
        # Without rows even an empty file could claim any width.
        if len(shape) != 2 or shape[0] != len(self.row_keys) or shape[1] > WIDTH_LIMIT:
            raise CorruptBatchError(
                f"activations of shape {list(shape)} for {len(self.row_keys)} rows"
            )

    @functools.cached_property
    def keys(self) -> RowBlock:
        """The rows' keys as a block without hook points."""
        return self.row_keys.block()

    def block(self) -> RowBlock:
        """Return the rows with float32 activations; stored bfloat16 values are widened exactly."""
        activations = {self.hook_point: to_float32(self.stored, self.dtype)}
        return dataclasses.replace(self.keys, activations=activations)


class Format(Protocol):
    """How the rows of one hook point are stored in a file."""

    @property
    def extension(self) -> str:
        """Extension of the file's name, without the dot."""
        ...

    @property
    def sidecar_extension(self) -> str | None:
        """Extension of the second file, in place of `extension`; None: there is no second file."""
        ...

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes that the format can store: float32, bfloat16 or both."""
        ...

    @property
    def writable(self) -> bool:
        """Whether new runs may be written in it; False: only runs of earlier versions are read."""
        ...

    @property
    def is_fast(self) -> bool:
        """Whether reading part of a large file is as fast as reading a small file."""
        ...

    def serialise(
        self,
        hook_point: str,
        block: RowBlock,
        dtype: str = "float32",
        memory: TakeMemory = fresh_memory,
    ) -> SerialisedBatch:
        """Return the file's content for one hook point of a block.

        Args:
            hook_point: one of the block's.
            block: its activations may be float16, float32, float64 or ml_dtypes' bfloat16.
            dtype: stored dtype. Values are rounded to nearest, ties to even; float64 is rounded
                to float32 first and then to bfloat16.
            memory: allocates content that is not a view of the block's own arrays.

        Raises:
            StoreError: the format does not hold this dtype, or a text is not valid Unicode.
        """
        ...

    def parse(self, data: Buffer, sidecar: Buffer | None = None) -> ParsedBatch:
        """Parse a file in memory bounded by its size, without executing anything in it.

        Args:
            data: the file's content; may be the memoryview of a mapped file.
            sidecar: content of the second file, for formats that have one.

        Raises:
            CorruptBatchError: the content is not exactly what the format's writer writes.
        """
        ...


class ReadOnlyFormat:
    """A format that earlier versions wrote, and that is now only read."""

    writable = False
    is_fast = False

    def serialise(
        self,
        hook_point: str,
        block: RowBlock,
        dtype: str = "float32",
        memory: TakeMemory = fresh_memory,
    ) -> SerialisedBatch:
        """Refuse to write; see `Format.serialise`."""
        raise StoreError(f"{type(self).__name__}: new runs cannot be written in this format")


def check_dtype(format_name: str, dtypes: Sequence[str], dtype: str) -> None:
    """Refuse a dtype that a format cannot store.

    Raises:
        StoreError: the format cannot store it; the message says which format can.
    """
    if dtype not in ("float32", "bfloat16"):
        raise StoreError(f"activations are stored as float32 or bfloat16, not {dtype}")
    if dtype not in dtypes:
        raise StoreError(
            f"{format_name} files cannot store {dtype} in a form that numpy alone reads; store"
            " float32, or choose the format safetensors"
        )


@contextlib.contextmanager
def damage_refused(format_name: str) -> Iterator[None]:
    """Turn any error of a parser in a `with` block into `CorruptBatchError`.

    Parsers check what they read; this catches errors that they do not foresee, such as MemoryError
    and RecursionError.
    """
    try:
        yield
    except CorruptBatchError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CorruptBatchError(f"not a whole {format_name} batch ({reason})") from error
