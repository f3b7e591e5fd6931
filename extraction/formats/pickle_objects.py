"""What the pickle of a batch may contain: names, dtypes, arrays, records, the list of rows.

These classes stand in for numpy's objects. They check each value of the file as it is read, so that
only parts of rows stay in memory.
"""

import dataclasses
from typing import Any

from extraction.errors import CorruptBatchError, UnsafePickleError

REQUIRED = ("task_id", "sample_idx", "activation", "timestamp")
OPTIONAL = ("step", "position", "token_id")
DOCUMENT = ("layer", "activations")
KINDS = (REQUIRED + OPTIONAL, REQUIRED, DOCUMENT)


@dataclasses.dataclass(frozen=True)
class Name:
    """A name that a file may use: a plain value, never a function."""

    text: str


RECONSTRUCT, NDARRAY, DTYPE = Name("_reconstruct"), Name("ndarray"), Name("dtype")
FROM_BUFFER, ENCODE = Name("_frombuffer"), Name("encode")

GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): FROM_BUFFER,
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): DTYPE,
    ("_codecs", "encode"): ENCODE,
}
"""All that a file may name, under the names of numpy 1 and 2."""

ITEM_SIZES = {"f2": 2, "f4": 4, "f8": 8}
_DTYPE_STATE = (3, "<", None, None, None, -1, -1, 0)  # little-endian, and no more
_EMPTY_ARRAY = (NDARRAY, (0,), b"b")  # what numpy makes before it sets an array's state


class Dtype:
    """A float dtype, `code` f2, f4 or f8; `complete` when it is known to be little-endian."""

    __slots__ = ("code", "complete")

    def __init__(self, code: str):
        self.code = code
        self.complete = False

    def fill(self, state: Any) -> None:
        """Set the state that `numpy.dtype.__setstate__` would take."""
        if self.complete or type(state) is not tuple or state != _DTYPE_STATE:
            raise CorruptBatchError("activations are not plain little-endian floats")
        self.complete = True


class Array:
    """A one-dimensional float array; `payload` holds its bytes in the file."""

    __slots__ = ("code", "payload", "width")

    def __init__(self):
        self.payload: bytes | memoryview | None = None
        self.width = 0
        self.code = ""

    def fill(self, state: Any) -> None:
        """Set the state that `numpy.ndarray.__setstate__` would take."""
        if self.payload is not None or type(state) is not tuple or len(state) != 5:
            raise CorruptBatchError("an array's state is not numpy's")
        version, shape, dtype, fortran_order, payload = state
        if version != 1 or fortran_order is not False:
            raise CorruptBatchError("an array's state is not numpy's")
        self.set(payload, dtype, shape)

    def set(self, payload: Any, dtype: Any, shape: Any) -> None:
        """Set the content, if shape, dtype and size agree."""
        if type(dtype) is not Dtype or not dtype.complete:
            raise CorruptBatchError("activations are not plain little-endian floats")
        if type(shape) is not tuple or len(shape) != 1 or type(shape[0]) is not int:
            raise CorruptBatchError("an activation does not have the shape [width]")
        if type(payload) is not bytes and type(payload) is not memoryview:
            raise CorruptBatchError("an activation's content is not bytes")
        if shape[0] < 1 or len(payload) != shape[0] * ITEM_SIZES[dtype.code]:
            raise CorruptBatchError(
                f"{len(payload)} bytes are no {shape[0]} values of dtype {dtype.code}"
            )
        self.payload, self.code, self.width = payload, dtype.code, shape[0]


