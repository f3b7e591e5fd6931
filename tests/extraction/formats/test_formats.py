"""What holds for every format."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import extraction
from extraction.errors import CorruptBatchError, StoreError
from extraction.formats import FORMATS, ParsedBatch
from extraction.formats.key_arrays import KeyTable, key_arrays
from tests.extraction.formats.batches import (
    HOOK,
    assert_same_keys,
    assert_well_formed,
    files,
    varied_block,
)

CASES = [(name, dtype) for name, form in FORMATS.items() for dtype in form.dtypes]
SOURCES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
every_case = pytest.mark.parametrize(("name", "dtype"), CASES)
every_format = pytest.mark.parametrize("name", FORMATS)

READER = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"jax", "jaxlib", "ml_dtypes", "safetensors", "torch"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from pathlib import Path
from extraction.formats import FORMATS

found = []
for name, dtype in json.loads(sys.argv[1]):
    form = FORMATS[name]
    base = Path(f"{name}-{dtype}")
    sidecar = form.sidecar_extension and Path(f"{base}.{form.sidecar_extension}").read_bytes()
    batch = form.parse(Path(f"{base}.{form.extension}").read_bytes(), sidecar)
    block = batch.block()
    values = block.activations[batch.hook_point]
    found.append([batch.hook_point, batch.dtype, values.tolist(), block.task_ids.tolist()])
print(json.dumps(found))
"""


@every_case
@pytest.mark.parametrize("rows", [0, 1, 5, 600])
def test_rows_come_back(name, dtype, rows):
    block = varied_block(rows)
    batch = FORMATS[name].parse(*files(FORMATS[name].serialise(HOOK, block, dtype)))
    assert_well_formed(batch)
    assert_same_keys(batch.keys, block)
    assert (batch.hook_point, batch.dtype) == (HOOK, dtype)
    expected = block.activations[HOOK]
    if dtype == "bfloat16":
        expected = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
    if rows:  # a pickle without rows has no width
        np.testing.assert_array_equal(batch.block().activations[HOOK], expected)


@every_case
@pytest.mark.parametrize("source", SOURCES)
def test_what_a_format_can_hold_is_stored_exactly(name, dtype, source):
    block = varied_block(9, 5, source)
    batch = FORMATS[name].parse(*files(FORMATS[name].serialise(HOOK, block, dtype)))
    values = block.activations[HOOK]
    if dtype == "bfloat16":
        values = values.astype(np.float32).astype(ml_dtypes.bfloat16)
        if source == ml_dtypes.bfloat16:
            assert batch.stored.tobytes() == block.activations[HOOK].tobytes()
    found = batch.block().activations[HOOK]
    np.testing.assert_array_equal(found, values.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(values))


@every_case
@pytest.mark.parametrize("width", [1, 3, 63, 64, 896])
def test_any_width_comes_back(name, dtype, width):
    block = varied_block(3, width)
    batch = FORMATS[name].parse(*files(FORMATS[name].serialise(HOOK, block, dtype)))
    assert batch.stored.shape == (3, width)
    assert_same_keys(batch.keys, block)


@every_case
@given(texts=st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=8))
def test_any_texts_come_back(name, dtype, texts):
    block = varied_block(len(texts))
    for row, (task, time) in enumerate(texts):
        block.task_ids[row], block.timestamps[row] = task, time
    batch = FORMATS[name].parse(*files(FORMATS[name].serialise(HOOK, block, dtype)))
    assert_same_keys(batch.keys, block)


@every_case
def test_a_hook_point_has_its_own_name_and_width(name, dtype):
    block = varied_block(4, 6)
    batch = FORMATS[name].parse(*files(FORMATS[name].serialise("final_norm", block, dtype)))
    assert batch.hook_point == "final_norm"
    assert batch.stored.shape == (4, 1)


@every_case
def test_the_same_rows_give_the_same_bytes(name, dtype):
    first, second = (
        files(FORMATS[name].serialise(HOOK, varied_block(30), dtype)) for _ in range(2)
    )
    assert first == second


@every_case
def test_size_is_told_without_joining(name, dtype):
    serialised = FORMATS[name].serialise(HOOK, varied_block(30), dtype)
    assert serialised.nbytes == len(serialised.join())


@pytest.mark.parametrize("name", ["safetensors", "npz", "raw"])
def test_activations_are_not_copied_on_their_way(name):
    block = varied_block(64, 128)
    values = block.activations[HOOK]
    serialised = FORMATS[name].serialise(HOOK, block)
    views = [np.frombuffer(buffer, np.uint8) for buffer in serialised.data]
    assert any(np.shares_memory(view, values) for view in views)


@pytest.mark.parametrize(
    ("name", "dtype"), [case for case in CASES if case[0] in ("safetensors", "npz", "raw")]
)
def test_a_mapped_file_is_read_in_place(name, dtype, tmp_path):
    form = FORMATS[name]
    data, sidecar = files(form.serialise(HOOK, varied_block(50), dtype))
    path = tmp_path / "file"
    path.write_bytes(data)
    mapped = np.memmap(path, np.uint8, "r")
    batch = form.parse(mapped.data, sidecar)
    assert np.shares_memory(batch.stored, mapped)
    assert not batch.stored.flags.writeable
    # Aligned to a cache line in the file, so that vector instructions need no second copy.
    assert (batch.stored.ctypes.data - mapped.ctypes.data) % 64 == 0


