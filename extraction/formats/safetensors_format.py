"""The fast format: safetensors, activations in float32 or bfloat16 and the row keys beside them.

The file is what the safetensors library writes and reads: the header's length (8 bytes, little-
endian), the header (JSON: dtype, shape and place of each tensor), then the tensors one behind the
other, https://huggingface.co/docs/safetensors. The library is not needed here, and its reader
lets pass what this one refuses: keys that stand twice, and space before the header.

Tensors: `activations` `[R, width]`, first and aligned to 64 bytes, and those of `key_arrays`. The
hook point's name stands in the header's metadata.
"""

import json
from collections.abc import Mapping
from typing import Any

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
from extraction.recycled_memory import TakeMemory, fresh_memory
from extraction.rows import RowBlock

ALIGNMENT = 64
HEADER_LIMIT = 1 << 16  # ours take about 1 kB
_CODES = {"|u1": "U8", "<i4": "I32", "<i8": "I64"}
_ACTIVATION_CODES = {"float32": "F32", "bfloat16": "BF16"}
_NUMPY = {code: numpy for numpy, code in _CODES.items()} | {"F32": "<f4", "BF16": "<u2"}


class SafetensorsFormat:
    """`layer_6_batch_000001.safetensors`."""

    extension = "safetensors"
    sidecar_extension = None
    dtypes = ("float32", "bfloat16")

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
        tensors = {"activations": (_ACTIVATION_CODES[dtype], activations)}
        for name, array in key_arrays(block).items():
            tensors[name] = (_CODES[KEY_DTYPES[name]], array)
        header: dict[str, Any] = {"__metadata__": {"hook_point": hook_point}}
        end = 0
        for name, (code, array) in tensors.items():
            start, end = end, end + array.nbytes
            header[name] = {
                "dtype": code,
                "shape": list(array.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        # The keys are small: one write for all of them.
        first, *keys = (array_buffer(array) for _, array in tensors.values())
        return SerialisedBatch(data=[len(text).to_bytes(8, "little") + text, first, b"".join(keys)])

    def parse(self, data: Buffer, sidecar: Buffer | None = None) -> ParsedBatch:
        """See `Format.parse`."""
        with damage_refused("safetensors"):
            view = memoryview(data).cast("B")
            header, start = _header(view)
            metadata = header.pop("__metadata__", None)
            if type(metadata) is not dict or type(metadata.get("hook_point")) is not str:
                raise CorruptBatchError("the header's metadata does not name a hook point")
            if set(header) != {"activations", *KEY_DTYPES}:
                raise CorruptBatchError(f"the tensors are {str(sorted(header))[:200]}")
            _check_places(header, len(view) - start)
            arrays = {name: _array(view, start, name, entry) for name, entry in header.items()}
            code = header["activations"]["dtype"]
            dtype = {code: dtype for dtype, code in _ACTIVATION_CODES.items()}.get(code)
            if dtype is None:
                raise CorruptBatchError(f"activations are {code}, not F32 or BF16")
            wrong = [n for n, kind in KEY_DTYPES.items() if header[n]["dtype"] != _CODES[kind]]
            if wrong or any(arrays[name].ndim != 1 for name in KEY_DTYPES):
                raise CorruptBatchError(f"row keys of a wrong dtype or shape: {wrong}")
            return ParsedBatch(
                hook_point=metadata["hook_point"],
                dtype=dtype,
                stored=arrays.pop("activations"),
                row_keys=KeyTable(arrays),
            )


def array_buffer(array: np.ndarray) -> memoryview:
    """A contiguous array's bytes, not copied."""
    return array.reshape(-1).view(np.uint8).data


def _header(view: memoryview) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors start."""
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > min(HEADER_LIMIT, len(view) - 8):
        raise CorruptBatchError(f"a header of {length} bytes in a file of {len(view)}")
    text = str(view[8 : 8 + length], "utf-8").rstrip(" ")
    if not text.startswith("{") or not text.endswith("}"):
        raise CorruptBatchError("the header is not JSON, padded by spaces at its end only")
    return json.loads(text, object_pairs_hook=_no_key_twice), 8 + length


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise CorruptBatchError("a key stands twice in the header")
    return dict(pairs)


def _check_places(header: Mapping[str, Any], size: int) -> None:
    """Makes sure that tensors fill the space behind the header, each byte once.

    Raises:
        CorruptBatchError: they do not, or an entry is none.
    """
    places = []
    for name, entry in header.items():
        if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CorruptBatchError(f"the header's entry of {name!r} is none")
        shape, offsets, code = entry["shape"], entry["data_offsets"], entry["dtype"]
        if type(code) is not str or code not in _NUMPY:
            raise CorruptBatchError(f"{name!r} is of dtype {str(code)[:50]}")
        if type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
            raise CorruptBatchError(f"the header's entry of {name!r} is none")
        # numpy would take the first negative number for "as many as fit".
        if not all(type(number) is int and number >= 0 for number in (*shape, *offsets)):
            raise CorruptBatchError(f"the header's entry of {name!r} is none")
        places.append(offsets)
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise CorruptBatchError(f"tensors overlap or leave a hole at byte {end} of the data")
        end = stop
    if end != size:
        raise CorruptBatchError(f"tensors of {end} bytes in {size}")


def _array(view: memoryview, start: int, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    begin, end = entry["data_offsets"]
    flat = np.frombuffer(view[start + begin : start + end], _NUMPY[entry["dtype"]])
    return flat.reshape(entry["shape"])
