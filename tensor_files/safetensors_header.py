"""The header of a safetensors file: written, and refused wherever the library refuses it.

A file is the header's length (8 bytes, little-endian), the header (JSON: dtype, shape and place of
each tensor), then the tensors one after the other, https://huggingface.co/docs/safetensors.

Refused besides, though the library takes it: a key that stands twice, white space before the
header or other than spaces after it, and fields of a tensor that the format does not have.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of a number of each dtype."""

LENGTH_BYTES = 8
ALIGNMENT = 64
"""The tensors of written files begin at a multiple of it."""

MAX_HEADER_BYTES = 100_000_000
"""The library's limit."""

MAX_NUMBER = (1 << 64) - 1
_DIGITS = len(str(MAX_NUMBER))
_ENTRY = {"dtype", "shape", "data_offsets"}


class HeaderError(ValueError):
    """A file is no safetensors file, or not a whole one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where a tensor lies.

    Attributes:
        dtype: the format's name of its type.
        shape: shape in the file.
        begin: offset of its first byte in the data, which follow the header.
        end: offset of the byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What a header says.

    Attributes:
        metadata: texts that the writer added.
        tensors: entry of each tensor by name, in the header's order.
    """

    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]


def header_of(tensors: Mapping[str, tuple[str, Sequence[int]]], **metadata: str) -> bytes:
    """Return the start of a file, its length a multiple of 64; the tensors follow without gaps.

    Args:
        tensors: the format's name of the dtype and the shape of each tensor, by name, in order.
        metadata: texts to add.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def header_bytes(start: bytes, file_bytes: int, limit: int = MAX_HEADER_BYTES) -> int:
    """Return the header's length in bytes.

    Args:
        start: the first 8 bytes of the file, or all if it has fewer.
        file_bytes: size of the file.
        limit: longest header that is read.

    Raises:
        HeaderError: the file is shorter than that, or the header beyond the limit.
    """
    length = int.from_bytes(start, "little")
    if len(start) < LENGTH_BYTES or length > min(limit, file_bytes - LENGTH_BYTES):
        raise HeaderError(
            f"a header of {length} bytes in a file of {file_bytes}: not a safetensors file, or cut"
            " off"
        )
    return length


def parse_header(text: bytes, data_bytes: int) -> Header:
    """Read and check a header; time and memory are in proportion to its length.

    Args:
        text: the header, without its length.
        data_bytes: size of the file, less the header and its length.

    Raises:
        HeaderError: it is damaged, or its tensors do not fill the data, each byte once.
    """
    try:
        decoded = text.decode("utf-8").rstrip(" ")
        if not decoded.startswith("{") or not decoded.endswith("}"):
            raise HeaderError("the header is not JSON, padded by spaces at its end only")
        raw = json.loads(decoded, object_pairs_hook=_no_key_twice, parse_int=_whole_number)
    except HeaderError:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"a damaged header: {str(error)[:200]}") from None
    metadata = raw.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
        raise HeaderError("the header's metadata are not texts")
    tensors = {name: _entry(name, entry) for name, entry in raw.items()}
    _check_places(tensors.values(), data_bytes)
    return Header(metadata=metadata, tensors=tensors)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise HeaderError("a key occurs twice in the header")
    for text in (*found, *found.values()):
        if type(text) is str:
            text.encode()  # half a surrogate is a UnicodeEncodeError, which is a ValueError
    return found


def _whole_number(digits: str) -> int:
    """A number without sign; others are no number of the format."""
    if digits.startswith("-") or len(digits) > _DIGITS or int(digits) > MAX_NUMBER:
        raise HeaderError(f"{digits[:30]} is no size or offset")
    return int(digits)


def _entry(name: str, entry: Any) -> TensorEntry:
    """One tensor's entry, its size checked."""
    shown = repr(name[:200])
    if type(entry) is not dict or entry.keys() != _ENTRY:
        raise HeaderError(f"the header's entry of {shown} is none")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise HeaderError(f"the header's entry of {shown} is none")
    if any(type(number) is not int for number in (*shape, *offsets)):
        raise HeaderError(f"the header's entry of {shown} is none")
    if type(dtype) is not str or dtype not in DTYPE_BITS:
        raise HeaderError(f"{shown} is of dtype {str(dtype)[:50]}")
    count = 1
    for size in shape:
        count *= size
        if count > MAX_NUMBER:  # as in the library; and so no shape makes endless numbers
            raise HeaderError(f"the shape of {shown} is too large")
    begin, end = offsets
    if begin > end or DTYPE_BITS[dtype] * count != 8 * (end - begin):
        raise HeaderError(f"the size of {shown} does not fit its shape and dtype")
    return TensorEntry(dtype=dtype, shape=tuple(shape), begin=begin, end=end)


def _check_places(tensors: Iterable[TensorEntry], data_bytes: int) -> None:
    end = 0
    for begin, stop in sorted((tensor.begin, tensor.end) for tensor in tensors):
        if begin != end:
            raise HeaderError(f"tensors overlap or leave a hole at byte {end} of the data")
        end = stop
    if end > data_bytes:
        raise HeaderError(f"tensors of {end} bytes in {data_bytes}: the file was cut off")
    if end < data_bytes:
        raise HeaderError(f"{data_bytes - end} bytes lie after the last tensor")
