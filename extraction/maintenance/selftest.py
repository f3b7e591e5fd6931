"""Check that a bucket or folder gives the guarantees that the commit protocol needs.

All files are written below `_selftest-<random>/`, which is removed at the end.
"""

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from extraction.checksums import crc32c
from extraction.errors import StorageUnavailableError, StoreError
from extraction.storage import CloudStorage, Storage, open_storage, scheme_of
from extraction.storage.local import LocalStorage

DEADLINE = 60.0
"""Seconds for which one operation is retried."""

LARGE = 9 << 20
"""Bytes of a file that is uploaded in parts."""

WRITES, FILES, PAGE = 3, 7, 3


class CheckFailedError(Exception):
    """A check failed."""


def selftest(address: str, say: Callable[[str], None] = print) -> bool:
    """Run all checks; return True if all passed.

    Args:
        address: a folder or `gs://bucket/prefix`.
        say: takes a line for each check.

    Raises:
        StoreError: the address cannot be used at all; then nothing was written.
    """
    address = address.rstrip("/") + f"/_selftest-{secrets.token_hex(6)}"
    storage, list_in_pages = _open(address)
    storage.names()  # refuses wrong credentials, permissions or buckets before any check
    say(f"writing below {address}/")
    passed = True
    try:
        for name, check in _checks(storage, list_in_pages):
            problem = _problem(check)
            say(f"passed  {name}" if problem is None else f"FAILED  {name}: {problem}")
            passed &= problem is None
    except StorageUnavailableError as error:
        say(f"FAILED  {error}")
        passed = False
    finally:
        passed &= _clean_up(storage, say)
    return passed


def _open(address: str) -> tuple[Storage, Callable[[], list[str]] | None]:
    """Return the storage, and for gs:// a function that lists files in small pages, else None."""
    if scheme_of(address) != "gs" or "://" not in address:
        return open_storage(address), None
    from google.cloud import storage as google_storage  # only where it is used

    from extraction.storage.gcs import GcsStorage

    storage = GcsStorage(address, deadline=DEADLINE)
    client = google_storage.Client()
    bucket, _, prefix = address.removeprefix("gs://").partition("/")

    def list_in_pages() -> list[str]:
        blobs = client.list_blobs(bucket, prefix=f"{prefix}/pages/", page_size=PAGE)
        return [blob.name.removeprefix(f"{prefix}/") for blob in blobs]

    return storage, list_in_pages


def _problem(check: Callable[[], None]) -> str | None:
    try:
        check()
    except StorageUnavailableError:
        raise
    except CheckFailedError as error:
        return str(error)
    except Exception as error:  # any error means that the check failed
        return f"{type(error).__name__}: {error}"
    return None


def _checks(
    storage: Storage, list_in_pages: Callable[[], list[str]] | None
) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "a file comes back as it was written", lambda: _write_and_read(storage)
    yield "a second write under the same name is refused", lambda: _refuse_second(storage)
    if isinstance(storage, CloudStorage):
        yield "the same content again is recognised", lambda: storage.put_new("new", b"first")
        yield "attributes are kept beside a file", lambda: _keep_attributes(storage)
    yield "of two writers at a time one wins", lambda: _race(storage)
    yield "the listing tells sizes and checksums", lambda: _list(storage)
    yield "parts of a file can be read", lambda: _read_parts(storage)
    yield "a large file is uploaded in parts, once", lambda: _write_large(storage)
    yield "two writers replace a file, whole each time", lambda: _replace_in_turns(storage)
    yield "many files are all listed", lambda: _list_many(storage, list_in_pages)
    yield "files can be deleted", lambda: _delete(storage)


def _expect(found: object, expected: object, what: str) -> None:
    if found != expected:
        raise CheckFailedError(f"{what} is {str(found)[:80]}, not {str(expected)[:80]}")


def _write_and_read(storage: Storage) -> None:
    data = bytes(range(256)) * 8 + b"\r\n\0"
    storage.put_new("first", data)
    _expect(storage.get("first"), data, "the content")
    storage.put_new("empty", b"")
    _expect(storage.get("empty"), b"", "the content of an empty file")