class Fields:
    """A dictionary: the document or a record.

    Attributes:
        names: its keys, `DOCUMENT`, `REQUIRED` or `REQUIRED + OPTIONAL`; empty until filled.
        values: in the same order.
        listed: whether the list of rows already holds it.
    """

    __slots__ = ("listed", "names", "values")

    def __init__(self):
        self.listed = False
        self.names: tuple[str, ...] = ()
        self.values: list[Any] = []

    def fill(self, items: list[Any]) -> None:
        """Set keys and values, given in turn, with the keys in any order."""
        keys, values = tuple(items[::2]), items[1::2]
        if self.names or len(keys) != len(values) or set(map(type, keys)) != {str}:
            raise CorruptBatchError("a dictionary is no record of a batch")
        if keys not in KINDS:
            found = dict(zip(keys, values, strict=True))
            names = next((kind for kind in KINDS if set(kind) == set(keys)), ())
            if len(names) != len(keys):
                shown = ", ".join(ascii(key[:20]) for key in keys[:8])
                raise CorruptBatchError(f"a dictionary has the keys {shown}")
            keys, values = names, [found[name] for name in names]
        types = list(map(type, values))
        if keys == DOCUMENT:
            if types not in ([int, Rows], [str, Rows]):
                raise CorruptBatchError("'layer' or 'activations' is of another type")
        elif types != RECORD_TYPES[: len(types)]:
            raise CorruptBatchError("a record's value is of another type")
        self.names, self.values = keys, values


RECORD_TYPES = [str, int, Array, str, int, int, int]


class Rows:
    """The list of records, by column.

    Attributes:
        code: code of the activations' dtype, f2, f4 or f8.
        width: width of the activations.
        columns: in the order of `REQUIRED + OPTIONAL`; that of the activations holds their bytes.
    """

    def __init__(self):
        self.code = ""
        self.width = 0
        self.columns: list[list[Any]] = []

    def extend(self, items: list[Any]) -> None:
        """Append records, all with the same keys, width and dtype."""
        for item in items:
            if type(item) is not Fields or item.names[:4] != REQUIRED or item.listed:
                raise CorruptBatchError(
                    "'activations' holds what is no record, or one record twice"
                )
            item.listed = True
            values, array = list(item.values), item.values[2]
            if array.payload is None:
                raise CorruptBatchError("a record's activation has no content")
            values[2] = array.payload
            if not self.columns:
                self.code, self.width = array.code, array.width
                self.columns = [[] for _ in values]
            kind = (array.code, array.width, len(values))
            if kind != (self.code, self.width, len(self.columns)):
                raise CorruptBatchError("records differ in their keys, width or dtype")
            for column, value in zip(self.columns, values, strict=True):
                column.append(value)


def hook_point_of(layer: int | str) -> str:
    """Return the hook point that a value of `layer` stands for: `layer_6` for 6.

    Raises:
        CorruptBatchError: the number is below 0.
    """
    if isinstance(layer, str):
        return layer
    if layer < 0:
        raise CorruptBatchError(f"layer {layer} is below 0")
    return f"layer_{layer}"


def named(module: Any, name: Any) -> Name:
    """Return the name that a file uses, if batches need it.

    Raises:
        UnsafePickleError: no batch needs it.
    """
    if type(module) is not str or type(name) is not str:
        raise UnsafePickleError("names something by a value that is not a text")
    if (module, name) not in GLOBALS:
        raise UnsafePickleError(f"names {f'{module}.{name}'[:200]!r}, which no batch needs")
    return GLOBALS[module, name]


def call(function: Any, arguments: Any) -> Any:
    """Return what one of numpy's functions would return, as an object of this module.

    Raises:
        UnsafePickleError: `function` is not one of the names.
        CorruptBatchError: numpy's pickles never call it with such arguments.
    """
    if type(function) is not Name:
        raise UnsafePickleError("calls something that is not a function")
    if type(arguments) is tuple:
        if function is RECONSTRUCT and arguments == _EMPTY_ARRAY:
            return Array()
        if function is DTYPE and len(arguments) == 3 and arguments[1:] == (False, True):
            if type(arguments[0]) is str and arguments[0] in ITEM_SIZES:
                return Dtype(arguments[0])
            shown = ascii(arguments[0][:9]) if type(arguments[0]) is str else "of no name"
            raise CorruptBatchError(f"activations are of dtype {shown}, not f2, f4 or f8")
        if function is ENCODE and arguments[1:] == ("latin1",) and type(arguments[0]) is str:
            return arguments[0].encode("latin1")  # protocol 2 has no bytes
        if function is FROM_BUFFER and len(arguments) == 4 and arguments[3] == "C":
            array = Array()
            array.set(*arguments[:3])
            return array
    raise CorruptBatchError(f"{function.text} has other arguments than numpy gives it")
