"""Checkpoints in a bucket: small files are copied to this machine, weights are read in parts."""

import fnmatch
import hashlib
import io
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

from extraction.storage import FileInfo, Storage, open_storage
from qwen_hooks import Checkpoint
from qwen_hooks.checkpoint import HUB_FILES
from qwen_hooks.errors import ModelError

CACHE = "~/.cache/qwen_activation_extraction/checkpoints"
WEIGHTS = "*.safetensors"
BUFFER = 1 << 20
"""Bytes of a request, if fewer are asked for."""


def open_bucket_checkpoint(address: str) -> Checkpoint:
    """Open the checkpoint at `gs://bucket/prefix`.

    Each process reads the headers of the weights now, and later the parts that its devices hold.

    Raises:
        ModelError: there is no checkpoint, or none that this package can compute.
        StoreError: the bucket cannot be used.
    """
    storage = open_storage(address.rstrip("/"))
    infos = storage.infos()
    wanted = [name for name in infos if any(fnmatch.fnmatch(name, p) for p in HUB_FILES)]
    if not wanted:
        raise ModelError(f"{storage.address} holds no checkpoint; is the prefix right?")
    folder = Path(CACHE).expanduser() / hashlib.sha256(storage.address.encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: BucketFile(storage, n, infos[n]) for n in wanted if fnmatch.fnmatch(n, WEIGHTS)}
    small = [name for name in wanted if name not in weights]
    for path in folder.iterdir():  # files of an earlier version of the checkpoint
        if path.name not in small and not path.name.startswith("."):
            path.unlink(missing_ok=True)
    for name in small:
        _write(folder / name, storage.get(name))
    try:
        return Checkpoint.open(folder, weights)
    except ModelError as error:  # its message names the copies
        raise ModelError(f"{storage.address}: {error}") from None


def _write(path: Path, data: bytes) -> None:
    """Write a file atomically; other processes of this machine may write it at the same time."""
    if path.exists() and path.read_bytes() == data:
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    os.replace(temporary, path)


class BucketFile:
    """A file in a bucket that is read in parts; has the methods of `Path` that reading needs.

    Args:
        storage: storage of the folder.
        name: name of the file.
        info: its size.
    """

    def __init__(self, storage: Storage, name: str, info: FileInfo):
        self._storage, self.name, self._info = storage, name, info

    def __str__(self) -> str:
        return f"{self._storage.address}/{self.name}"

    def __lt__(self, other: "BucketFile") -> bool:
        return self.name < other.name

    def stat(self) -> SimpleNamespace:
        """Return an object with `st_size`."""
        return SimpleNamespace(st_size=self._info.bytes)

    def open(self, mode: str = "rb", buffering: int = BUFFER) -> io.IOBase:
        """Return a stream of its bytes."""
        assert mode == "rb"
        raw = _Parts(self._storage, self.name, self._info.bytes)
        return raw if buffering == 0 else io.BufferedReader(raw, buffering)


class _Parts(io.RawIOBase):
    """A stream whose reads are requests to the bucket."""

    def __init__(self, storage: Storage, name: str, size: int):
        self._storage, self._name, self._size = storage, name, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._storage.get_range(self._name, self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self._storage.get_range(self._name, self._at, self._size - self._at)
        self._at += len(data)
        return data
