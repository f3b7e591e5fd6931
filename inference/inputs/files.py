"""Input files, on this machine or in a bucket."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from extraction.errors import UnsafeFileError
from extraction.setting_names import setting
from extraction.storage import open_storage, scheme_of
from extraction.storage.regular_files import open_regular
from inference.errors import InputError


def is_in_bucket(address: str) -> bool:
    """Return whether an address names a bucket, such as `gs://...`, and not a local path."""
    return scheme_of(address) is not None


@dataclasses.dataclass(frozen=True)
class InputFile:
    """An input file with its content.

    Attributes:
        address: path or address of the file.
        data: content of the file.
    """

    address: str
    data: bytes

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return PurePosixPath(self.address).name

    @property
    def stem(self) -> str:
        """Name of the file without its extension."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Extension of the file, with its dot."""
        return PurePosixPath(self.name).suffix


def read_input_files(
    setting_name: str, address: str, extensions: str | tuple[str, ...]
) -> Iterator[InputFile]:
    """Yield a file, or the files of a folder with one of the extensions, by name.

    Args:
        setting_name: name of the setting with the address, for messages.
        address: path or `gs://bucket/name`. In a bucket a name is a folder if it ends with a slash,
            or if no object has that name.
        extensions: extension of the files in a folder, such as `.json`, or several.

    Raises:
        InputError: there is no such file, it cannot be read, or a folder holds no such file.
        StoreError: the bucket cannot be used.
    """
    read = _from_bucket if is_in_bucket(address) else _from_disk
    empty = True
    for file in read(setting_name, address, extensions):
        empty = False
        yield file
    if empty:
        wanted = extensions if isinstance(extensions, str) else " or ".join(extensions)
        raise InputError(f"{setting(setting_name, address)}: the folder holds no {wanted} file")


def _from_disk(
    setting_name: str, address: str, extensions: str | tuple[str, ...]
) -> Iterator[InputFile]:
    try:
        path = Path(address).expanduser()
        there = bool(address) and path.exists()
    except (OSError, RuntimeError):  # a name that is too long; ~ of a user that there is not
        there = False
    if not there:
        raise _nothing_there(setting_name, address)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(extensions))
    for file in files:
        try:
            with open_regular(file) as stream:
                data = stream.readall()
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from None
        except UnsafeFileError as error:
            raise InputError(f"{setting(setting_name)}: {error}") from None
        yield InputFile(str(file), data)


def _from_bucket(
    setting_name: str, address: str, extensions: str | tuple[str, ...]
) -> Iterator[InputFile]:
    folder, _, name = address.rpartition("/")
    if name and folder.partition("://")[2]:
        data = None
        with contextlib.suppress(FileNotFoundError):
            data = open_storage(folder).get(name)
        if data is not None:
            yield InputFile(address, data)
            return
    storage = open_storage(address.rstrip("/"))
    names = storage.names()
    if not names:
        raise _nothing_there(setting_name, address)
    for name in names:
        if name.endswith(extensions):
            yield InputFile(f"{storage.address}/{name}", storage.get(name))


def _nothing_there(setting_name: str, address: str) -> InputError:
    return InputError(f"{setting(setting_name, address)}: there is no such file or folder")
