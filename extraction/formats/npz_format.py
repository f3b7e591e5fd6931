"""npz: what `numpy.load` reads, float32 activations and the row keys beside them.

Arrays: `activations` `[R, width]`, those of `key_arrays`, and `hook_point`, the name's UTF-8. An
npz file could store bfloat16 only as untyped bytes, so it stores float32 alone.
"""

from collections.abc import Mapping

import numpy as np

from extraction.errors import CorruptBatchError
from extraction.formats.batch import Buffer, ParsedBatch, ReadOnlyFormat, damage_refused
from extraction.formats.key_arrays import KEY_DTYPES, KeyTable
from extraction.formats.npz_arrays import read_npz


class NpzFormat(ReadOnlyFormat):
    """`layer_6_batch_000001.npz`, as version 0.1.0 wrote it; it is only read."""

    extension = "npz"
    sidecar_extension = None
    dtypes = ("float32",)

    def parse(self, data: Buffer, sidecar: Buffer | None = None) -> ParsedBatch:
        """See `Format.parse`."""
        with damage_refused("npz"):
            arrays = read_npz(data)
            check_arrays(arrays, {"activations": "<f4", "hook_point": "|u1"})
            return ParsedBatch(
                hook_point=arrays.pop("hook_point").tobytes().decode(),
                dtype="float32",
                stored=arrays.pop("activations"),
                row_keys=KeyTable(arrays),
            )


def check_arrays(arrays: Mapping[str, np.ndarray], others: Mapping[str, str]) -> None:
    """Check that a file has the row keys and some other arrays, and no more.

    Args:
        arrays: arrays of the file, by name.
        others: dtypes of the other arrays, by name; all but `activations` have one axis.

    Raises:
        CorruptBatchError: an array is missing, unexpected, or of another dtype or shape.
    """
    expected = {**KEY_DTYPES, **others}
    if set(arrays) != set(expected):
        raise CorruptBatchError(f"the arrays are {str(sorted(arrays))[:200]}")
    for name, array in arrays.items():
        axes = 2 if name == "activations" else 1
        if array.dtype.str != expected[name] or array.ndim != axes:
            raise CorruptBatchError(f"{name} is {array.dtype.str} {list(array.shape)}")
