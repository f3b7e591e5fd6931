"""Inputs that lie on this machine or in a bucket."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

from extraction.storage import FileInfo, Storage, open_storage
from inference.errors import InputError

BUFFER = 1 << 20
"""Bytes of a request for less."""


def is_in_bucket(address: str) -> bool:
    """Whether it is `gs://...` and no local path."""
    return "://" in address


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file with what it holds.

    Attributes:
        address: for messages.
        data: its content.
    """

    address: str
    data: bytes

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """Without its folder."""
        return PurePosixPath(self.address).name

    @property
    def stem(self) -> str:
        """The name without its extension."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The extension with its dot."""
        return PurePosixPath(self.name).suffix


def read_input_files(flag: str, address: str, extension: str) -> Iterator[InputFile]:
    """A file, or those of a folder that have an extension, by name.

    Args:
        flag: that names it, for messages.
        address: path or `gs://bucket/name`; there a name with a slash behind it, or one that no
            object has, is a folder.
        extension: `json`.

    Raises:
        InputError: there is no such file, a folder holds none, or it cannot be read.
        StoreError: the bucket cannot be used.
    """
    found = _in_bucket(address, extension) if is_in_bucket(address) else _local(address, extension)
    if found is None:
        raise InputError(f"{flag} {address}: there is no such file or folder")
    files = list(found)
    if not files:
        raise InputError(f"{flag} {address}: the folder holds no .{extension} file")
    for read in files:
        yield read()


def _local(address: str, extension: str):
    try:
        path = Path(address).expanduser()
        if not address or not path.exists():
            return None
    except (OSError, RuntimeError):  # a name that is too long; ~ of a user that there is not
        return None

    def reader(file: Path):
        def read() -> InputFile:
            try:
                return InputFile(str(file), file.read_bytes())
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror}") from None

        return read

    return map(reader, sorted(path.glob(f"*.{extension}")) if path.is_dir() else [path])


def _in_bucket(address: str, extension: str):
    folder, _, name = address.rpartition("/")
    if name and folder.partition("://")[2]:
        storage = open_storage(folder)
        try:
            file = InputFile(address, storage.get(name))
            return [lambda: file]
        except FileNotFoundError:
            pass
    storage = open_storage(address.rstrip("/"))
    names = storage.names()

    def reader(name: str):
        return lambda: InputFile(f"{storage.address}/{name}", storage.get(name))

    wanted = [name for name in names if name.endswith(f".{extension}")]
    return map(reader, wanted) if names else None


class StoredFile:
    """A file in a bucket that is read in parts, as a `Path` is.

    Args:
        storage: the folder.
        name: of the file.
        info: its size.
    """

    def __init__(self, storage: Storage, name: str, info: FileInfo):
        self._storage, self.name, self._info = storage, name, info

    def __str__(self) -> str:
        return f"{self._storage.address}/{self.name}"

    def __lt__(self, other: "StoredFile") -> bool:
        return self.name < other.name

    def stat(self) -> SimpleNamespace:
        """Its `st_size`."""
        return SimpleNamespace(st_size=self._info.bytes)

    def open(self, mode: str = "rb", buffering: int = BUFFER) -> io.IOBase:
        """A stream of its bytes."""
        assert mode == "rb"
        raw = _Parts(self._storage, self.name, self._info.bytes)
        return raw if buffering == 0 else io.BufferedReader(raw, buffering)


class _Parts(io.RawIOBase):
    """Each read is a request."""

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
