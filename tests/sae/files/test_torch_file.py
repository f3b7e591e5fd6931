"""Files of torch.save: read as torch reads them, written so that torch reads them, nothing run."""

import io
import os
import pickle
import random
import re
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch

from extraction.errors import CorruptBatchError, StoreError, UnsafePickleError
from sae.files.torch_file import read_torch_file, torch_file
from sae.files.torch_pickle import Storage, Tensor, state_dict_pickle
from tests.bounded_child import run_bounded

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "4000")) // 2


def saved(value: object, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def with_pickle(program: bytes) -> bytes:
    return zipped({"archive/data.pkl": program, "archive/data/0": bytes(16)})


def module_state() -> OrderedDict:
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 3, bias=False))
    module.register_buffer("k", torch.tensor(4, dtype=torch.int))
    return module.state_dict()


STATES = {
    "module": module_state,
    "parameters": lambda: {"w": torch.nn.Parameter(torch.randn(3, 4))},
    "transposed": lambda: {"w": torch.randn(3, 4).T, "p": torch.randn(2, 3, 4).permute(2, 0, 1)},
    "parts": lambda: {"a": (whole := torch.arange(12.0).reshape(3, 4))[1:, 2:], "b": whole[0]},
    "dtypes": lambda: {
        str(dtype): torch.randn(3, 4).mul(100).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64)
    },
    "empty": lambda: {"a": torch.zeros(0, 3), "b": torch.zeros(())},
    "nothing": dict,
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_tensors_are_those_that_torch_reads(name):
    torch.manual_seed(0)
    data = saved(STATES[name]())
    right = torch.load(io.BytesIO(data), weights_only=True)
    found = read_torch_file(data)
    assert found.keys() == right.keys()
    for key, tensor in right.items():
        wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert found[key].dtype == wide.detach().numpy().dtype
        np.testing.assert_array_equal(found[key], wide.detach().numpy())


def test_torch_reads_what_is_written():
    draw = np.random.default_rng(0)
    arrays = {
        "a.b": draw.normal(size=(3, 4)).astype(np.float32),
        "transposed": draw.normal(size=(3, 4)).T,
        "k": np.array(3, np.int32),
        "long": np.arange(5) << 40,
        "empty": np.zeros((0, 2), np.float32),
    }
    data = torch_file(arrays)
    assert data == torch_file(arrays)
    tensors = torch.load(io.BytesIO(data), weights_only=True)
    again = read_torch_file(data)
    assert list(tensors) == list(again) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].numpy(), array)
        np.testing.assert_array_equal(again[name], array)
        assert tensors[name].numpy().dtype == again[name].dtype == array.dtype
    torch.nn.Linear(4, 3).load_state_dict({"weight": tensors["a.b"], "bias": torch.zeros(3)})


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (lambda: saved({"w": Evil()}), "names posix.mkdir, which no state dict needs"),
        (lambda: saved(torch.nn.Linear(2, 2)), "no state dict needs"),
        (lambda: with_pickle(b"\x80\x02cos\nsystem\nX\x01\0\0\0a\x85R."), "names os.system"),
        (lambda: with_pickle(b"\x80\x02cbuiltins\neval\n."), "names builtins.eval"),
        (lambda: with_pickle(b"\x80\x02ctorch\nFloatStorage\n)R."), "it was not run"),
        (lambda: with_pickle(b"\x80\x02X\x01\0\0\0a)b."), "has a str for a dict"),
        (lambda: with_pickle(b"\x80\x02ctorch\nload\n."), "names torch.load"),
        (lambda: with_pickle(b"\x80\x02\x8c\x04eval."), "no state dict has it"),
        (lambda: with_pickle(pickle.dumps({"w": 1}, 4)), "does not start as torch's pickles do"),
        (lambda: with_pickle(pickle.dumps({"w": 1}, 2)), "other things than tensors"),
        (lambda: with_pickle(pickle.dumps((1, 2), 2)), "holds a tuple, no state dict"),
        (lambda: with_pickle(pickle.dumps([1], 2)), "no state dict has it"),
        (lambda: saved({"w": {"v": torch.zeros(1)}}), "other things than tensors"),
        (lambda: saved({3: torch.zeros(1)}), "has a int for a str"),
        (lambda: saved({"w": torch.zeros(2, dtype=torch.complex64)}), "ComplexFloatStorage"),
        (lambda: saved({"w": torch.zeros(2)}, _use_new_zipfile_serialization=False), "torch 1.6"),
        (lambda: b"", "no whole file of torch.save"),
        (lambda: zipped({"a.txt": b""}), "without one data.pkl"),
        (lambda: zipped(members(saved(STATES["module"]())), zipfile.ZIP_DEFLATED), "compressed"),
    ],
)  # fmt: skip
def test_what_is_no_state_dict_is_refused_and_not_run(data, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorruptBatchError, match=re.escape(told)) as error:
        read_torch_file(data())
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_unsafe_pickle_has_an_error_of_its_own():
    with pytest.raises(UnsafePickleError):
        read_torch_file(saved({"w": Evil()}))


def big(number: int) -> bytes:
    return b"\x8a\x08" + number.to_bytes(8, "little")


