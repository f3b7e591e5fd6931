"""Reads the pickle of a batch without unpickling it: a stack machine that can only build rows.

Python's unpickler calls any function that a file names. This one knows only the opcodes that the
pickle of a batch consists of (protocols 2 to 5) and five names, each of which stands for a step of
its own; a file cannot make it call anything. Every object that stays alive is a text, part of a row
or of a bounded stack or memo, so memory is proportional to the size of the file. Lengths are used
to slice the data: one that is too long reaches the end of the file and allocates nothing.
"""

from typing import Any

from extraction.errors import CorruptBatchError, UnsafePickleError
from extraction.formats.pickle_objects import (
    Array,
    Dtype,
    Fields,
    Rows,
    call,
    named,
)

PROTOCOLS = (2, 3, 4, 5)
STACK_LIMIT = 2048  # picklers append a list's items 1000 at a time
MARKS_LIMIT = 64
TUPLE_LIMIT = 16  # a dtype's state has 8 or 9 items; each is looked at
NAME_LIMIT = 100
MEMO_LIMIT = 64  # after so many entries the memo may keep only texts alive

(PROTO, FRAME, STOP, MARK) = (0x80, 0x95, 0x2E, 0x28)
(EMPTY_DICT, SETITEMS, EMPTY_LIST) = (0x7D, 0x75, 0x5D)
(BININT, BININT1, BININT2, LONG1) = (0x4A, 0x4B, 0x4D, 0x8A)
(POP, NONE, NEWTRUE, NEWFALSE) = (0x30, 0x4E, 0x88, 0x89)
(TUPLE, TUPLE1) = (0x74, 0x85)
(GLOBAL, STACK_GLOBAL, REDUCE, BUILD) = (0x63, 0x93, 0x52, 0x62)
(MEMOIZE, BINGET, LONG_BINGET) = (0x94, 0x68, 0x6A)
PUTS = {0x71: 1, 0x72: 4}  # BINPUT, LONG_BINPUT: bytes of the memo entry's number
TEXTS = {0x8C: 1, 0x58: 4}  # SHORT_BINUNICODE, BINUNICODE: bytes of the length
CONTENTS = {0x43: 1, 0x42: 4, 0x96: 8}  # SHORT_BINBYTES, BINBYTES, BYTEARRAY8: the same
TUPLES = {0x86: 2, 0x87: 3}  # TUPLE2, TUPLE3: items


