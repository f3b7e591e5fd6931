"""npz: what `numpy.load` reads, float32 activations and the row keys beside them.

Arrays: `activations` `[R, width]`, those of `key_arrays`, and `hook_point`, the name's UTF-8. An
npz holds bfloat16 only as bytes of no type, so there is none.
"""

from collections.abc import Mapping

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
from extraction.formats.npz_arrays import read_npz, write_npz
from extraction.reading.buffer_pool import TakeMemory, fresh_memory
from extraction.run.rows import RowBlock


class NpzFormat:
    """`layer_6_batch_000001.npz`."""

    extension = "npz"
    sidecar_extension = None
    dtypes = ("float32",)

    def serialise(
        self,
        hook_point: str,
        block: RowBlock,
        dtype: str = "float32",
        memory: TakeMemory = fresh_memory,
    ) -> SerialisedBatch:
        """See `Format.serialise`."""
        check_dtype("npz", self.dtypes, dtype)
        activations = stored_array(block.activations[hook_point], dtype)
        arrays = {"activations": activations, "hook_point": text_array(hook_point)}
        return SerialisedBatch(data=write_npz(arrays | key_arrays(block)))

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


def text_array(text: str) -> np.ndarray:
    """A text's UTF-8 as `uint8`."""
    return np.frombuffer(text.encode(), np.uint8)


def check_arrays(arrays: Mapping[str, np.ndarray], others: Mapping[str, str]) -> None:
    """Makes sure that a file has the row keys and some other arrays, and none beside them.

    Args:
        arrays: of the file.
        others: their dtypes; all but `activations` have one axis.

    Raises:
        CorruptBatchError: it does not.
    """
    expected = {**KEY_DTYPES, **others}
    if set(arrays) != set(expected):
        raise CorruptBatchError(f"the arrays are {str(sorted(arrays))[:200]}")
    for name, array in arrays.items():
        axes = 2 if name == "activations" else 1
        if array.dtype.str != expected[name] or array.ndim != axes:
            raise CorruptBatchError(f"{name} is {array.dtype.str} {list(array.shape)}")
