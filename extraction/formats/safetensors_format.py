"""The fast format: safetensors, activations in float32 or bfloat16 and the row keys beside them.

The safetensors library can read the file; `tensor_files` checks its header, so the library is not
needed here.

Tensors: `activations` `[R, width]`, first and aligned to 64 bytes, and those of `key_arrays`. The
header's metadata holds the hook point's name.
"""

import numpy as np

from extraction.errors import CorruptBatchError
from extraction.formats.batch import (
    Buffer,
    ParsedBatch,
    SerialisedBatch,
    check_dtype,
    damage_refused,
)
from extraction.formats.float_types import stored_array
from extraction.formats.key_arrays import KEY_DTYPES, KeyTable, key_arrays
from extraction.reading.buffer_pool import TakeMemory, fresh_memory
from extraction.run.rows import RowBlock
from tensor_files.safetensors_header import (
    HeaderError,
    TensorEntry,
    header_bytes,
    header_of,
    parse_header,
)

HEADER_LIMIT = 1 << 16  # ours take about 1 kB
_CODES = {"|u1": "U8", "<i4": "I32", "<i8": "I64"}
ACTIVATION_CODES = {"float32": "F32", "bfloat16": "BF16"}
"""The format's names of the dtypes of activations."""

_NUMPY = {code: numpy for numpy, code in _CODES.items()} | {"F32": "<f4", "BF16": "<u2"}


class SafetensorsFormat:
    """`layer_6_batch_000001.safetensors`."""

    extension = "safetensors"
    sidecar_extension = None
    dtypes = ("float32", "bfloat16")
    writable = is_fast = True

    def serialise(
        self,
        hook_point: str,
        block: RowBlock,
        dtype: str = "float32",
        memory: TakeMemory = fresh_memory,
    ) -> SerialisedBatch:
        """See `Format.serialise`."""
        check_dtype("safetensors", self.dtypes, dtype)
        activations = stored_array(block.activations[hook_point], dtype)
        tensors = {"activations": (ACTIVATION_CODES[dtype], activations)}
        for name, array in key_arrays(block).items():
            tensors[name] = (_CODES[KEY_DTYPES[name]], array)
        header = header_of(
            {name: (code, array.shape) for name, (code, array) in tensors.items()},
            hook_point=hook_point,
        )
        # The keys are small: one write for all of them.
        first, *keys = (array_buffer(array) for _, array in tensors.values())
        return SerialisedBatch(data=[header, first, b"".join(keys)])

    def parse(self, data: Buffer, sidecar: Buffer | None = None) -> ParsedBatch:
        """See `Format.parse`."""
        with damage_refused("safetensors"):
            view = memoryview(data).cast("B")
            try:
                start = 8 + header_bytes(bytes(view[:8]), len(view), HEADER_LIMIT)
                header = parse_header(bytes(view[8:start]), len(view) - start)
            except HeaderError as error:
                raise CorruptBatchError(str(error)) from None
            hook_point = header.metadata.get("hook_point")
            if hook_point is None:
                raise CorruptBatchError("the header's metadata does not name a hook point")
            tensors = header.tensors
            if set(tensors) != {"activations", *KEY_DTYPES}:
                raise CorruptBatchError(f"the tensors are {str(sorted(tensors))[:200]}")
            unknown = {entry.dtype for entry in tensors.values()} - _NUMPY.keys()
            if unknown:
                raise CorruptBatchError(f"tensors of dtype {sorted(unknown)}")
            arrays = {name: _array(view[start:], entry) for name, entry in tensors.items()}
            code = tensors["activations"].dtype
            dtype = {code: dtype for dtype, code in ACTIVATION_CODES.items()}.get(code)
            if dtype is None:
                raise CorruptBatchError(f"activations are {code}, not F32 or BF16")
            wrong = [n for n, kind in KEY_DTYPES.items() if tensors[n].dtype != _CODES[kind]]
            if wrong or any(arrays[name].ndim != 1 for name in KEY_DTYPES):
                raise CorruptBatchError(f"row keys of a wrong dtype or shape: {wrong}")
            return ParsedBatch(
                hook_point=hook_point,
                dtype=dtype,
                stored=arrays.pop("activations"),
                row_keys=KeyTable(arrays),
            )


def array_buffer(array: np.ndarray) -> memoryview:
    """Return a contiguous array's bytes, not copied."""
    return array.reshape(-1).view(np.uint8).data


def _array(data: memoryview, entry: TensorEntry) -> np.ndarray:
    flat = np.frombuffer(data[entry.begin : entry.end], _NUMPY[entry.dtype])
    return flat.reshape(entry.shape)
