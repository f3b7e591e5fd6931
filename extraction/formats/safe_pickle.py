"""From the pickle of a batch to its rows, without running anything in it.

Reads the files of `pickle_format`, and those of founding document 004's own code: default protocol,
numpy 1 or 2, records without step, position and token id. `pickle_table` reads our own layout
quickly; `pickle_machine` reads all others.
"""

import contextlib

import numpy as np

from extraction.errors import CorruptBatchError
from extraction.formats.batch import Buffer, ParsedBatch, damage_refused
from extraction.formats.key_arrays import KeyTable, key_arrays
from extraction.formats.pickle_machine import read_pickle
from extraction.formats.pickle_objects import Fields, hook_point_of
from extraction.formats.pickle_table import read_table
from extraction.run.rows import UNKNOWN, RowBlock, text_column

_DTYPES = {"f2": "float16", "f4": "float32", "f8": "float64"}


def parse_pickle(data: Buffer) -> ParsedBatch:
    """Return the rows of a pickled batch.

    Raises:
        UnsafePickleError: the pickle contains something that a batch does not need.
        CorruptBatchError: it is damaged, or not a batch.
    """
    with damage_refused("pickle"):
        with contextlib.suppress(Exception):  # after any error, `pickle_machine` decides
            if (batch := read_table(data)) is not None:
                return batch
        content = bytes(data)
        return _batch(read_pickle(content), len(content))


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
    keys = RowBlock(
        task_ids=text_column(columns[0]),
        sample_idx=np.array(columns[1], np.int64),
        step=step,
        position=position,
        token_id=token_id,
        timestamps=text_column(columns[3]),
        activations={},
    )
    return ParsedBatch(
        hook_point=hook_point_of(layer),
        dtype=_DTYPES[rows.code] if content else "float32",
        stored=stored.reshape(len(payloads), rows.width),
        row_keys=KeyTable(key_arrays(keys)),
    )


def _int32(numbers: list[int]) -> np.ndarray:
    wide = np.array(numbers, np.int64)
    narrow = wide.astype(np.int32)
    if (narrow != wide).any():
        raise CorruptBatchError("a step, position or token id is not an int32")
    return narrow
