"""raw: a memory-mappable `.bin` with only the activations' bytes, and a second file with the keys.

    numpy.memmap("layer_6_batch_000001.bin", "<f4", "r").reshape(-1, width)

The `.keys.npz` holds `shape` (rows, width), `dtype` (`float32`, or `bfloat16`, which maps as
`<u2`), `hook_point`, the latter two as UTF-8, and the arrays of `key_arrays`.
"""

import numpy as np

from extraction.errors import CorruptBatchError
from extraction.formats.batch import Buffer, ParsedBatch, ReadOnlyFormat, damage_refused
from extraction.formats.key_arrays import KeyTable
from extraction.formats.npz_arrays import read_npz
from extraction.formats.npz_format import check_arrays

_NUMPY = {"float32": "<f4", "bfloat16": "<u2"}


class RawFormat(ReadOnlyFormat):
    """`layer_6_batch_000001.bin` and `.keys.npz`, as version 0.1.0 wrote them; only read."""

    extension = "bin"
    sidecar_extension = "keys.npz"
    dtypes = ("float32", "bfloat16")

    def parse(self, data: Buffer, sidecar: Buffer | None = None) -> ParsedBatch:
        """See `Format.parse`."""
        if sidecar is None:
            raise CorruptBatchError(f"the file with .{self.sidecar_extension} beside it is missing")
        with damage_refused("raw"):
            arrays = read_npz(sidecar)
            check_arrays(arrays, {"shape": "<i8", "dtype": "|u1", "hook_point": "|u1"})
            rows, width = (int(size) for size in arrays.pop("shape"))
            dtype = arrays.pop("dtype").tobytes().decode()
            if dtype not in _NUMPY:
                raise CorruptBatchError(f"activations are of dtype {dtype[:50]}")
            flat = np.frombuffer(data, np.uint8)
            if rows * width * np.dtype(_NUMPY[dtype]).itemsize != len(flat):
                raise CorruptBatchError(
                    f"{len(flat)} bytes are no {rows} rows of {width} values of {dtype}"
                )
            return ParsedBatch(
                hook_point=arrays.pop("hook_point").tobytes().decode(),
                dtype=dtype,
                stored=flat.view(_NUMPY[dtype]).reshape(rows, width),
                row_keys=KeyTable(arrays),
            )
