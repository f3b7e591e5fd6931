"""Speed: reads a stretch of records that look alike by one regular expression.

After the first record of a pickle, each next one consists of the same opcodes: the keys, names
and the dtype are fetched from the memo, and only texts, numbers and the activation's bytes differ.
An expression for one such record is made from the memo, so what it matches means what the machine
would read, in a fifth of the time. Where it does not match, the machine reads on.

What a record leaves in the memo besides its texts is forgotten. No pickler of plain records
refers to it; a file that does fails here and is read again without runs.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from extraction.formats.pickle_objects import (
    FROM_BUFFER,
    ITEM_SIZES,
    NDARRAY,
    OPTIONAL,
    RECONSTRUCT,
    REQUIRED,
    Array,
    Dtype,
    Fields,
    Name,
    Run,
)

FORGOTTEN = object()
BYTES = 6  # the group that marks where an activation's bytes start
_NUMBER = rb"(K.|M..|J.{4})"
_FRAME = rb"(?:\x95.{8})?"  # protocols 4 and 5 cut the opcodes into frames, behind an array
_LONG_TEXT = rb"X(.)\x00\x00\x00(.{0,255}?)"
_STYLES = {  # a put, and a text with its length and put: protocol 3 with few and many entries, 4
    "few": (rb"q.", _LONG_TEXT + rb"q(.)"),
    "many": (rb"r.{4}", _LONG_TEXT + rb"r(.{4})"),
    "implied": (rb"\x94", rb"\x8c(.)(.{0,255}?)()\x94"),
}


class RunReader:
    """Reads the runs of one pickle.

    Args:
        data: the file's content.
    """

    def __init__(self, data: bytes):
        self._data = data
        self._possible = data[1] >= 3  # protocol 2 writes bytes as text
        self._style = ""
        self._pattern: re.Pattern[bytes] | None = None
        self._code, self._width, self._array_puts = "", 0, 0

    def read(self, at: int, stack: list[Any], memo: list[Any]) -> int:
        """Reads the records that follow the one on top of the stack and look like it.

        Args:
            at: where the next record starts, or anything else.
            stack: gets one `Run`, if there are such records.
            memo: gets what they leave there.

        Returns:
            Where they end; `at` if there are none.
        """
        if not self._possible or stack[-1].names[:4] != REQUIRED:
            return at
        style = "implied" if self._data[1] >= 4 else "many" if len(memo) >= 256 else "few"
        try:
            if style != self._style:
                self._pattern = self._learn(stack[-1], memo, *_STYLES[style])
                self._style = style
            assert self._pattern is not None
            scanner = self._pattern.scanner(self._data, at)  # pyright: ignore
            matches = list(iter(scanner.match, None))
            if not matches:
                return at
            found = [match.groups() for match in matches]
            columns, left = _columns(found, memo, self._array_puts)
        except (LookupError, OverflowError, UnicodeDecodeError):  # the machine shall judge
            self._possible = False
            return at
        view, size = memoryview(self._data), self._width * ITEM_SIZES[self._code]
        starts = [match.start(BYTES) for match in matches]
        columns[2] = [view[start : start + size] for start in starts]
        stack.append(Run(self._code, self._width, columns))
        memo += left
        return matches[-1].end()

    def _learn(
        self, record: Fields, memo: list[Any], put: bytes, new_text: bytes
    ) -> re.Pattern[bytes]:
        """The expression of records like this one.

        Its groups: the task id as length, text, memo entry, or as what fetches it; the sample
        index; nothing, before the activation's bytes; the timestamp as the task id; the other
        numbers.

        Raises:
            LookupError: the memo lacks a part.
        """
        array: Array = record.values[2]
        places: dict[Any, int] = {}
        for place, thing in enumerate(memo[:256]):
            if type(thing) in (str, Name):
                places.setdefault(thing, place)
            elif type(thing) is bytes and thing == b"b":
                places[bytes] = place
            elif type(thing) is Dtype and thing.complete and thing.code == array.code:
                places[Dtype] = place

        def get(thing: Any) -> bytes:
            return re.escape(b"h" + bytes([places[thing]]))

        def text(behind: bytes) -> bytes:
            return rb"(?>%b(?=%b)|(h.|j.{4}))" % (new_text, behind)

        self._code, self._width = array.code, array.width
        size = array.width * ITEM_SIZES[array.code]
        content = rb"%b().{%d}%b" % (re.escape(_bytes_opcode(size, self._data[1])), size, put)
        shape = rb"%b\x85%b" % (re.escape(_number_opcode(array.width)), put)
        if FROM_BUFFER in places:
            array_parts = [
                get(FROM_BUFFER) + rb"\(" + content + get(Dtype) + shape + get("C"),
                rb"t%bR%b" % (put, put),
            ]
            self._array_puts = 4  # bytes, shape, arguments, array
        else:
            array_parts = [
                get(RECONSTRUCT) + get(NDARRAY) + rb"K\x00\x85" + put + get(bytes),
                rb"\x87%bR%b\(K\x01" % (put, put) + shape + get(Dtype) + rb"\x89",
                content + rb"t%bb" % put,
            ]
            self._array_puts = 6  # (0,), arguments, array, shape, bytes, state
        numbers = [get(name) + _NUMBER for name in OPTIONAL] if len(record.names) == 7 else []
        parts = [
            rb"%b}%b\(" % (_FRAME, put),
            get("task_id") + text(get("sample_idx")),
            get("sample_idx") + _NUMBER,
            get("activation"),
            *array_parts,
            _FRAME,
            get("timestamp") + text(get(OPTIONAL[0]) if numbers else b"u"),
            *numbers,
            b"u",
        ]
        return re.compile(b"".join(parts), re.DOTALL)


def _columns(
    records: Sequence[tuple[Any, ...]], memo: list[Any], array_puts: int
) -> tuple[list[list[Any]], list[Any]]:
    """The columns of matched records, except for the activations, and what they leave behind.

    Raises:
        LookupError: the expression took something else for a text.
        OverflowError: the same.
        UnicodeDecodeError: a text is none.
    """
    task_lengths, tasks, task_entries, task_gets, *more = zip(*records, strict=True)
    sample_idx, _, time_lengths, times, time_entries, time_gets, *others = more
    task_places: list[int] = []  # in the memo, of texts that are not fetched
    time_places: list[int] = []
    fetched_at: dict[bytes, int] = {}  # for the first time
    place = len(memo)
    for task_get, time_get in zip(task_gets, time_gets, strict=True):
        place += 1  # the dictionary
        if task_get is None:
            task_places.append(place)
            place += 1
        else:
            fetched_at.setdefault(task_get, place)
        place += array_puts
        if time_get is None:
            time_places.append(place)
            place += 1
        else:
            fetched_at.setdefault(time_get, place)
    left: list[Any] = [FORGOTTEN] * (place - len(memo))
    new_tasks = _new_texts(task_lengths, tasks, task_entries, task_places)
    new_times = _new_texts(time_lengths, times, time_entries, time_places)
    for places, texts in ((task_places, new_tasks), (time_places, new_times)):
        for place, text in zip(places, texts, strict=True):
            left[place - len(memo)] = text
    fetched = {}
    for get, before in fetched_at.items():
        place = int.from_bytes(get[1:], "little")
        if place >= before:
            raise LookupError
        fetched[get] = memo[place] if place < len(memo) else left[place - len(memo)]
        if type(fetched[get]) is not str:
            raise LookupError
    rest_tasks, rest_times = iter(new_tasks), iter(new_times)
    sample_idx, *others = _numbers([sample_idx, *others])
    columns = [
        [next(rest_tasks) if get is None else fetched[get] for get in task_gets],
        sample_idx,
        [],
        [next(rest_times) if get is None else fetched[get] for get in time_gets],
        *others,
    ]
    return columns, left


def _new_texts(
    lengths: Sequence[bytes | None],
    texts: Sequence[bytes | None],
    entries: Sequence[bytes | None],
    places: Sequence[int],
) -> list[str]:
    """The texts that are not fetched.

    Raises:
        LookupError: they do not have the lengths or the places in the memo that the file tells.
        OverflowError: the same.
        UnicodeDecodeError: one is no text.
    """
    new = [text for text in texts if text is not None]
    if bytes(map(len, new)) != b"".join([length for length in lengths if length is not None]):
        raise LookupError
    told = b"".join([entry for entry in entries if entry])  # protocols 4 and 5 do not tell
    size = len(told) // max(1, len(places))
    if told and told != b"".join([place.to_bytes(size, "little") for place in places]):
        raise LookupError
    return [str(text, "utf-8") for text in new]


def _numbers(columns: Sequence[Sequence[bytes]]) -> list[list[int]]:
    """What BININT1, BININT2 and BININT hold; the last alone has a sign, and all four bytes."""
    opcodes = [*itertools.chain(*columns)]
    lengths = np.fromiter(map(len, opcodes), np.intp, len(opcodes)) - 1
    starts = np.cumsum(lengths + 1) - lengths
    content = np.frombuffer(b"".join(opcodes) + bytes(4), np.uint8)
    four_bytes = content[starts[:, None] + np.arange(4)]
    four_bytes[lengths[:, None] <= np.arange(4)] = 0
    return four_bytes.view("<i4").reshape(len(columns), -1).tolist()


def _number_opcode(number: int) -> bytes:
    """A positive number as a pickler writes it."""
    for code, size in ((b"K", 1), (b"M", 2), (b"J", 4)):
        if number < 1 << 8 * size - (code == b"J"):
            return code + number.to_bytes(size, "little")
    raise LookupError


def _bytes_opcode(size: int, protocol: int) -> bytes:
    """What a pickler writes before the bytes of an array."""
    if protocol == 5:
        return b"\x96" + size.to_bytes(8, "little")
    return b"C" + bytes([size]) if size < 256 else b"B" + size.to_bytes(4, "little")
