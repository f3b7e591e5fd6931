import io
import zipfile
import zlib

import numpy as np
import pytest

from extraction.errors import CorruptBatchError, StoreError
from extraction.formats import npz_arrays
from extraction.formats.key_arrays import KEY_DTYPES
from tests.extraction.formats.batches import HOOK, assert_same_keys, varied_block
from tests.older_formats import NpzWriter

FORMAT = NpzWriter()


def written(rows=5) -> bytes:
    return FORMAT.serialise(HOOK, varied_block(rows)).join()


def saved(compression=zipfile.ZIP_STORED, **changes: np.ndarray | None) -> bytes:
    """What numpy itself writes of a batch's arrays; None leaves one out."""
    arrays = dict(np.load(io.BytesIO(written()))) | changes
    stream = io.BytesIO()
    save = np.savez if compression == zipfile.ZIP_STORED else np.savez_compressed
    save(stream, **{name: array for name, array in arrays.items() if array is not None})
    return stream.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def zipped(content: dict[str, bytes], compression=zipfile.ZIP_STORED, comment=b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, data in content.items():
            file.writestr(name, data)
        file.comment = comment
    return stream.getvalue()


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_numpy_reads_our_files(rows):
    block = varied_block(rows)
    data = FORMAT.serialise(HOOK, block).join()
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        assert set(found.files) == {"activations", "hook_point", *KEY_DTYPES}
        np.testing.assert_array_equal(found["activations"], block.activations[HOOK])
        assert found["activations"].dtype == np.float32
        assert found["hook_point"].tobytes() == HOOK.encode()
        assert found["position"].tolist() == block.position.tolist()
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}


def test_we_read_numpys_files():
    batch = FORMAT.parse(saved())
    assert_same_keys(batch.keys, varied_block(5))
    np.testing.assert_array_equal(batch.stored, varied_block(5).activations[HOOK])


def test_column_order_is_refused():
    values = np.asfortranarray(varied_block(5).activations[HOOK])
    with pytest.raises(CorruptBatchError, match="column by column"):
        FORMAT.parse(saved(activations=values))


def test_compression_is_refused_before_anything_is_unpacked():
    with pytest.raises(CorruptBatchError, match="compressed"):
        FORMAT.parse(saved(zipfile.ZIP_DEFLATED))
    bomb = zipped({"activations.npy": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    with pytest.raises(CorruptBatchError, match="compressed"):
        FORMAT.parse(bomb)


@pytest.mark.parametrize(
    "array",
    [
        np.array([{"a": 1}] * 5, object),
        np.zeros(5, [("a", "i4")]),
        np.zeros(5, ">i4"),
        np.zeros(5, "i2"),
        np.zeros(5, "U4"),
        np.zeros(5, "V4"),
        np.zeros((5, 1), "i4"),
        np.zeros((), "i4"),
        np.zeros(4, "i4"),
        None,
    ],
    ids=lambda array: "missing" if array is None else f"{array.dtype}{array.shape}",
)
def test_other_arrays_are_refused(array):
    with pytest.raises(CorruptBatchError):
        FORMAT.parse(saved(step=array))


@pytest.mark.parametrize("dtype", ["O", "V4", "U4", ">i4", "i2", "c8"])
def test_a_dtype_is_refused_before_an_array_is_made(dtype):
    with pytest.raises(CorruptBatchError, match=r"'step\.npy' is of dtype"):
        FORMAT.parse(saved(step=np.zeros(5, dtype)))


def test_an_array_more_is_refused():
    with pytest.raises(CorruptBatchError, match=r"the arrays are .*'more'"):
        FORMAT.parse(saved(more=np.zeros(1, np.uint8)))


HEADERS = {
    "3.6 TiB": b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }",
    "negative": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-5, -4), }",
    "wrapping": b"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387909, 4), }",
    "99 axes": b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }" % (b"5, " * 99),
    "no number": b"{'descr': '<f4', 'fortran_order': False, 'shape': (5 4), }",
    "an expression": b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, 2+2), }",
    "a call": b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, exit()), }",
    "deep": b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 9000,
    "object": b"{'descr': '|O', 'fortran_order': False, 'shape': (5, 4), }",
    "structure": b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (5, 4), }",
    "bfloat16 as numpy writes it": b"{'descr': '|V2', 'fortran_order': False, 'shape': (5, 8), }",
    "other order of keys": b"{'shape': (5, 4), 'fortran_order': False, 'descr': '<f4', }",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("version", [1, 2])
