"""The layout of our own pickles: a table, which numpy writes and reads in one operation.

Any unpickler can read such a file. It first fills the unpickler's memo with the keys, with the
parts that all its arrays share, and with every distinct text. After that, each record consists of
the same opcodes at the same offsets, so all records have the same size. Their numbers, the memo
indices of their texts and their activations are the fields of a structured array.
"""

import functools
import itertools
import struct
from collections.abc import Sequence

import numpy as np

from extraction.formats.batch import Buffer, ParsedBatch
from extraction.formats.key_arrays import NUMBERS, TEXTS, KeyTable
from extraction.formats.pickle_objects import OPTIONAL, REQUIRED, hook_point_of
from extraction.reading.buffer_pool import TakeMemory
from extraction.run.rows import RowBlock

START = b"\x80\x03"  # protocol 3
END = b"u."  # of the document
KEYS = (*REQUIRED, *OPTIONAL)
ARRAY_PARTS = {
    "function": b"cnumpy.core.multiarray\n_reconstruct\n",  # numpy 1's name; numpy 2 knows it
    "arguments": b"cnumpy\nndarray\nK\x00\x85C\x01b\x87",  # (ndarray, (0,), b"b")
    "dtype": b"cnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R"  # dtype("f4", False, True), its state
    b"(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
    "shape": b"J%b\x85",
}
PLACES = {name: place for place, name in enumerate((*KEYS, *ARRAY_PARTS))}
"""Memo indices of the parts that all records fetch."""
FIRST_TEXT = len(PLACES)
UNICODE, NUMBER, POP = b"X", b"J", b"0"  # BINUNICODE, BININT
REMEMBER = struct.Struct("<cIc")  # LONG_BINPUT, the place in the memo, POP: off the stack again


def table_pickle(
    layer: int | str, block: RowBlock, rows: np.ndarray, memory: TakeMemory
) -> list[Buffer]:
    """Return the file's content.

    Args:
        layer: value of the key `layer`.
        block: keys of the rows, at least one.
        rows: `[R, width]` float32 activations.
        memory: allocates the content.

    Raises:
        StoreError: a text holds half of a surrogate pair.
    """
    columns = {"task_id": block.distinct_task_ids, "timestamp": block.distinct_timestamps}
    texts = list(dict.fromkeys(itertools.chain(*(column.texts for column in columns.values()))))
    places = {text: place for place, text in enumerate(texts, FIRST_TEXT)}
    wide = bool((block.sample_idx != block.sample_idx.astype(np.int32)).any())
    kind, opcodes = _record(rows.shape[1], wide)
    table = memory(len(block) * kind.itemsize).view(kind)
    for name, constant in opcodes.items():
        table[name] = constant
    for name, column in columns.items():
        table[name] = np.array([places[text] for text in column.texts])[column.index]
    table["activation"] = rows
    for name in ("sample_idx", *OPTIONAL):
        table[name] = getattr(block, name)
    return [_head(layer, rows.shape[1], texts), table.view(np.uint8).data, END]


def read_table(data: Buffer) -> ParsedBatch | None:
    """Return the rows of a file that `table_pickle` wrote.

    Returns:
        None if the file is laid out otherwise and reading it raised no error.

    Raises:
        Exception: the file is laid out otherwise.
    """
    layer, width, texts, start = _read_head(memoryview(data))
    # Building it again compares every opcode.
    if bytes(data[:start]) != _head(layer, width, texts) or bytes(data[-len(END) :]) != END:
        return None
    for wide in (False, True):
        kind, opcodes = _record(width, wide)
        count, rest = divmod(len(data) - len(END) - start, kind.itemsize)
        if count > 0 and not rest:
            table = np.frombuffer(data, kind, count, start)
            if all((table[name] == constant).all() for name, constant in opcodes.items()):
                return _batch(layer, table, texts)
    return None


