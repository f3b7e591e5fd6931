"""Named arrays as an npz file: a zip of npy files, stored and never compressed.

Written and read without `zipfile` and `numpy.load`, so that the arrays are not copied, the same
rows always give the same bytes, and a file that lies about its sizes makes the reader allocate
nothing: its arrays are views of the file. Zip: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12
and 4.3.16; npy: numpy's `lib/format.py`, version 1.0. `numpy.load` reads the files written here,
and files of `numpy.savez` are read here.
"""

import functools
import re
import struct
import zlib
from collections.abc import Mapping

import numpy as np

from extraction.errors import CorruptBatchError, StoreError
from extraction.formats.batch import Buffer

ALIGNMENT = 64
SIZE_LIMIT = (1 << 32) - (1 << 16)  # with the heads below 4 GiB, beyond which zip differs
DTYPES = ("<f4", "<i8", "<i4", "|u1")

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION = 20
_NEW_YEAR_1980 = 0x21
_PADDING = 0xD935  # the extra field by which Android's zipalign aligns
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([^']{1,9})', 'fortran_order': (False|True), "
    rb"'shape': \(([0-9, ]{0,99})\), \} *\n"
)


def write_npz(arrays: Mapping[str, np.ndarray]) -> list[Buffer]:
    """Return the file's content as buffers, some of which are views of the arrays.

    Args:
        arrays: C-contiguous, of `DTYPES`.

    Raises:
        StoreError: the file would be larger than a zip can be.
    """
    if sum(array.nbytes for array in arrays.values()) > SIZE_LIMIT:
        raise StoreError("a batch beyond 4 GiB does not fit npz; write fewer rows per file")
    buffers: list[Buffer] = []
    directory = []
    at = 0
    for name, array in arrays.items():
        member = f"{name}.npy".encode()
        content = [_npy_header(array), array.reshape(-1).view(np.uint8).data]
        size = sum(map(len, content))
        check = zlib.crc32(content[1], zlib.crc32(content[0]))
        padding = -(at + _LOCAL.size + len(member) + 4) % ALIGNMENT
        extra = struct.pack("<2H", _PADDING, padding) + bytes(padding)
        common = (_VERSION, 0, 0, 0, _NEW_YEAR_1980, check, size, size, len(member))
        head = _LOCAL.pack(b"PK\3\4", *common, len(extra)) + member + extra
        directory.append(_CENTRAL.pack(b"PK\1\2", _VERSION, *common, 0, 0, 0, 0, 0, at) + member)
        buffers += [head, *content]
        at += len(head) + size
    entries = b"".join(directory)
    return [*buffers, entries + _end(len(directory), at, at + len(entries))]


def read_npz(data: Buffer) -> dict[str, np.ndarray]:
    """Return the arrays of a file, as views of it.

    Raises:
        CorruptBatchError: members are compressed, damaged, or leave space between them, or one
            is not an array of `DTYPES`.
        Exception: the file is damaged otherwise (`struct.error` where it ends too early).
    """
    view = memoryview(data).cast("B")
    members = _members(view)
    return {name.removesuffix(".npy"): _npy_array(name, view) for name, view in members.items()}


def _members(view: memoryview) -> dict[str, memoryview]:
    tail = len(view) - _END.size
    if tail < 0:
        raise CorruptBatchError(f"{len(view)} bytes are too few for an npz file")
    *_, count, _, _, start, _ = _END.unpack_from(view, tail)
    if view[tail:] != _end(count, start, tail):
        raise CorruptBatchError("no zip directory at the end")
    members: dict[str, memoryview] = {}
    at, data_end = start, 0
    for _ in range(count):
        (magic, _, _, flags, method, _, _, check, size, real_size, name_length, extra_length,
         comment, _, _, _, offset) = _CENTRAL.unpack_from(view, at)  # fmt: skip
        at += _CENTRAL.size
        name = str(view[at : at + name_length], "utf-8")
        at += name_length + extra_length
        if magic != b"PK\1\2" or comment or flags & ~0x800 or name in members:
            raise CorruptBatchError(f"the zip directory's entry of {name[:50]!r} is damaged")
        if not name.endswith(".npy"):
            raise CorruptBatchError(f"{name[:50]!r} is no array")
        if method != 0:
            raise CorruptBatchError(f"{name[:50]!r} is compressed; only stored arrays are read")
        if size != real_size or offset != data_end:
            raise CorruptBatchError(f"{name[:50]!r} overlaps another member, or leaves a hole")
        local = _LOCAL.unpack_from(view, offset)
        head_end = offset + _LOCAL.size + name_length + local[10]
        data_end = head_end + size
        stored_name = view[offset + _LOCAL.size :][:name_length]
        if local[0] != b"PK\3\4" or local[3] != 0 or stored_name != name.encode():
            raise CorruptBatchError(f"the head of {name[:50]!r} is damaged")
        members[name] = view[head_end:data_end]
        if zlib.crc32(members[name]) != check:
            raise CorruptBatchError(f"the checksum of {name[:50]!r} does not fit")
    if at != tail or data_end != start:
        raise CorruptBatchError("bytes that belong to no member")
    return members


def _end(count: int, start: int, end: int) -> bytes:
    """Return the record after a directory of `count` members, from byte `start` to `end`."""
    return _END.pack(b"PK\5\6", 0, 0, count, count, end - start, start, 0)


def _npy_header(array: np.ndarray) -> bytes:
    shape = f"({array.shape[0]},)" if array.ndim == 1 else str(array.shape)
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    length = len(_NPY_MAGIC) + 2 + len(text) + 1
    text += " " * (-length % ALIGNMENT) + "\n"
    return _NPY_MAGIC + struct.pack("<H", len(text)) + text.encode()


def _npy_array(name: str, view: memoryview) -> np.ndarray:
    """Return an npy file's array; a header that is not exactly numpy's is never evaluated."""
    start = len(_NPY_MAGIC) + 2
    start += int.from_bytes(view[len(_NPY_MAGIC) : start], "little")
    if view[: len(_NPY_MAGIC)] != _NPY_MAGIC or start > len(view):
        raise CorruptBatchError(f"{name[:50]!r} is no plain array")
    dtype, shape = _read_header(name, bytes(view[len(_NPY_MAGIC) + 2 : start]))
    return np.frombuffer(view[start:], dtype).reshape(shape)


@functools.lru_cache(maxsize=256)  # a run's files have few different ones
def _read_header(name: str, header: bytes) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape."""
    match = _NPY_HEADER.fullmatch(header)
    if match is None:
        raise CorruptBatchError(f"{name[:50]!r} is no plain array")
    dtype = str(match[1], "ascii")
    if dtype not in DTYPES:
        raise CorruptBatchError(f"{name[:50]!r} is of dtype {dtype}, not one of {DTYPES}")
    shape = tuple(int(number) for number in str(match[3], "ascii").split(",") if number.strip())
    if match[2] == b"True" and len(shape) > 1:
        raise CorruptBatchError(f"{name[:50]!r} is stored column by column")
    return dtype, shape
