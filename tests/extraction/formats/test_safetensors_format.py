import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from extraction.errors import CorruptBatchError
from extraction.formats.key_arrays import KEY_DTYPES
from extraction.formats.safetensors_format import HEADER_LIMIT, SafetensorsFormat
from tests.extraction.formats.batches import HOOK, assert_same_keys, varied_block

FORMAT = SafetensorsFormat()


def written(rows=5, width=4, dtype="float32", source=np.float32) -> bytes:
    return FORMAT.serialise(HOOK, varied_block(rows, width, source), dtype).join()


def parts(data: bytes) -> tuple[dict, bytes]:
    """Header and tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def put_together(header: bytes | dict, tensors: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def changed(change) -> bytes:
    header, tensors = parts(written())
    other = change(header)
    return put_together(header if other is None else other, tensors)


@pytest.mark.parametrize("width", [4, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_library_reads_our_files(dtype, width, tmp_path):
    block = varied_block(5, width)
    data = FORMAT.serialise(HOOK, block, dtype).join()
    path = tmp_path / "file.safetensors"
    path.write_bytes(data)
    kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    expected = block.activations[HOOK].astype(kind)

    found = safetensors.numpy.load_file(path)
    assert found["activations"].dtype == kind
    assert found["activations"].tobytes() == expected.tobytes()
    assert found["token_id"].tolist() == block.token_id.tolist()
    assert set(found) == {"activations", *KEY_DTYPES}
    offsets = found["task_id.offsets"].tolist()
    first = found["task_id.index"][0]
    text = found["task_id.utf8"][offsets[first] : offsets[first + 1]]
    assert text.tobytes().decode() == block.task_ids[0]

    tensors = safetensors.torch.load_file(path)
    assert tensors["activations"].dtype == getattr(torch, dtype)
    bits = tensors["activations"].view(torch.int32 if dtype == "float32" else torch.int16)
    assert bits.numpy().tobytes() == expected.tobytes()
    assert tensors["sample_idx"].tolist() == block.sample_idx.tolist()
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.metadata() == {"hook_point": HOOK}


@pytest.mark.parametrize("width", [4, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_we_read_the_librarys_files(library, dtype, width, tmp_path):
    block = varied_block(5, width)
    ours = FORMAT.serialise(HOOK, block, dtype).join()
    path, other = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    path.write_bytes(ours)
    module = getattr(safetensors, library)
    module.save_file(module.load_file(path), other, metadata={"hook_point": HOOK, "more": "text"})
    theirs = other.read_bytes()
    assert theirs != ours  # another order of tensors
    batch = FORMAT.parse(theirs)
    assert (batch.hook_point, batch.dtype) == (HOOK, dtype)
    assert batch.stored.tobytes() == FORMAT.parse(ours).stored.tobytes()
    assert_same_keys(batch.keys, block)


def test_activations_lie_first_so_that_they_can_be_mapped(tmp_path):
    block = varied_block(5)
    path = tmp_path / "file.safetensors"
    path.write_bytes(FORMAT.serialise(HOOK, block, "bfloat16").join())
    header, _ = parts(path.read_bytes())
    start = path.stat().st_size - len(parts(path.read_bytes())[1])
    assert header["activations"]["data_offsets"][0] == 0
    mapped = np.memmap(path, ml_dtypes.bfloat16, "r", start, (5, 4))
    expected = block.activations[HOOK].astype(ml_dtypes.bfloat16)
    assert np.asarray(mapped).tobytes() == expected.tobytes()


def test_a_shape_of_true_is_refused_though_it_is_one():
    header, tensors = parts(written(rows=1))
    FORMAT.parse(put_together(header, tensors))
    header["step"]["shape"] = [True]
    with pytest.raises(CorruptBatchError, match="entry of 'step'"):
        FORMAT.parse(put_together(header, tensors))


def test_a_key_that_stands_twice_is_refused_though_the_library_takes_it():
    header, tensors = parts(written())
    entry = json.dumps(header["step"])
    text = json.dumps(header)[:-1] + f', "step": {entry}}}'
    data = put_together(text.encode(), tensors)
    safetensors.numpy.load(data)
    with pytest.raises(CorruptBatchError, match="twice"):
        FORMAT.parse(data)


@pytest.mark.parametrize("space", [b" ", b"\n", b"\t"])
def test_space_before_the_header_is_refused(space):
    header, tensors = parts(written())
    data = put_together(space + json.dumps(header).encode(), tensors)
    if space == b" ":
        safetensors.numpy.load(data)  # the library takes it
    with pytest.raises(CorruptBatchError, match="padded"):
        FORMAT.parse(data)


def test_space_behind_the_header_is_padding():
    header, tensors = parts(written())
    FORMAT.parse(put_together(json.dumps(header).encode() + b" " * 77, tensors))
    for space in (b"\n", b"\0", b"{}"):
        with pytest.raises(CorruptBatchError):
            FORMAT.parse(put_together(json.dumps(header).encode() + space, tensors))


def entry(name="step", **changes):
    def change(header):
        header[name].update(changes)

    return change


def moved(header):
    """A hole of 8 bytes between two tensors, made by moving the last."""
    last = max(header, key=lambda name: header[name].get("data_offsets", [0])[0])
    header[last]["data_offsets"] = [place + 8 for place in header[last]["data_offsets"]]


def overlapping(header):
    header["step"]["data_offsets"] = header["position"]["data_offsets"]


def renamed(header):
    header["steps"] = header.pop("step")


def added(header):
    header["more"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}


def dropped(header):
    del header["step"]


def nameless(header):
    del header["__metadata__"]


HOSTILE_HEADERS = {
    "hole": moved,
    "overlap": overlapping,
    "renamed": renamed,
    "added": added,
    "dropped": dropped,
    "no metadata": nameless,
    "metadata no dictionary": lambda h: h | {"__metadata__": [HOOK]},
    "hook point no text": lambda h: h | {"__metadata__": {"hook_point": 6}},
    "entry no dictionary": lambda h: h | {"step": 5},
    "entry with more": entry(more=1),
    "overflowing shape": entry(shape=[2**62, 2**62]),
    "shape that wraps to the right size": entry(shape=[2**62 + 5]),
    "negative shape": entry(shape=[-5]),
    "two negatives": entry(shape=[-5, -1]),
    "empty axis": entry(shape=[5, 0]),
    "float shape": entry(shape=[5.0]),
    "bool shape": entry(shape=[True]),
    "text shape": entry(shape=["5"]),
    "no list shape": entry(shape=5),
    "two axes": entry(shape=[5, 1]),
    "no axis": entry(shape=[]),
    "other dtype of its size": entry(dtype="F32"),
    "unknown dtype": entry(dtype="V4"),
    "dtype no text": entry(dtype=["I32"]),
    "activations of another dtype": entry("activations", dtype="I32"),
    "flat activations": entry("activations", shape=[20]),
    "activations of other rows": entry("activations", shape=[4, 5]),
    "backward offsets": entry(data_offsets=[20, 0]),
    "negative offsets": entry(data_offsets=[-20, 0]),
    "far offsets": entry(data_offsets=[2**63, 2**63 + 20]),
    "three offsets": entry(data_offsets=[0, 20, 20]),
    "infinite offset": entry(data_offsets=[0, float("inf")]),
    "list": lambda h: b"[]",
    "nothing": lambda h: b"",
    "null": lambda h: b"null",
    "empty": lambda h: b"{}",
    "not UTF-8": lambda h: b'{"\xff": 1}',
    "half": lambda h: json.dumps(h)[:-9].encode() + b"}",
    "nested": lambda h: b'{"a":' * 10_000 + b"}" * 10_000,
    "brackets": lambda h: b'{"a":' + b"[" * 60_000 + b"}",
    "a number of 60,000 digits": lambda h: b'{"a":' + b"9" * 60_000 + b"}",
}


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_a_hostile_header_is_refused(name):
    with pytest.raises(CorruptBatchError):
        FORMAT.parse(changed(HOSTILE_HEADERS[name]))


@pytest.mark.parametrize("length", [0, 1, 2**16 + 1, 2**32, 2**63 - 1, 2**64 - 1])
def test_a_length_beyond_the_header_is_refused(length):
    data = written()
    with pytest.raises(CorruptBatchError):
        FORMAT.parse(length.to_bytes(8, "little") + data[8:])


def test_a_huge_header_is_refused_before_it_is_parsed():
    header, tensors = parts(written())
    padded = json.dumps(header).encode()
    FORMAT.parse(put_together(padded.ljust(HEADER_LIMIT), tensors))
    with pytest.raises(CorruptBatchError, match="a header of 65537 bytes"):
        FORMAT.parse(put_together(padded.ljust(HEADER_LIMIT + 1), tensors))
