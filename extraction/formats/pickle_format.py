"""The default format: a pickled list of records that numpy alone can load.

    {'layer': 6, 'activations': [{'task_id', 'sample_idx', 'activation': float32 [D],
                                  'timestamp', 'step', 'position', 'token_id'}, ...]}

`layer` is the block's number for `layer_i`, and the hook point's name for any other. The pickle
is protocol 3 and names numpy's functions as numpy 1 did, so numpy 1.24 and 2.x both read it;
activations are always float32, because a pickled bfloat16 needs ml_dtypes to load. `pickle_table`
lays it out, `safe_pickle` reads it.
"""

import pickle
import re

from extraction.formats.batch import (
    Buffer,
    ParsedBatch,
    SerialisedBatch,
    check_dtype,
)
from extraction.formats.float_types import stored_array
from extraction.formats.pickle_table import table_pickle
from extraction.formats.safe_pickle import parse_pickle
from extraction.reading.buffer_pool import TakeMemory, fresh_memory
from extraction.run.rows import RowBlock

PROTOCOL = 3


class PickleFormat:
    """`layer_6_batch_000001.pkl`."""

    extension = "pkl"
    sidecar_extension = None
    dtypes = ("float32",)
    writable, is_fast = True, False

    def serialise(
        self,
        hook_point: str,
        block: RowBlock,
        dtype: str = "float32",
        memory: TakeMemory = fresh_memory,
    ) -> SerialisedBatch:
        """See `Format.serialise`."""
        check_dtype("pickle", self.dtypes, dtype)
        layer = layer_field(hook_point)
        if not len(block):
            return SerialisedBatch(
                data=[pickle.dumps({"layer": layer, "activations": []}, PROTOCOL)]
            )
        rows = stored_array(block.activations[hook_point], dtype)
        return SerialisedBatch(data=table_pickle(layer, block, rows, memory))

    def parse(self, data: Buffer, sidecar: Buffer | None = None) -> ParsedBatch:
        """See `Format.parse`; `UnsafePickleError` tells what the pickle tried."""
        return parse_pickle(data)


def layer_field(hook_point: str) -> int | str:
    """Return the value of `layer`: 6 for `layer_6`, the name itself for any other hook point."""
    match = re.fullmatch(r"layer_(\d{1,9})", hook_point)
    return int(match[1]) if match else hook_point
