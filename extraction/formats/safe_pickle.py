"""From the pickle of a batch to its rows, without running anything in it.

Reads what `pickle_format` writes, and what founding document 004's own code writes: default
protocol, numpy 1 or 2, records without step, position and token id. Read `pickle_machine` first.
"""

import contextlib

import numpy as np

from extraction.errors import CorruptBatchError
from extraction.formats.batch import Buffer, ParsedBatch, damage_refused
from extraction.formats.pickle_machine import read_pickle
from extraction.formats.pickle_objects import Fields
from extraction.rows import UNKNOWN, RowBlock, text_column

_DTYPES = {"f2": "float16", "f4": "float32", "f8": "float64"}


def parse_pickle(data: Buffer) -> ParsedBatch:
    """The rows of a pickled batch.

    Raises:
        UnsafePickleError: it asks for more than a batch needs.
        CorruptBatchError: it is no batch, or a damaged one.
    """
    with damage_refused("pickle"):
        content = bytes(data)
        with contextlib.suppress(Exception):  # whatever it was, the machine alone is to judge
            return _batch(read_pickle(content), len(content))
        return _batch(read_pickle(content, in_runs=False), len(content))


def _batch(document: Fields, file_size: int) -> ParsedBatch:
    layer, rows = document.values
    columns = rows.columns or [[], [], [], []]
    payloads = columns[2]
    # Records may share their bytes in the file, but not in memory.
    if sum(map(len, payloads)) > file_size:
        raise CorruptBatchError("the activations are larger than the file")
    content = bytearray().join(payloads)
    stored = np.frombuffer(content, f"<{rows.code}") if content else np.zeros(0, np.float32)
    unknown = [[UNKNOWN] * len(payloads)] * 3
    step, position, token_id = (_int32(column) for column in columns[4:] or unknown)
    if isinstance(layer, int) and layer < 0:
        raise CorruptBatchError(f"layer {layer}")
    return ParsedBatch(
        hook_point=layer if isinstance(layer, str) else f"layer_{layer}",
        dtype=_DTYPES[rows.code] if content else "float32",
        stored=stored.reshape(len(payloads), rows.width),
        keys=RowBlock(
            task_ids=text_column(columns[0]),
            sample_idx=np.array(columns[1], np.int64),
            step=step,
            position=position,
            token_id=token_id,
            timestamps=text_column(columns[3]),
            activations={},
        ),
    )


def _int32(numbers: list[int]) -> np.ndarray:
    wide = np.array(numbers, np.int64)
    narrow = wide.astype(np.int32)
    if (narrow != wide).any():
        raise CorruptBatchError("a step, position or token id beyond 32 bits")
    return narrow