def _batch(layer: int | str, table: np.ndarray, texts: Sequence[str]) -> ParsedBatch:
    encoded = [text.encode() for text in texts]
    keys = {name: table[name].astype(dtype) for name, dtype in NUMBERS.items()}
    for name in TEXTS:  # both index the same texts
        keys[f"{name}.utf8"] = np.frombuffer(b"".join(encoded), np.uint8)
        keys[f"{name}.offsets"] = np.cumsum([0, *map(len, encoded)])
        keys[f"{name}.index"] = table[name].astype(np.int64) - FIRST_TEXT
    return ParsedBatch(
        hook_point=hook_point_of(layer),
        dtype="float32",
        stored=table["activation"].astype(np.float32),
        row_keys=KeyTable(keys),
    )


@functools.lru_cache(maxsize=64)
def _record(width: int, wide: bool) -> tuple[np.dtype, dict[str, np.ndarray]]:
    """Return the dtype of a record, and the values of its fields that all records share.

    Args:
        width: width of the activation.
        wide: some sample index takes more than 32 bits.
    """
    number = (NUMBER, "<i4")
    place = (b"j", "<u4")  # LONG_BINGET
    array = b"".join(map(_get, ("activation", "function", "arguments")))
    array += b"R(K\x01" + _get("shape") + _get("dtype") + b"\x89B" + struct.pack("<I", 4 * width)
    parts = [  # opcodes, and the field after them
        (b"}(" + _get("task_id"), "task_id", *place),
        (_get("sample_idx"), "sample_idx", *((b"\x8a\x08", "<i8") if wide else number)),  # LONG1
        (array, "activation", b"", ("<f4", (width,))),
        (b"tb" + _get("timestamp"), "timestamp", *place),
        *((_get(name), name, *number) for name in OPTIONAL),
    ]
    fields, opcodes = [], {}
    for before, name, opcode, kind in parts:
        fields += [(f"before {name}", "u1", len(before + opcode)), (name, kind)]
        opcodes[f"before {name}"] = np.frombuffer(before + opcode, np.uint8)
    opcodes["end"] = np.frombuffer(b"ua", np.uint8)  # SETITEMS of the record, APPEND to the list
    return np.dtype([*fields, ("end", "u1", 2)]), opcodes


def _get(name: str) -> bytes:
    return b"h" + bytes([PLACES[name]])  # BINGET


def _text(text: str) -> bytes:
    encoded = text.encode()
    return UNICODE + struct.pack("<I", len(encoded)) + encoded


def _common(width: int) -> bytes:
    """Return the file's first part, which depends only on the width."""
    parts = [*map(_text, KEYS), *ARRAY_PARTS.values()]
    parts[-1] %= struct.pack("<i", width)
    kept = [part + REMEMBER.pack(b"r", place, POP) for place, part in enumerate(parts)]
    return START + b"".join(kept)


_WIDTH_AT = len(_common(0)) - REMEMBER.size - len(ARRAY_PARTS["shape"] % bytes(4)) + len(NUMBER)
_BEFORE_LAYER = b"}(" + _text("layer")
_BEHIND_LAYER = _text("activations") + b"]"


def _head(layer: int | str, width: int, texts: Sequence[str]) -> bytes:
    """Return the part of the file before the records."""
    return b"".join(
        [
            _common(width),
            *(
                _text(text) + REMEMBER.pack(b"r", place, POP)
                for place, text in enumerate(texts, FIRST_TEXT)
            ),
            _BEFORE_LAYER,
            _text(layer) if isinstance(layer, str) else NUMBER + struct.pack("<i", layer),
            _BEHIND_LAYER,
        ]
    )


def _read_head(view: memoryview) -> tuple[int | str, int, list[str], int]:
    """Return layer, width, texts and the offset of the records, if the file starts with a head."""

    def number(at: int) -> int:
        return struct.unpack_from("<i", view, at)[0]

    def text(at: int) -> tuple[str, int]:
        start = at + len(UNICODE) + 4
        end = start + number(at + len(UNICODE))
        return str(view[start:end], "utf-8"), end

    at, texts = len(_common(0)), []
    while view[at : at + 1] == UNICODE:
        found, at = text(at)
        texts.append(found)
        at += REMEMBER.size
    at += len(_BEFORE_LAYER)
    if view[at : at + 1] == UNICODE:
        layer, at = text(at)
    else:
        layer, at = number(at + len(NUMBER)), at + len(NUMBER) + 4
    return layer, number(_WIDTH_AT), texts, at + len(_BEHIND_LAYER)
