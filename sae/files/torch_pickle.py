"""Reads the pickle inside a file of `torch.save` without unpickling it: a dictionary of tensors.

Python's unpickler calls any function that a file names. This stack machine knows the opcodes that
torch writes for a state dict and five kinds of names, and builds texts, numbers, tuples,
dictionaries and descriptions of tensors from them; a file cannot make it call anything. What it
builds is in proportion to the length of the pickle: lengths slice the data, nothing is repeated.
"""

from typing import Any, NamedTuple

from extraction.errors import CorruptBatchError, StoreError, UnsafePickleError

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "IntStorage": "int32",
    "LongStorage": "int64",
}
"""torch's names of storages, and the dtypes of their numbers."""

(PROTO, STOP, MARK) = (0x80, 0x2E, 0x28)
(EMPTY_DICT, SETITEM, SETITEMS) = (0x7D, 0x73, 0x75)
(EMPTY_TUPLE, TUPLE) = (0x29, 0x74)
(GLOBAL, REDUCE, BUILD, PERSISTENT) = (0x63, 0x52, 0x62, 0x51)
LONG1 = 0x8A
CONSTANTS = {0x4E: None, 0x88: True, 0x89: False}
INTEGERS = {0x4B: (1, False), 0x4D: (2, False), 0x4A: (4, True)}  # BININT1, BININT2, BININT
TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
TEXT = 0x58  # BINUNICODE
PUTS = {0x71: 1, 0x72: 4}  # BINPUT, LONG_BINPUT: bytes of the memo entry's number
GETS = {0x68: 1, 0x6A: 4}  # BINGET, LONG_BINGET

NAME_LIMIT = 100
DEEPEST_SHAPE = 8


class Storage(NamedTuple):
    """A block of numbers: its dtype, the name of its file in the archive, and how many it has."""

    dtype: str
    key: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage: offset, shape and strides, all in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Name(NamedTuple):
    """A name that the pickle mentions; nothing of that name is imported."""

    module: str
    name: str


ORDERED_DICT = Name("collections", "OrderedDict")
TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
PARAMETER = Name("torch._utils", "_rebuild_parameter")


def read_state_dict(data: bytes) -> dict[str, Tensor]:
    """Return the tensors that the pickle of a state dict names.

    Raises:
        UnsafePickleError: it contains something that no state dict needs.
        CorruptBatchError: it is damaged, or holds something else.
    """
    try:
        found = _read(data)
    except StoreError:
        raise
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise CorruptBatchError(f"the pickle is damaged ({type(error).__name__})") from None
    if type(found) is not dict:
        raise CorruptBatchError(f"the pickle holds a {type(found).__name__}, no state dict")
    for value in found.values():
        if type(value) is not Tensor:
            raise CorruptBatchError("the pickle holds a dictionary of other things than tensors")
    return found


