"""Headers against the safetensors library: whatever it refuses is refused, the rest read alike."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

import tensor_files
from tensor_files.safetensors_header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    HeaderError,
    header_bytes,
    parse_header,
)

GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "U8", "shape": [0], "data_offsets": [32, 32]},
    "d": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
}
DATA = bytes(range(40))


def whole(header: Any, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def ours(file: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """Tensors by name: dtype, shape, bytes; None if the file is refused."""
    try:
        start = 8 + header_bytes(file[:8], len(file))
        header = parse_header(file[8:start], len(file) - start)
    except HeaderError:
        return None
    data = file[start:]
    return {n: (t.dtype, list(t.shape), data[t.begin : t.end]) for n, t in header.tensors.items()}


def theirs(file: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    try:
        tensors = safetensors.deserialize(file)
    except Exception:  # of several kinds
        return None
    return {n: (t["dtype"], list(t["shape"]), bytes(t["data"])) for n, t in tensors}


def changed(**entries: Any) -> dict[str, Any]:
    header = copy.deepcopy(GOOD)
    for name, change in entries.items():
        header[name] = header[name] | change if name in header else change
    return header


TWICE = json.dumps(GOOD)[:-1] + ', "a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}'
TWICE_WITHIN = json.dumps(GOOD).replace('"shape": [4]', '"shape": [9], "shape": [4]')

REFUSED = {
    "overlapping": whole(changed(b={"data_offsets": [20, 28]})),
    "the same bytes twice": whole(changed(e=GOOD["a"])),
    "a hole": whole(changed(b={"data_offsets": [25, 33]})),
    "negative": whole(changed(a={"data_offsets": [-24, 0]})),
    "negative zero": whole(json.dumps(GOOD).replace("[0, 24]", "[-0, 24]").encode()),
    "backwards": whole(changed(a={"data_offsets": [24, 0]})),
    "beyond the end": whole(GOOD, DATA[:-1]),
    "bytes after the last": whole(GOOD, DATA + b"\0"),
    "of another size": whole(changed(a={"shape": [2, 2]})),
    "negative shape": whole(changed(a={"shape": [-2, -3]})),
    "shape that overflows": whole(changed(a={"shape": [2**63, 2**63]})),
    "shape that wraps around": whole(changed(a={"shape": [2**62 + 6]})),
    "float shape": whole(changed(a={"shape": [2.0, 3]})),
    "true as a size": whole(changed(a={"shape": [True, 6]})),
    "unknown dtype": whole(changed(a={"dtype": "F31"})),
    "half a byte": whole({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, b"\0"),
    "three offsets": whole(changed(a={"data_offsets": [0, 24, 24]})),
    "offset beyond 64 bits": whole(changed(a={"data_offsets": [0, 2**64 + 24]})),
    "no dtype": whole({"a": {"shape": [40], "data_offsets": [0, 40]}}),
    "metadata no text": whole(GOOD | {"__metadata__": {"format": 1}}),
    "metadata no object": whole(GOOD | {"__metadata__": "pt"}),
    "half a surrogate": whole(json.dumps(GOOD).replace('"a"', '"\\ud800"').encode()),
    "no JSON": whole(b"{" * 20),
    "a list": whole(b"[]", b""),
    "not UTF-8": whole(b'{"\xff": 1}', b""),
    "nested": whole(b'{"a":' * 100_000 + b"}" * 100_000),
    "a number of many digits": whole(b'{"a":' + b"9" * 100_000 + b"}"),
    "empty": b"",
    "seven bytes": bytes(7),
    "shorter than its header": whole(GOOD)[:40],
}

REFUSED_BY_US_ALONE = {
    "a tensor twice": whole(TWICE.encode()),
    "space before": whole(b" " + json.dumps(GOOD).encode()),
    "another field": whole(changed(a={"note": 1})),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_library_refuses_is_refused(case):
    assert theirs(REFUSED[case]) is None
    assert ours(REFUSED[case]) is None


@pytest.mark.parametrize("case", REFUSED_BY_US_ALONE)
def test_what_is_refused_besides(case):
    assert theirs(REFUSED_BY_US_ALONE[case]) is not None
    assert ours(REFUSED_BY_US_ALONE[case]) is None


def test_a_field_that_stands_twice_is_refused():
    assert ours(whole(TWICE_WITHIN.encode())) is None


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_is_the_librarys(dtype):
    bits = DTYPE_BITS[dtype]
    header = {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}
    file = whole(header, bytes(bits))
    expected = theirs(file)
    if expected is None:
        pytest.skip("this version of the library does not know it yet")
    assert ours(file) == expected


@pytest.mark.parametrize(
    "file",
    [
        whole(GOOD),
        whole(json.dumps(GOOD).encode() + b" " * 9),
        whole({}, b""),
        whole({"a": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}, b""),
    ],
)
def test_whole_files_are_read_as_the_library_reads_them(file):
    assert ours(file) is not None
    assert ours(file) == theirs(file)


def test_the_longest_header_is_the_librarys():
    assert header_bytes(MAX_HEADER_BYTES.to_bytes(8, "little"), 1 << 40) == MAX_HEADER_BYTES
    with pytest.raises(HeaderError):
        header_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), 1 << 40)


NUMBERS = st.sampled_from([-1, 0, 1, 2, 4, 8, 20, 24, 32, 33, 40, 2**32, 2**63, 2**64])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "BOOL", "I64", "F4", "F32 ", ""]),
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
    }
)
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "__metadata__"]),
    st.one_of(ENTRY, st.sampled_from([v for k, v in GOOD.items() if k != "__metadata__"])),
    max_size=4,
)


@settings(max_examples=300)
@given(HEADERS, st.sampled_from([0, 8, 24, 32, 40]))
def test_made_up_headers(header, data_bytes):
    file = whole(header, bytes(data_bytes))
    found = ours(file)
    assert found is None or found == theirs(file)


@settings(max_examples=500)
@given(st.data())
def test_flipped_bytes(data):
    file = bytearray(whole(GOOD))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(file) - 1))
        file[place] = data.draw(st.integers(0, 255))
    found = ours(bytes(file))
    assert found is None or found == theirs(bytes(file))


def test_it_needs_python_alone():
    code = "import tensor_files.safetensors_header, sys; print('numpy' in sys.modules)"
    root = Path(tensor_files.__file__).parents[1]
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert told.stdout == "False\n"