def tensor_program(count: int, offset: int, shape: list[int], strides: list[int]) -> bytes:
    """The pickle of one tensor, with any numbers."""
    numbers = [b"(" + b"".join(map(big, sizes)) + b"t" for sizes in (shape, strides)]
    return (
        b"\x80\x02}(X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
        b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + big(count) + b"tQ" + big(offset)
        + b"".join(numbers) + b"\x89ccollections\nOrderedDict\n)RtRu."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "offset", "shape", "strides", "told"),
    [
        (4, 0, [2, 2], [2, 1], None),
        (4, 3, [1], [1], None),
        (5, 0, [2, 2], [2, 1], "a storage of 5 float32 has 16 bytes"),
        (1 << 60, 0, [2, 2], [2, 1], "has 16 bytes"),
        (4, 1, [2, 2], [2, 1], "lies beyond its storage"),
        (4, 0, [2, 2], [3, 1], "lies beyond its storage"),
        (4, 1 << 62, [1], [1], "lies beyond its storage"),
        (4, 0, [1 << 40], [0], "more numbers than the file"),
        (4, 0, [5], [0], "more numbers than the file"),
        (4, 0, [1 << 60, 1 << 60, 0], [0, 0, 0], "damaged archive"),
        (4, 0, [2], [1, 1], "do not fit each other"),
        (4, 0, [1] * 9, [1] * 9, "do not fit each other"),
    ],
)
def test_a_tensor_lies_within_its_storage(count, offset, shape, strides, told):
    data = with_pickle(tensor_program(count, offset, shape, strides))
    if told is None:
        assert read_torch_file(data)["w"].shape == tuple(shape)
        return
    with pytest.raises(CorruptBatchError, match=told):
        read_torch_file(data)


BOUNDED = """
from tests.sae.files import test_torch_file as t
from extraction.errors import StoreError
from sae.files.torch_file import read_torch_file
deep = b"\\x80\\x02)" + b"\\x85" * 3_000_000
programs = {
    "nested key": b"\\x80\\x02}" + deep[2:] + b"Ns.",
    "nested": deep + b".",
    "memo": b"\\x80\\x02)r\\xff\\xff\\xff\\xff.",
    "text": b"\\x80\\x02X\\xff\\xff\\xff\\x7fa.",
    "doubled": b"\\x80\\x02)" + b"q\\x00h\\x00\\x86" * 300_000 + b".",
    "marks": b"\\x80\\x02" + b"(" * 3_000_000 + b".",
    "claim": t.tensor_program(4, 0, [1 << 40], [0]),
}
files = {name: t.with_pickle(program) for name, program in programs.items()}
"""


def test_time_and_memory_are_in_proportion_to_the_file():
    ended = run_bounded(
        BOUNDED,
        "for name, data in files.items():\n"
        "    try:\n"
        "        read_torch_file(data)\n"
        "    except StoreError as error:\n"
        "        assert len(str(error)) < 300\n"
        "        print(name)\n",
        megabytes=400,
        cpu_seconds=30,
    )
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.split("\n")) == 8


def nested_archive(entries: int, filler: int) -> bytes:
    """An archive in which the content of each storage is the next one's header and content."""
    blob, sizes, spots = bytes(filler), [], []
    for number in reversed(range(entries)):
        name = f"archive/data/{number}"
        blob += bytes(-len(blob) % 4)
        one = zipfile.ZipInfo(name)
        one.CRC, one.file_size, one.compress_size = zlib.crc32(blob), len(blob), len(blob)
        sizes.append(len(blob))
        blob = one.FileHeader() + blob
        spots.append((one, len(blob)))
    tensors = {
        str(number): Tensor(Storage("float32", str(number), size // 4), 0, (size // 4,), (1,))
        for number, size in enumerate(reversed(sizes))
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict_pickle(tensors))
        begin = archive.start_dir
        stream.seek(begin)
        stream.write(blob)
        archive.start_dir = stream.tell()
        for one, length in reversed(spots):
            one.header_offset = begin + len(blob) - length
            archive.filelist.append(one)
            archive.NameToInfo[one.filename] = one
    return stream.getvalue()


def test_entries_within_each_other_are_refused():
    """Of a small file they would make a large one; newer versions of Python refuse them too."""
    assert set(read_torch_file(nested_archive(1, 40))) == {"0"}
    with pytest.raises(CorruptBatchError, match=r"larger than the archive|Overlapped"):
        read_torch_file(nested_archive(50, 40_000))


def test_a_mutated_file_is_refused_or_read_as_finite_sizes():
    generator = random.Random(MUTATIONS)
    originals = [saved(STATES[name]()) for name in STATES]
    reasons, read = set(), 0
    for _ in range(MUTATIONS):
        data = generator.choice(originals)
        files = members(data) if generator.random() < 0.8 else None
        name = next((name for name in files or () if name.endswith("data.pkl")), "")
        changed = bytearray(files[name] if files else data)
        for _ in range(generator.choice((1, 1, 2, 5))):
            at = generator.randrange(len(changed))
            length = generator.choice((0, 1, 1, 2, 4))
            changed[at : at + length] = generator.randbytes(generator.choice((0, 1, 1, 4)))
            changed = changed or bytearray(1)
        data = zipped({**files, name: bytes(changed)}) if files else bytes(changed)
        try:
            found = read_torch_file(data)
        except StoreError as error:
            reasons.add(str(error))
        else:
            assert sum(array.nbytes for array in found.values()) <= 2 * len(data)
            read += 1
    assert max(map(len, reasons)) < 300
    assert len(reasons) > 15
    assert 0 < read < MUTATIONS