def _read(data: bytes) -> Any:
    if data[:2] != bytes([PROTO, 2]):
        raise CorruptBatchError(f"does not start as torch's pickles do: {data[:2]!r}")
    integer = int.from_bytes
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    at = 2
    while True:
        code = data[at]
        at += 1
        if code in GETS:
            stack.append(memo[integer(data[at : at + GETS[code]], "little")])
            at += GETS[code]
        elif code in PUTS:
            memo[integer(data[at : at + PUTS[code]], "little")] = stack[-1]
            at += PUTS[code]
        elif code in INTEGERS:
            size, signed = INTEGERS[code]
            stack.append(integer(data[at : at + size], "little", signed=signed))
            at += size
        elif code == TEXT:
            length = integer(data[at : at + 4], "little")
            stack.append(str(data[at + 4 : at + 4 + length], "utf-8"))
            at += 4 + length
        elif code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code == MARK:
            marks.append(len(stack))
        elif code in TUPLES:
            items = stack[-TUPLES[code] :]
            del stack[-TUPLES[code] :]
            stack.append(tuple(items))
        elif code == TUPLE:
            stack.append(tuple(since_mark()))
        elif code == EMPTY_TUPLE:
            stack.append(())
        elif code == EMPTY_DICT:
            stack.append({})
        elif code in (SETITEM, SETITEMS):
            items = since_mark() if code == SETITEMS else [stack.pop() for _ in range(2)][::-1]
            # Keys are texts: hashing tuples nested a million times would end the process.
            keys = [_of_type(str, key) for key in items[::2]]
            _of_type(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
        elif code == GLOBAL:
            middle = data.index(b"\n", at, at + NAME_LIMIT)
            end = data.index(b"\n", middle + 1, middle + 1 + NAME_LIMIT)
            stack.append(
                _named(str(data[at:middle], "utf-8"), str(data[middle + 1 : end], "utf-8"))
            )
            at = end + 1
        elif code == REDUCE:
            arguments = _of_type(tuple, stack.pop())
            stack[-1] = _made(stack[-1], arguments)
        elif code == PERSISTENT:
            stack[-1] = _storage(stack[-1])
        elif code == BUILD:  # `_metadata` of a state dict: versions of modules
            stack.pop()
            _of_type(dict, stack[-1])
        elif code == LONG1:
            length = data[at]
            stack.append(integer(data[at + 1 : at + 1 + length], "little", signed=True))
            at += 1 + length
        elif code == STOP:
            break
        else:
            raise UnsafePickleError(
                f"opcode {bytes([code])!r} at byte {at - 1} of the pickle: no state dict has it"
            )
    if len(stack) != 1 or marks or at != len(data):
        raise CorruptBatchError("the pickle does not end as it should")
    return stack[0]


def _of_type(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise CorruptBatchError(f"the pickle has a {type(value).__name__} for a {kind.__name__}")
    return value


def _named(module: str, name: str) -> Name:
    """Return a name if state dicts need it."""
    found = Name(module, name)
    if found in (ORDERED_DICT, TENSOR, PARAMETER) or (module == "torch" and name in STORAGES):
        return found
    raise UnsafePickleError(
        f"the pickle names {module[:NAME_LIMIT]}.{name[:NAME_LIMIT]}, which no state dict needs;"
        " nothing of it was run"
    )


def _made(function: Any, arguments: tuple) -> Any:
    """Return what torch would have made; `function` is one of three names."""
    if function == ORDERED_DICT and type(function) is Name and not arguments:
        return {}
    if function == PARAMETER and type(function) is Name:
        return _of_type(Tensor, arguments[0])
    if function != TENSOR or type(function) is not Name:
        raise UnsafePickleError("the pickle calls what no state dict calls; it was not run")
    storage, offset, shape, strides = arguments[:4]
    _of_type(Storage, storage)
    for sizes in (shape, strides):
        _of_type(tuple, sizes)
        if len(sizes) > DEEPEST_SHAPE or len(sizes) != len(shape):
            raise CorruptBatchError("a tensor's shape and strides do not fit each other")
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
        raise CorruptBatchError("a tensor's offset, shape or stride is no size")
    return Tensor(storage, offset, shape, strides)


def _storage(reference: Any) -> Storage:
    kind, name, key, _location, count = _of_type(tuple, reference)
    if kind != "storage" or type(name) is not Name or name.module != "torch":
        raise CorruptBatchError("the pickle refers to something other than a storage")
    if type(key) is not str or type(count) is not int or count < 0:
        raise CorruptBatchError("a storage's name or length is none")
    return Storage(STORAGES[name.name], key, count)


def state_dict_pickle(tensors: dict[str, Tensor]) -> bytes:
    """Return the pickle of a state dict, as `torch.save` writes it."""
    names = {dtype: name for name, dtype in STORAGES.items()}
    empty = b"ccollections\nOrderedDict\n)R"
    parts = [bytes([PROTO, 2]), empty, b"("]
    for name, tensor in tensors.items():
        dtype, key, count = tensor.storage
        storage = (
            b"(" + _text("storage") + f"ctorch\n{names[dtype]}\n".encode() + _text(key)
            + _text("cpu") + _integer(count) + b"tQ"
        )  # fmt: skip
        sizes = b"".join(
            b"(" + b"".join(map(_integer, numbers)) + b"t"
            for numbers in (tensor.shape, tensor.strides)
        )
        parts += [
            _text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", storage,
            _integer(tensor.offset), sizes, b"\x89", empty, b"tR",
        ]  # fmt: skip
    return b"".join([*parts, b"u."])


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _integer(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + number.to_bytes(4, "little")
    return b"\x8a\x08" + number.to_bytes(8, "little", signed=True)