def _refuse_second(storage: Storage) -> None:
    storage.put_new("new", b"first")
    with contextlib.suppress(FileExistsError):
        storage.put_new("new", b"other")
        raise CheckFailedError("it was accepted; commits are not safe here")
    _expect(storage.get("new"), b"first", "the content after it")


def _keep_attributes(storage: CloudStorage) -> None:
    storage.put_new("attributes", b"1", {"run_id": "7"})
    # A bucket may add attributes of its own.
    _expect(storage.attributes("attributes").get("run_id"), "7", "the attribute that came back")


def _together(*tasks: Callable[[], None]) -> None:
    """Run tasks in threads at the same time; raise the first error."""
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _race(storage: Storage) -> None:
    for number in range(WRITES):
        won: list[bytes] = []

        def write(content: bytes, name: str = f"race/{number}", won: list[bytes] = won) -> None:
            with contextlib.suppress(FileExistsError):
                storage.put_new(name, content)
                won.append(content)

        _together(lambda write=write: write(b"one"), lambda write=write: write(b"two"))
        _expect(len(won), 1, "the number of writers that were told they won")
        _expect(storage.get(f"race/{number}"), won[0], "the content")


def _list(storage: Storage) -> None:
    data = b"listed" * 100
    storage.put_new("listed/one", data)
    info = storage.infos("listed/").get("listed/one")
    if info is None:
        raise CheckFailedError("a file just written is not listed")
    _expect(info.bytes, len(data), "the size")
    if isinstance(storage, CloudStorage):
        _expect(info.crc32c, crc32c(data), "the crc32c")


def _read_parts(storage: Storage) -> None:
    storage.put_new("parts", b"0123456789")
    _expect(storage.get_range("parts", 3, 4), b"3456", "bytes 3 to 6")
    _expect(storage.get_range("parts", 8, 9), b"89", "the bytes from 8 on")
    _expect(storage.get_range("parts", 10, 1), b"", "a range after the end")


def _write_large(storage: Storage) -> None:
    data = secrets.token_bytes(1 << 20) * (LARGE >> 20)
    storage.put_new("large", data)
    with contextlib.suppress(FileExistsError):
        storage.put_new("large", data[::-1])
        raise CheckFailedError("a second file was accepted; commits are not safe here")
    _expect(crc32c(storage.get("large")), crc32c(data), "the crc32c of what came back")


def _replace_in_turns(storage: Storage) -> None:
    contents = [letter * 100_000 for letter in (b"a", b"b")]

    def write(content: bytes) -> None:
        for _ in range(WRITES):
            storage.replace("replaced", content)

    _together(lambda: write(contents[0]), lambda: write(contents[1]))
    if storage.get("replaced") not in contents:
        raise CheckFailedError("the file is neither of the two that were written")


def _list_many(storage: Storage, list_in_pages: Callable[[], list[str]] | None) -> None:
    names = [f"pages/{number:03d}" for number in range(FILES)]
    for name in names:
        storage.put_new(name, b"x")
    _expect(storage.names("pages/"), names, "the listing")
    if list_in_pages is not None:
        _expect(sorted(list_in_pages()), names, f"the listing in pages of {PAGE}")


def _delete(storage: Storage) -> None:
    storage.put_new("gone", b"1")
    storage.remove("gone")
    storage.remove("gone")
    with contextlib.suppress(FileNotFoundError):
        storage.get("gone")
        raise CheckFailedError("it is still there")


def _clean_up(storage: Storage, say: Callable[[str], None]) -> bool:
    """Remove all written files; return False if some remain."""
    folders = ["", "race/", "listed/", "pages/"]
    try:
        for folder in folders:
            for name in storage.names(folder):
                storage.remove(name)
        left = [name for folder in folders for name in storage.names(folder)]
    except StoreError as error:
        say(f"FAILED  all files are removed again: {error}")
        return False
    if left:
        say(f"FAILED  all files are removed again: {', '.join(left)} remain")
        return False
    if isinstance(storage, LocalStorage):
        for folder in reversed(folders):
            with contextlib.suppress(OSError):
                Path(storage.folder, folder).rmdir()
    say("passed  all files are removed again")
    return True
