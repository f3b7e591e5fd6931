"""From a batch's files to its rows, checked against the commit record.

`read` is for callers that need all rows: it reads whole files into memory and computes the checksum
as the pieces arrive. `open` is for callers that need some rows: it maps safetensors and raw files,
and caches parsed files up to a limit of bytes. (Published files never change. If somebody truncates
a mapped file nevertheless, the process is killed, as with any mapping.)

Checked are size and crc32c if the run records them; the structure of the file; its hook point,
width, dtype and number of rows; and that the hook points of a batch have the same keys.
"""

import contextlib
import errno
import functools
import mmap
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np

from extraction.errors import CorruptBatchError, StoreError, UnsafeFileError
from extraction.formats import FORMATS, ParsedBatch
from extraction.formats.batch import Buffer
from extraction.reading.buffer_pool import TakeMemory, fresh_memory
from extraction.reading.run_contents import RunDescription, StoredBatch, StoredFile
from extraction.storage import Storage

STEP = 1 << 20
"""Bytes read at a time, so that the checksum finds them in the processor's cache."""

MAPPED = ("safetensors", "raw")
"""Formats that are parsed without reading the activations."""

MAPPED_COST = 4 << 20
"""Bytes that a mapped file counts in the cache, since each is also an open file."""

KEY_BYTES = 200
"""Approximate bytes of the keys of a row."""


class StoredFiles:
    """The files of a run's batches. Safe to use from several threads.

    Args:
        storage: storage of the run.
        description: description of the run.
        hook_points: hook points that are read.
        verify_checksums: whether to compare the crc32c of every file: each time a whole file is
            read, the first time a file is mapped.
        cache_bytes: most bytes of cached files.
    """

    def __init__(
        self,
        storage: Storage,
        description: RunDescription,
        hook_points: Sequence[str],
        *,
        verify_checksums: bool,
        cache_bytes: int,
    ):
        self._storage = storage
        self._description = description
        self._hook_points = tuple(hook_points)
        self._format = FORMATS[description.file_format]
        self._mappable = description.file_format in MAPPED
        self._verify = verify_checksums
        self._cache_bytes = cache_bytes
        self._widths = {hook: description.hidden_dim for hook in hook_points if _is_layer(hook)}
        self._open_none()

    def _open_none(self) -> None:
        """Clear the cache and everything known about files."""
        self._cached: OrderedDict[tuple[int, str], tuple[ParsedBatch, int]] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        self._intact: set[str] = set()  # mapped files whose checksum was right
        self._aligned: set[int] = set()  # batches whose hook points have the same keys

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: all but the open files and what is known about them."""
        left = ("_cached", "_cached_bytes", "_lock", "_intact", "_aligned")
        return {name: value for name, value in vars(self).items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_none()

    def read(self, batch: StoredBatch, memory: TakeMemory = fresh_memory) -> dict[str, ParsedBatch]:
        """Return all rows of a batch, for every hook point.

        Args:
            batch: the batch.
            memory: allocates the memory that local files are read into.

        Raises:
            CorruptBatchError: a file is damaged or missing; the message names it and says why.
        """
        parsed = {}
        for hook in self._hook_points:
            read = functools.partial(self._whole, memory=memory)
            parsed[hook] = self._parse(batch, hook, read)
        self._check_aligned(batch, parsed)
        return parsed

    def open(self, batch: StoredBatch, hook: str) -> ParsedBatch:
        """Return the rows of one hook point, to read some of them; the arrays are read-only.

        Raises:
            CorruptBatchError: a file is damaged or missing; the message names it and says why.
        """
        if len(self._hook_points) > 1 and batch.batch_id not in self._aligned:
            self._check_aligned(
                batch, {hook: self._open(batch, hook) for hook in self._hook_points}
            )
        return self._open(batch, hook)

    def width(self, hook: str, batches: Sequence[StoredBatch]) -> int:
        """Return the width of a hook point's rows; other than for layers it is read from a file."""
        if hook not in self._widths:
            for batch in batches:
                with contextlib.suppress(CorruptBatchError):
                    self._open(batch, hook)
                    break
        return self._widths.get(hook, self._description.hidden_dim)

    def _open(self, batch: StoredBatch, hook: str) -> ParsedBatch:
        key = batch.batch_id, hook
        with self._lock:
            if key in self._cached:
                self._cached.move_to_end(key)
                return self._cached[key][0]
        mapped = self._mappable and self._storage.is_local
        parsed = self._parse(batch, hook, self._mapped if mapped else self._whole)
        cost = len(parsed.row_keys) * KEY_BYTES + (MAPPED_COST if mapped else parsed.stored.nbytes)
        with self._lock:
            self._cached_bytes -= self._cached.pop(key, (None, 0))[1]
            self._cached[key] = parsed, cost
            self._cached_bytes += cost
            while self._cached_bytes > self._cache_bytes and len(self._cached) > 1:
                self._cached_bytes -= self._cached.popitem(last=False)[1][1]
        return parsed

    def _parse(self, batch: StoredBatch, hook: str, read) -> ParsedBatch:
        file, sidecar = batch.files[hook], batch.sidecars.get(hook)
        with self._named(file):
            parsed = self._format.parse(
                read(file), None if sidecar is None else self._whole(sidecar)
            )
            rows, width = parsed.stored.shape
            if parsed.hook_point != hook:
                raise CorruptBatchError(f"holds {parsed.hook_point}, not {hook}")
            if rows != batch.rows:
                raise CorruptBatchError(f"holds {rows} rows, not {batch.rows}")
            if width != self._widths.setdefault(hook, width):
                raise CorruptBatchError(f"has rows of width {width}, not {self._widths[hook]}")
            if parsed.dtype != (self._description.dtype or parsed.dtype):
                raise CorruptBatchError(f"is {parsed.dtype}, not {self._description.dtype}")
        return parsed

    def _check_aligned(self, batch: StoredBatch, parsed: dict[str, ParsedBatch]) -> None:
        first, *others = self._hook_points
        for hook in others:
            if not parsed[first].row_keys.same_rows(parsed[hook].row_keys):
                with self._named(batch.files[hook]):
                    raise CorruptBatchError(
                        f"its rows' keys are not those of {batch.files[first].name}"
                    )
        self._aligned.add(batch.batch_id)

    @contextlib.contextmanager
    def _named(self, file: StoredFile):
        """Prefix the file's name to the errors of a `with` block."""
        place = f"{self._storage.address}/{file.name}"
        try:
            yield
        except CorruptBatchError as error:
            raise type(error)(f"{place}: {error}") from error
        except FileNotFoundError as error:
            raise CorruptBatchError(f"{place} is missing") from error
        except UnsafeFileError as error:
            raise CorruptBatchError(str(error)) from error
        except OSError as error:
            if error.errno == errno.EIO:  # a bad disk; other errors are not damage
                raise CorruptBatchError(f"{place} cannot be read: {error.strerror}") from error
            raise

    def _whole(self, file: StoredFile, memory: TakeMemory = fresh_memory) -> Buffer:
        opened = self._storage.open_local(file.name)
        if opened is None:
            data = np.frombuffer(bytearray(self._storage.get(file.name)), np.uint8)
            self._check_size(file, len(data))
            found = google_crc32c.extend(0, data) if self._checked(file) else 0
        else:
            with opened as stream:
                size = os.fstat(stream.fileno()).st_size
                self._check_size(file, size)
                data = memory(size)
                found = _fill(stream, data, self._checked(file))
        self._check_crc32c(file, found)
        return data.data

    def _mapped(self, file: StoredFile) -> Buffer:
        opened = self._storage.open_local(file.name)
        assert opened is not None
        with opened as stream:
            size = os.fstat(stream.fileno()).st_size
            self._check_size(file, size)
            if file.name not in self._intact and self._checked(file):
                self._check_crc32c(file, _crc32c_of(stream, size))
                self._intact.add(file.name)
            if not size:  # cannot be mapped
                return b""
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    def _checked(self, file: StoredFile) -> bool:
        return self._verify and file.crc32c is not None

    def _check_size(self, file: StoredFile, size: int) -> None:
        if file.bytes is not None and size != file.bytes:
            raise CorruptBatchError(f"is {size} bytes, not {file.bytes}")

    def _check_crc32c(self, file: StoredFile, found: int) -> None:
        if self._checked(file) and f"{found:08x}" != file.crc32c:
            raise CorruptBatchError(f"its crc32c is {found:08x}, not {file.crc32c}: it is damaged")


