"""What every format offers: rows of one hook point to buffers, and files back to rows.

A format is a class with the members of `Format`, in a file of its own, and a line in `FORMATS`.
Reading needs numpy alone: bfloat16 comes back as its 16 bits, and is widened without ml_dtypes.
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
        data: buffers of bytes; the file is one behind the other. They may show the block's own
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
        """The first file's content in one piece, for writers that need it so."""
        return b"".join(self.data)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ParsedBatch:
    """What a batch's file holds.

    Attributes:
        hook_point: its name, `layer_6`.
        dtype: of the activations in the file: float32 or bfloat16; pickles of other writers also
            hold float16 or float64.
        stored: `[R, width]` activations as they stand in the file, bfloat16 as uint16 with the
            same bits. In safetensors, npz and raw files a view of the buffer that was parsed, so
            that a mapped file is read where it is touched.
        row_keys: the rows' keys. Steps, positions and token ids that the file does not tell are
            `UNKNOWN`. Like `stored`, they may be views.
    """

    hook_point: str
    dtype: str
    stored: np.ndarray
    row_keys: KeyTable

    def __post_init__(self):
        shape = self.stored.shape
        # Without rows, a file of no size can claim any width.
        if len(shape) != 2 or shape[0] != len(self.row_keys) or shape[1] > WIDTH_LIMIT:
            raise CorruptBatchError(
                f"activations of shape {list(shape)} for {len(self.row_keys)} rows"
            )

    @functools.cached_property
    def keys(self) -> RowBlock:
        """The rows' keys as a block without hook points."""
        return self.row_keys.block()

    def block(self) -> RowBlock:
        """The rows with float32 activations; those of bfloat16 are exactly the stored values."""
        activations = {self.hook_point: to_float32(self.stored, self.dtype)}
        return dataclasses.replace(self.keys, activations=activations)


class Format(Protocol):
    """How the rows of one hook point become a file."""

    @property
    def extension(self) -> str:
        """Of the file's name, without the dot."""
        ...

    @property
    def sidecar_extension(self) -> str | None:
        """Of the second file, which stands in place of `extension`; None: there is none."""
        ...

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What the format can hold, of float32 and bfloat16."""
        ...

    @property
    def writable(self) -> bool:
        """Whether runs are written in it; False: those of earlier versions are read."""
        ...

    @property
    def is_fast(self) -> bool:
        """Whether a part of a large file is read as fast as a small one."""
        ...

    def serialise(
        self,
        hook_point: str,
        block: RowBlock,
        dtype: str = "float32",
        memory: TakeMemory = fresh_memory,
    ) -> SerialisedBatch:
        """The file's content for one hook point of a block.

        Args:
            hook_point: one of the block's.
            block: its activations may be float16, float32, float64 or ml_dtypes' bfloat16.
            dtype: to store. What it can hold is stored exactly, the rest is rounded to nearest,
                ties to even; float64 becomes bfloat16 by way of float32.
            memory: for a content that is not the block's own arrays.

        Raises:
            StoreError: the format does not hold this dtype, or a text is not valid Unicode.
        """
        ...

    def parse(self, data: Buffer, sidecar: Buffer | None = None) -> ParsedBatch:
        """Reads a file; memory is bounded by its size, and nothing in it is ever run.

        Args:
            data: the file's content; a mapped file's memoryview serves as well.
            sidecar: content of the second file, for formats that have one.

        Raises:
            CorruptBatchError: the content is not exactly what the format's writer writes.
        """
        ...


class ReadOnlyFormat:
    """A format that earlier versions wrote."""

    writable = False
    is_fast = False

    def serialise(
        self,
        hook_point: str,
        block: RowBlock,
        dtype: str = "float32",
        memory: TakeMemory = fresh_memory,
    ) -> SerialisedBatch:
        """Refuse; see `Format.serialise`."""
        raise StoreError(f"{type(self).__name__}: this format is only read")


def check_dtype(format_name: str, dtypes: Sequence[str], dtype: str) -> None:
    """Refuses a dtype that a format does not hold.

    Raises:
        StoreError: it does not; the message says which formats do.
    """
    if dtype not in ("float32", "bfloat16"):
        raise StoreError(f"activations are stored as float32 or bfloat16, not {dtype}")
    if dtype not in dtypes:
        raise StoreError(
            f"{format_name} files cannot hold {dtype} so that numpy alone reads them; store"
            " float32, or take the format safetensors"
        )


@contextlib.contextmanager
def damage_refused(format_name: str) -> Iterator[None]:
    """Turns whatever goes wrong in a parser into `CorruptBatchError`.

    Parsers check what they read; this is for what they do not foresee, MemoryError and
    RecursionError among it.
    """
    try:
        yield
    except CorruptBatchError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CorruptBatchError(f"not a whole {format_name} batch ({reason})") from error