def read_pickle(data: bytes) -> Fields:
    """Return the document that the pickle of a batch holds.

    Args:
        data: the file's content.

    Raises:
        UnsafePickleError: the pickle contains something that a batch does not need.
        CorruptBatchError: it is damaged, as the checks here notice.
        Exception: it is damaged otherwise (`IndexError` where it ends too early).
    """
    if len(data) < 2 or data[0] != PROTO or data[1] not in PROTOCOLS:
        raise CorruptBatchError(f"does not start as a pickle of protocols 2 to 5: {data[:2]!r}")
    view = memoryview(data)
    integer = int.from_bytes
    stack: list[Any] = []
    memo: list[Any] = []
    marks: list[int] = []
    converted = 0
    push, pop, remember = stack.append, stack.pop, memo.append

    at = 2
    while True:
        if len(stack) > STACK_LIMIT:
            raise CorruptBatchError(f"more open objects than a pickler leaves at byte {at}")
        code = data[at]
        at += 1
        # The most frequent opcodes come first.
        if code == BINGET:
            push(memo[data[at]])
            at += 1
        elif code in PUTS:
            size = PUTS[code]
            # Picklers number memo entries in order, so a list is enough.
            if integer(data[at : at + size], "little") != len(memo):
                raise CorruptBatchError(f"memo entry out of order at byte {at}")
            remember(stack[-1])
            at += size
        elif code == MEMOIZE:
            remember(stack[-1])
        elif code == BININT1:
            push(data[at])
            at += 1
        elif code == TUPLE1:
            if type(stack[-1]) is not int:
                raise CorruptBatchError(f"a shape that is no number at byte {at}")
            stack[-1] = (stack[-1],)
        elif code == BININT2:
            push(integer(data[at : at + 2], "little"))
            at += 2
        elif code == MARK:
            if len(marks) == MARKS_LIMIT:
                raise CorruptBatchError(f"more open marks than a pickler leaves at byte {at}")
            marks.append(len(stack))
        elif code in TEXTS:
            size = TEXTS[code]
            length = integer(data[at : at + size], "little")
            at += size
            push(str(data[at : at + length], "utf-8"))
            at += length
        elif code == EMPTY_DICT:
            push(Fields())
        elif code in TUPLES or code == TUPLE:
            if code == TUPLE:
                items = _since_mark(stack, marks)
            else:
                items = stack[-TUPLES[code] :]
                del stack[-TUPLES[code] :]
            if len(items) > TUPLE_LIMIT:
                raise CorruptBatchError(f"a tuple of {len(items)} items at byte {at}")
            # Shapes are the only tuples within others.
            if any(type(item) is tuple and set(map(type, item)) - {int} for item in items):
                raise CorruptBatchError(f"nested too deeply at byte {at}")
            push(tuple(items))
        elif code == REDUCE:
            arguments = pop()
            made = stack[-1] = call(stack[-1], arguments)
            if type(made) is bytes:  # from a text, which may be in use elsewhere
                converted += len(made)
                if converted > len(data):
                    raise CorruptBatchError("bytes from texts outgrow the file")
        elif code == NEWFALSE:
            push(False)
        elif code in CONTENTS:
            size = CONTENTS[code]
            length = integer(data[at : at + size], "little")
            at += size
            # The b"b" that numpy gives `_reconstruct` is compared as bytes, all else stays a view.
            push(view[at : at + length] if length > 1 else data[at : at + length])
            at += length
        elif code == BUILD:
            state = pop()
            if type(stack[-1]) is not Array and type(stack[-1]) is not Dtype:
                raise UnsafePickleError(f"sets the state of what has none at byte {at}")
            stack[-1].fill(state)
        elif code == SETITEMS:
            items = _since_mark(stack, marks)
            if type(stack[-1]) is not Fields:
                raise CorruptBatchError(f"puts items into no dictionary at byte {at}")
            stack[-1].fill(items)
        elif code == BININT:
            push(integer(data[at : at + 4], "little", signed=True))
            at += 4
        elif code == LONG_BINGET:
            push(memo[integer(data[at : at + 4], "little")])
            at += 4
        elif code == FRAME:
            if integer(data[at : at + 8], "little") > len(data) - at:
                raise CorruptBatchError(f"a frame beyond the end at byte {at}")
            at += 8
        elif code in (0x61, 0x65):  # APPEND, APPENDS
            items = [pop()] if code == 0x61 else _since_mark(stack, marks)
            if type(stack[-1]) is not Rows:
                raise CorruptBatchError(f"appends to no list at byte {at}")
            stack[-1].extend(items)
        elif code == POP:
            # The memo still holds the object; our own files begin with such texts.
            if marks or (type(pop()) is not str and len(memo) > MEMO_LIMIT):
                raise CorruptBatchError(f"drops what no batch drops at byte {at}")
        elif code == NONE:
            push(None)
        elif code == NEWTRUE:
            push(True)
        elif code == LONG1:
            length = data[at]
            at += 1
            if length > 8:
                raise CorruptBatchError(f"a number of {length} bytes at byte {at}")
            push(integer(data[at : at + length], "little", signed=True))
            at += length
        elif code == EMPTY_LIST:
            push(Rows())
        elif code == GLOBAL:
            middle = data.index(b"\n", at, at + NAME_LIMIT)
            end = data.index(b"\n", middle + 1, middle + 1 + NAME_LIMIT)
            push(named(str(data[at:middle], "utf-8"), str(data[middle + 1 : end], "utf-8")))
            at = end + 1
        elif code == STACK_GLOBAL:
            name = pop()
            stack[-1] = named(stack[-1], name)
        elif code == STOP:
            break
        else:
            raise UnsafePickleError(
                f"opcode {data[at - 1 : at]!r} at byte {at - 1}: no batch has it"
            )
    if at != len(data):
        raise CorruptBatchError(f"{len(data) - at} bytes after the end of the pickle")
    if len(stack) != 1 or marks or type(stack[0]) is not Fields:
        raise CorruptBatchError("the pickle does not hold one dictionary")
    return stack[0]


def _since_mark(stack: list[Any], marks: list[int]) -> list[Any]:
    mark = marks.pop()
    items = stack[mark:]
    del stack[mark:]
    return items