def listing_problems(
    storage: Storage,
    known: Sequence[StoredBatch],
    batches: Sequence[StoredBatch],
    *,
    with_crc32c: bool,
) -> dict[int, str]:
    """Return the damage that a listing of the files shows, by batch id.

    Args:
        storage: storage of the run.
        known: batches that were looked at before.
        batches: batches to check.
        with_crc32c: compare the checksums of a listing that has them.

    Raises:
        StoreError: a file is named by two of the batches.
    """
    there = storage.infos()
    listed = Counter(file.name for b in known for file in b.all_files())
    listed.update(file.name for b in batches for file in b.all_files())
    problems: dict[int, str] = {}
    for batch in batches:
        for file in batch.all_files():
            found, place = there.get(file.name), f"{storage.address}/{file.name}"
            if listed[file.name] > 1:
                raise StoreError(f"{place} is named by more than one batch or layer")
            if found is None:
                problem = "is missing"
            elif file.bytes not in (None, found.bytes):
                problem = f"is {found.bytes} bytes, not {file.bytes}"
            elif batch.rows > found.bytes:
                problem = f"is {found.bytes} bytes, too few for {batch.rows} rows"
            elif with_crc32c and found.crc32c and file.crc32c not in (None, found.crc32c):
                problem = f"has the crc32c {found.crc32c}, not {file.crc32c}"
            else:
                continue
            problems.setdefault(batch.batch_id, f"{place} {problem}")
    return problems


def _fill(stream, data: np.ndarray, checked: bool) -> int:
    """Read a file into an array of its size; return its crc32c, or 0 if not `checked`."""
    crc = at = 0
    step = STEP if checked else len(data)
    while at < len(data):
        # The checksum library accepts numpy arrays without a copy, but not memoryviews.
        count = stream.readinto(data[at : at + step])
        if not count:
            raise CorruptBatchError("became shorter while it was read")
        if checked:
            crc = google_crc32c.extend(crc, data[at : at + count])
        at += count
    return crc


def _crc32c_of(stream, size: int) -> int:
    scratch, crc = np.empty(min(STEP, size), np.uint8), 0
    while count := stream.readinto(scratch):
        crc = google_crc32c.extend(crc, scratch[:count])
    return crc


def _is_layer(hook: str) -> bool:
    return hook.removeprefix("layer_").isdecimal() and hook.startswith("layer_")
