"""Mutated files of every format: refused by the one exception, or a well-formed batch.

`FUZZ_MUTATIONS=100000` in the environment makes it that many for each format.
"""

import io
import os
import random
import re
import zipfile

import pytest

from extraction.errors import CorruptBatchError
from extraction.formats import FORMATS
from tests.extraction.formats.batches import (
    HOOK,
    assert_well_formed,
    files,
    founding_pickle,
    varied_block,
)

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "4000"))
NUMBERS = [0, 1, 2, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
OPCODES = b"\x80\x95.(}u]aeXCB\x96JKM\x8aN\x88\x89t\x85\x86\x87c\x93Rbqr\x94hjs)0i\x81\x8c\x8d\x8e"


def seeds(name: str) -> list[tuple[bytes, bytes | None]]:
    """Small valid files: data and sidecar."""
    form = FORMATS[name]
    found = [
        files(form.serialise(HOOK, varied_block(rows, width), dtype))
        for dtype in form.dtypes
        for rows, width in ((0, 3), (1, 1), (3, 4), (40, 2))
    ]
    if name == "pickle":
        founding = [founding_pickle(rows, n, width=2) for n in (2, 3, 4, 5) for rows in (2, 30)]
        found += [(data, None) for data in founding]
    return found


def mutated(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """Some bytes changed, dropped, doubled, or taken from another file; one time or more."""
    result = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        # What lies at the start decides more than what lies behind.
        reach = generator.choice((len(result), min(len(result), 400)))
        at = generator.randrange(reach + 1)
        length = generator.choice((1, 1, 2, 4, 8, 40))
        number = generator.choice(NUMBERS).to_bytes(8, generator.choice(("little", "big")))
        kind = generator.randrange(8)
        if kind == 0 and at < len(result):
            result[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            result[at : at + length] = generator.randbytes(length)
        elif kind == 2:
            del result[at : at + length]
        elif kind == 3:
            result[at:at] = result[at : at + length]
        elif kind == 4:
            size = generator.choice((1, 2, 4, 8))
            result[at : at + size] = number[:size]
        elif kind == 5:
            start = generator.randrange(len(other) + 1)
            result[at : at + length] = other[start : start + length]
        elif kind == 6:
            result[at : at + 1] = bytes([generator.choice(OPCODES)])
        else:
            del result[at:]
            if generator.random() < 0.5:
                result += other[at:]
    return bytes(result)


def other_numbers(data: bytes, generator: random.Random) -> bytes:
    """A number of a safetensors header changed, and the header's length with it."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end]
    numbers = list(re.finditer(rb"\d+", header))
    match = generator.choice(numbers)
    near = int(match[0]) + generator.choice((-8, -4, -1, 1, 4, 8))
    value = str(generator.choice((near, *NUMBERS))).encode()
    header = header[: match.start()] + value + header[match.end() :]
    return len(header).to_bytes(8, "little") + header + data[end:]


def other_member(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """An array of an npz changed, and its checksum with it."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = generator.choice(list(members))
    members[name] = mutated(members[name], other, generator)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_a_mutated_file_is_refused_or_read_as_a_batch(name):
    generator = random.Random(f"{name} {MUTATIONS}")
    originals = seeds(name)
    reasons, read = set(), 0
    for _ in range(MUTATIONS):
        data, sidecar = generator.choice(originals)
        other = generator.choice(originals)[0]
        if sidecar is not None and generator.random() < 0.8:
            change = other_member if generator.random() < 0.6 else mutated
            sidecar = change(sidecar, other, generator)
        elif name == "npz" and generator.random() < 0.6:
            data = other_member(data, other, generator)
        elif name == "safetensors" and generator.random() < 0.3:
            data = other_numbers(data, generator)
        else:
            data = mutated(data, other, generator)
        try:
            batch = FORMATS[name].parse(data, sidecar)
        except CorruptBatchError as error:
            reasons.add(str(error))
        else:
            assert_well_formed(batch)
            read += 1
    assert max(map(len, reasons)) < 500
    assert len(reasons) > 20  # they reach the checks behind the first
    assert 0 < read < MUTATIONS


def test_random_programs_of_opcodes_are_refused():
    """Opcodes with arguments that fit them reach further than mutations do."""
    generator = random.Random(0)
    arguments = {
        **{b"X": lambda: b"\4\0\0\0step", b"C": lambda: b"\4abcd", b"B": lambda: b"\4\0\0\0abcd"},
        **{b"K": lambda: generator.randbytes(1), b"h": lambda: bytes([generator.randrange(4)])},
        **{b"M": lambda: generator.randbytes(2), b"J": lambda: generator.randbytes(4)},
        b"c": lambda: generator.choice((b"numpy\ndtype\n", b"numpy\nndarray\n", b"os\nsystem\n")),
        **dict.fromkeys((b"}", b"]", b"(", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b"), bytes),
        **dict.fromkeys((b"u", b"a", b"e", b"N", b"\x88", b"\x89", b"\x94"), bytes),
    }
    codes = list(arguments)
    for _ in range(MUTATIONS):
        program = generator.choices(codes, k=generator.randrange(1, 30))
        data = b"\x80\x04" + b"".join(code + arguments[code]() for code in program) + b"."
        with pytest.raises(CorruptBatchError):
            FORMATS["pickle"].parse(data)
