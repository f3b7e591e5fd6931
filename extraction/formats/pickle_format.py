"""The default format: a pickled list of records that numpy alone can load.

    {'layer': 6, 'activations': [{'task_id', 'sample_idx', 'activation': float32 [D],
                                  'timestamp', 'step', 'position', 'token_id'}, ...]}

`layer` is the block's number for `layer_i`, and the hook point's name for any other. The pickle
is protocol 3 and names numpy's functions as numpy 1 did, so numpy 1.24 and 2.x both read it;
activations are always float32, because a pickled bfloat16 needs ml_dtypes to load. `safe_pickle`
reads it.
"""

import pickle
import pickletools
import re

from extraction.formats.batch import (
    Buffer,
    ParsedBatch,
    SerialisedBatch,
    check_dtype,
)
from extraction.formats.float_types import stored_array
from extraction.formats.key_arrays import text_values
from extraction.formats.safe_pickle import parse_pickle
from extraction.rows import RowBlock

PROTOCOL = 3
NUMPY_2_NAME = b"cnumpy._core.multiarray\n"
NUMPY_1_NAME = b"cnumpy.core.multiarray\n"


class PickleFormat:
    """`layer_6_batch_000001.pkl`."""

    extension = "pkl"
    sidecar_extension = None
    dtypes = ("float32",)

    def serialise(
        self, hook_point: str, block: RowBlock, dtype: str = "float32"
    ) -> SerialisedBatch:
        """See `Format.serialise`."""
        check_dtype("pickle", self.dtypes, dtype)
        columns = zip(
            # Plain str: a numpy string would pickle by numpy's private names.
            text_values(block.task_ids, "task_id"),
            block.sample_idx.tolist(),
            stored_array(block.activations[hook_point], dtype),
            text_values(block.timestamps, "timestamp"),
            block.step.tolist(),
            block.position.tolist(),
            block.token_id.tolist(),
            strict=True,
        )
        records = [
            {
                "task_id": task_id,
                "sample_idx": sample_idx,
                "activation": row,
                "timestamp": timestamp,
                "step": step,
                "position": position,
                "token_id": token_id,
            }
            for task_id, sample_idx, row, timestamp, step, position, token_id in columns
        ]
        document = {"layer": layer_field(hook_point), "activations": records}
        return SerialisedBatch(data=_with_numpy_1_names(pickle.dumps(document, protocol=PROTOCOL)))

    def parse(self, data: Buffer, sidecar: Buffer | None = None) -> ParsedBatch:
        """See `Format.parse`; `UnsafePickleError` tells what the pickle tried."""
        return parse_pickle(data)


def layer_field(hook_point: str) -> int | str:
    """What stands under `layer`: 6 for `layer_6`, the name itself for any other hook point."""
    match = re.fullmatch(r"layer_(\d+)", hook_point)
    return int(match[1]) if match else hook_point


def _with_numpy_1_names(data: bytes) -> list[Buffer]:
    """Renames the one reference to numpy 2's private module.

    The pickler memoises it, so it stands once, in the first record; it is found by its opcode, as
    a task id may hold the same bytes.
    """
    for opcode, argument, offset in pickletools.genops(data):
        if opcode.name == "GLOBAL" and argument == "numpy._core.multiarray _reconstruct":
            assert offset is not None
            rest = memoryview(data)[offset + len(NUMPY_2_NAME) :]
            return [data[:offset] + NUMPY_1_NAME, rest]
    return [data]  # no rows, or written under numpy 1
