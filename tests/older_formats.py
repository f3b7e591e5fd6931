"""Writers of the formats that version 0.1.0 wrote and this one only reads.

Importing it lets the tests write runs of them, as if they were written still.
"""

import numpy as np

from extraction.formats import FORMATS
from extraction.formats.batch import SerialisedBatch, check_dtype
from extraction.formats.float_types import stored_array
from extraction.formats.key_arrays import key_arrays
from extraction.formats.npz_arrays import write_npz
from extraction.formats.npz_format import NpzFormat
from extraction.formats.raw_format import RawFormat
from extraction.formats.safetensors_format import array_buffer
from extraction.reading.buffer_pool import TakeMemory, fresh_memory
from extraction.run.rows import RowBlock


class NpzWriter(NpzFormat):
    writable = True

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


class RawWriter(RawFormat):
    writable = is_fast = True

    def serialise(
        self,
        hook_point: str,
        block: RowBlock,
        dtype: str = "float32",
        memory: TakeMemory = fresh_memory,
    ) -> SerialisedBatch:
        """See `Format.serialise`."""
        check_dtype("raw", self.dtypes, dtype)
        activations = stored_array(block.activations[hook_point], dtype)
        arrays = {
            "shape": np.array(activations.shape, "<i8"),
            "dtype": text_array(dtype),
            "hook_point": text_array(hook_point),
            **key_arrays(block),
        }
        return SerialisedBatch(
            data=[array_buffer(activations)], sidecar=b"".join(write_npz(arrays))
        )


def text_array(text: str) -> np.ndarray:
    """A text's UTF-8 as `uint8`."""
    return np.frombuffer(text.encode(), np.uint8)


FORMATS["npz"], FORMATS["raw"] = NpzWriter(), RawWriter()