def test_an_npy_header_that_lies_is_refused(name, version):
    content = members(written())
    values = content["activations.npy"][128:]
    header = HEADERS[name] + b"\n"
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    content["activations.npy"] = b"\x93NUMPY" + bytes([version, 0]) + length + header + values
    with pytest.raises(CorruptBatchError):
        FORMAT.parse(zipped(content))


def test_zipfile_and_we_agree_on_what_is_a_batch():
    # The negative cases above fail for their own reasons, not for how they were packed.
    assert_same_keys(FORMAT.parse(zipped(members(written()))).keys, varied_block(5))


def patched(find: bytes, replace: bytes, count=1) -> bytes:
    data = written()
    assert find in data
    return data.replace(find, replace, count)


def test_damage_to_the_container_is_refused():
    data = written()
    content = members(data)
    central = data.index(b"PK\1\2")
    end = data[-22:]
    moved = (int.from_bytes(end[16:20], "little") + 8).to_bytes(4, "little")
    longer = (int.from_bytes(end[12:16], "little") + 8).to_bytes(4, "little")
    hostile = {
        "comment": zipped(content, comment=b"hello"),
        "data before": b"#!/bin/sh\n" + data,
        "hole": data[:central] + bytes(8) + data[central:-6] + moved + end[20:],
        "hole in the directory": data[:-22] + bytes(8) + end[:12] + longer + end[16:],
        "no members": zipped({}),
        "an empty array": zipped({**content, "step.npy": b""}),
        "a name without npy": zipped({**content, "step": content["step.npy"]}),
        "many members": zipped({**content, **{f"{number}.npy": b"" for number in range(400)}}),
        "local name differs": patched(b"step.npy", b"stop.npy"),
        "flipped bit": patched(HOOK.encode(), b"layer_7"),
        "encrypted": data[: central + 8] + b"\1\0" + data[central + 10 :],
        "sizes differ": data[: central + 24] + b"\xff\xff\xff\x7f" + data[central + 28 :],
        "both sizes huge": data[: central + 20] + b"\xff" * 8 + data[central + 28 :],
        "offset beyond": data[: central + 42] + b"\xff\xff\xff\x7f" + data[central + 46 :],
    }
    for name, file in hostile.items():
        print(name)
        with pytest.raises(CorruptBatchError):
            FORMAT.parse(file)


def test_every_byte_of_the_end_counts():
    data = written()
    for at in range(len(data) - 22, len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(CorruptBatchError):
            FORMAT.parse(damaged)


def test_a_name_that_stands_twice_is_refused():
    content = [(name, data) for name, data in members(written()).items()]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in [*content, content[0]]:
            if name in file.namelist():
                with pytest.warns(UserWarning, match="Duplicate"):
                    file.writestr(name, data)
            else:
                file.writestr(name, data)
    with pytest.raises(CorruptBatchError, match="damaged"):
        FORMAT.parse(stream.getvalue())


def test_members_that_share_their_bytes_are_refused():
    # A quine of a zip: every entry points at the first member.
    data = bytearray(written())
    at = data.index(b"PK\1\2")
    while (at := data.find(b"PK\1\2", at + 1)) >= 0:
        data[at + 42 : at + 46] = bytes(4)
    with pytest.raises(CorruptBatchError, match="overlaps"):
        FORMAT.parse(bytes(data))


def test_a_payload_without_its_checksum_is_refused():
    data = bytearray(written())
    at = data.index(members(bytes(data))["activations.npy"][128:])
    data[at] ^= 1
    with pytest.raises(CorruptBatchError, match="checksum"):
        FORMAT.parse(bytes(data))


def test_more_than_zip_can_hold_is_refused_before_writing(monkeypatch):
    monkeypatch.setattr(npz_arrays, "SIZE_LIMIT", 2000)
    with pytest.raises(StoreError, match="4 GiB"):
        written(200)


def test_checksums_are_zips():
    data = written()
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        for info in file.infolist():
            assert zlib.crc32(file.read(info)) == info.CRC
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
