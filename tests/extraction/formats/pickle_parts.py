"""An assembler for pickles of batches: each part can be swapped for one that no pickler writes."""

import struct

START = b"\x80\x03"


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def content(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def long_number(value: int, size: int) -> bytes:
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little")


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def dtype(code: bytes = text("f4"), order: str = "<", fields: bytes = b"NNN") -> bytes:
    state = b"(K\x03" + text(order) + fields + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return name("numpy", "dtype") + code + b"\x89\x88\x87R" + state


RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
EMPTY_ARRAY = RECONSTRUCT + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"


def array(
    shape: bytes = b"K\x02\x85",
    payload: bytes = content(bytes(8)),
    kind: bytes = dtype(),
    version: bytes = b"K\x01",
    fortran: bytes = b"\x89",
) -> bytes:
    return EMPTY_ARRAY + b"(" + version + shape + kind + fortran + payload + b"tb"


def record(
    task: bytes = text("a task"),
    sample: bytes = b"K\x00",
    activation: bytes = array(),
    time: bytes = text("2025-01-15T10:30:00"),
    more: bytes = b"",
) -> bytes:
    keys = map(text, ("task_id", "sample_idx", "activation", "timestamp"))
    fields = zip(keys, (task, sample, activation, time), strict=True)
    return b"}(" + b"".join(key + value for key, value in fields) + more + b"u"


def steps(step: bytes = b"K\x00", position: bytes = b"K\x00", token: bytes = b"K\x00") -> bytes:
    fields = zip(("step", "position", "token_id"), (step, position, token), strict=True)
    return b"".join(text(key) + value for key, value in fields)


def document(*records: bytes, layer: bytes = b"K\x06", rows: bytes | None = None) -> bytes:
    """Hands the records over 1000 at a time, as picklers do."""
    if rows is None:
        batches = (records[start : start + 1000] for start in range(0, len(records), 1000))
        rows = b"]" + b"".join(b"(" + b"".join(batch) + b"e" for batch in batches)
    return START + b"}(" + text("layer") + layer + text("activations") + rows + b"u."


def with_activation(*args: bytes, **kwargs: bytes) -> bytes:
    """A document of one record, from what `array` takes."""
    return document(record(activation=array(*args, **kwargs)))


def with_record(**kwargs: bytes) -> bytes:
    """A document of one record, from what `record` takes."""
    return document(record(**kwargs))


def good_batch(rows: int = 3) -> bytes:
    return document(*[record(text(f"task {row}"), more=steps()) for row in range(rows)])
