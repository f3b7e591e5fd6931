import io

import ml_dtypes
import numpy as np
import pytest

from extraction.errors import CorruptBatchError
from extraction.formats.npz_arrays import write_npz
from tests.extraction.formats.batches import HOOK, files, varied_block
from tests.older_formats import RawWriter

FORMAT = RawWriter()


def sidecar(**changes: np.ndarray) -> bytes:
    _, content = files(FORMAT.serialise(HOOK, varied_block(6)))
    with np.load(io.BytesIO(content)) as found:
        return b"".join(write_npz(dict(found) | changes))


def text(value: str) -> np.ndarray:
    return np.frombuffer(value.encode(), np.uint8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_file_is_the_array(dtype, tmp_path):
    block = varied_block(6)
    serialised = FORMAT.serialise(HOOK, block, dtype)
    path = tmp_path / "layer_6_batch_000001.bin"
    path.write_bytes(serialised.join())
    kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    mapped = np.memmap(path, kind, "r").reshape(-1, 4)
    assert mapped.tobytes() == block.activations[HOOK].astype(kind).tobytes()
    with np.load(io.BytesIO(serialised.sidecar), allow_pickle=False) as keys:
        assert keys["shape"].tolist() == [6, 4]
        assert keys["dtype"].tobytes().decode() == dtype
        assert keys["hook_point"].tobytes().decode() == HOOK


@pytest.mark.parametrize("size", [0, 1, 95, 97, 192])
def test_another_size_is_refused(size):
    with pytest.raises(CorruptBatchError, match=f"{size} bytes are no 6 rows of 4"):
        FORMAT.parse(bytes(size), sidecar())


def test_a_missing_sidecar_is_refused_by_name():
    with pytest.raises(CorruptBatchError, match=r"\.keys\.npz"):
        FORMAT.parse(bytes(96))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": np.array([6, 4, 1], "<i8")},
        {"shape": np.array([24], "<i8")},
        {"shape": np.array([[6, 4]], "<i8")},
        {"shape": np.array([6, 4], "<i4")},
        {"shape": np.array([-6, -4], "<i8")},
        {"shape": np.array([4, 6], "<i8")},
        {"shape": np.array([2**62, 2**62], "<i8")},
        {"shape": np.array([2**62 + 6, 4], "<i8")},
        {"dtype": text("bfloat16")},
        {"dtype": text("float64")},
        {"dtype": text("object")},
        {"dtype": np.array([255], np.uint8)},
        {"hook_point": np.array([255], np.uint8)},
        {"activations": np.zeros((6, 4), "<f4")},
        {"step": np.zeros(5, "<i4")},
    ],
    ids=lambda changes: ",".join(f"{n}={v.tobytes()[:20]}" for n, v in changes.items()),
)
def test_a_sidecar_that_lies_is_refused(changes):
    FORMAT.parse(bytes(96), sidecar())
    with pytest.raises(CorruptBatchError):
        FORMAT.parse(bytes(96), sidecar(**changes))