@every_case
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(name, dtype, kind):
    block = varied_block(5)
    data, sidecar = files(FORMATS[name].serialise(HOOK, block, dtype))
    batch = FORMATS[name].parse(kind(data), sidecar and kind(sidecar))
    assert_same_keys(batch.keys, block)


@every_case
def test_every_truncation_is_refused(name, dtype):
    data, sidecar = files(FORMATS[name].serialise(HOOK, varied_block(3), dtype))
    for length in range(len(data)):
        with pytest.raises(CorruptBatchError):
            FORMATS[name].parse(data[:length], sidecar)
    for length in range(len(sidecar or b"")):
        with pytest.raises(CorruptBatchError):
            FORMATS[name].parse(data, (sidecar or b"")[:length])


@every_case
@pytest.mark.parametrize("more", [b"\0", b"\n", b".", b"\0" * 4096])
def test_trailing_bytes_are_refused(name, dtype, more):
    data, sidecar = files(FORMATS[name].serialise(HOOK, varied_block(3), dtype))
    with pytest.raises(CorruptBatchError):
        FORMATS[name].parse(data + more, sidecar)
    if sidecar is not None:
        with pytest.raises(CorruptBatchError):
            FORMATS[name].parse(data, sidecar + more)


@every_format
@pytest.mark.parametrize("other", [b"", b"\0" * 200, b"{}", b"PK\5\6" + b"\0" * 18, b"\x80\x03N."])
def test_other_files_are_refused(name, other):
    with pytest.raises(CorruptBatchError):
        FORMATS[name].parse(other, other)


@every_format
def test_a_file_of_another_format_is_refused(name):
    for other in FORMATS:
        if other != name:
            data, _ = files(FORMATS[other].serialise(HOOK, varied_block(3)))
            with pytest.raises(CorruptBatchError):
                FORMATS[name].parse(data, data)


@pytest.mark.parametrize("name", ["pickle", "npz"])
def test_bfloat16_is_refused_with_what_holds_it(name):
    assert FORMATS[name].dtypes == ("float32",)
    for source in (np.float32, ml_dtypes.bfloat16):
        with pytest.raises(StoreError, match=f"{name} .* bfloat16 .* safetensors"):
            FORMATS[name].serialise(HOOK, varied_block(2, dtype=source), "bfloat16")


@every_format
@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", ""])
def test_other_dtypes_are_refused(name, dtype):
    with pytest.raises(StoreError, match="float32 or bfloat16"):
        FORMATS[name].serialise(HOOK, varied_block(2), dtype)


@every_format
def test_half_a_surrogate_pair_is_refused(name):
    block = varied_block(2)
    block.task_ids[1] = "\udc80"
    with pytest.raises(StoreError, match="task_id"):
        FORMATS[name].serialise(HOOK, block)


@every_format
def test_extensions_tell_formats_apart(name):
    extensions = [form.extension for form in FORMATS.values()]
    assert len(set(extensions)) == len(extensions)
    sidecar = FORMATS[name].serialise(HOOK, varied_block(1)).sidecar
    assert (sidecar is None) == (FORMATS[name].sidecar_extension is None)


@pytest.mark.parametrize("shape", [(3,), (3, 4, 1), (2, 4), (0, 4)])
def test_activations_that_do_not_fit_the_keys_are_refused(shape):
    keys = KeyTable(key_arrays(varied_block(3)))
    with pytest.raises(CorruptBatchError, match="for 3 rows"):
        ParsedBatch(hook_point=HOOK, dtype="float32", stored=np.zeros(shape), row_keys=keys)


def test_a_width_without_rows_is_bounded():
    keys, values = KeyTable(key_arrays(varied_block(0))), np.zeros((0, 2**61), "u1")
    with pytest.raises(CorruptBatchError, match="for 0 rows"):
        ParsedBatch(hook_point=HOOK, dtype="bfloat16", stored=values, row_keys=keys)


def test_reading_needs_numpy_alone(tmp_path):
    block = varied_block(6)
    values = np.arange(24).reshape(6, 4) / 8  # exact in bfloat16
    block = dataclasses.replace(block, activations={HOOK: values.astype(ml_dtypes.bfloat16)})
    for name, dtype in CASES:
        form = FORMATS[name]
        data, sidecar = files(form.serialise(HOOK, block, dtype))
        (tmp_path / f"{name}-{dtype}.{form.extension}").write_bytes(data)
        if sidecar is not None:
            (tmp_path / f"{name}-{dtype}.{form.sidecar_extension}").write_bytes(sidecar)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READER, json.dumps(CASES)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(extraction.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    tasks = block.task_ids.tolist()
    assert json.loads(done.stdout) == [[HOOK, d, values.tolist(), tasks] for _, d in CASES]
