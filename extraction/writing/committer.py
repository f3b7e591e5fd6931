"""From the rows of a unit to a committed batch: serialise, publish, record.

The files are written first and the commit record last, so a process that dies in between leaves
files that nobody counts; the next attempt at the unit replaces them. While the disk is full, the
committer waits with the unit in memory, and then writes all of its files again.

Only the caller's thread touches the disk. While it writes a file, a second thread computes the
file's checksums and the content of the next file, and for large files a third thread computes the
statistics, so that the disk does not wait.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import numpy as np

from extraction.errors import ConflictError
from extraction.formats import written_format
from extraction.formats.batch import SerialisedBatch, check_dtype
from extraction.reading.buffer_pool import RecycledMemory
from extraction.run.records import CommitLog, CommitRecord, CommittedFile
from extraction.run.rows import RowBlock, timestamp
from extraction.run.statistics import RowStatistics
from extraction.run.vocabulary import Vocabulary
from extraction.run_layout import batch_file, outputs_name
from extraction.storage import Buffers, Storage
from extraction.writing.disk_retry import FULL, STALL_TIMEOUT, patiently

CONTENTS = 3
"""Most files held in memory at once: one being checksummed, one written, one serialised."""

LARGE_ROWS = 4 << 20
"""Bytes of a hook point's rows from which a separate thread computes their statistics. For fewer,
contention for the interpreter lock costs the writing thread more than the third thread saves.
"""


class Committer:
    """Commits units.

    Args:
        storage: storage of the run.
        hook_points: names, in the order of their files.
        file_format: `pickle` or `safetensors`.
        dtype: dtype of the stored activations, `float32` or `bfloat16`.
        stall_timeout: seconds to wait while the disk is full.

    Raises:
        StoreError: the format cannot store the dtype.
    """

    def __init__(
        self,
        storage: Storage,
        hook_points: Sequence[str],
        file_format: str = "pickle",
        dtype: str = "float32",
        *,
        stall_timeout: float = STALL_TIMEOUT,
    ):
        self._storage = storage
        self._hook_points = tuple(hook_points)
        self._format = written_format(file_format)
        check_dtype(file_format, self._format.dtypes, dtype)
        self._dtype = dtype
        self._memory = RecycledMemory(CONTENTS).take
        self._patiently = functools.partial(patiently, storage.address, stall_timeout=stall_timeout)

    def commit(
        self,
        batch_id: int,
        block: RowBlock | None,
        outputs: Sequence[Mapping[str, Any]] | None = None,
        n_sequences: int | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> CommitRecord:
        """Write the files of a unit and then its commit record; afterwards the batch exists.

        A batch that exists already is left as it is, and its record returned.

        Args:
            batch_id: number of the unit, from 1.
            block: rows of the unit; None if it has none.
            outputs: the output lines of its samples, including skipped ones; None: the run has no
                output lines.
            n_sequences: samples to count for it; None: all that have rows in it.
            vocabulary: text of token ids, to be recorded; None: no texts are known.

        Raises:
            StorageUnavailableError: the disk stayed full, or fails. The unit does not exist then;
                units committed before it do.
            ConflictError: another process committed the batch meanwhile.
        """
        log = CommitLog(self._storage)
        with contextlib.suppress(FileNotFoundError):
            return log.read(batch_id)  # its files must stay as the record says
        record = self._patiently(lambda: self._write(batch_id, block, outputs, n_sequences))
        record = dataclasses.replace(record, vocabulary=vocabulary)
        if not self._patiently(lambda: log.put(record)) and log.read(batch_id) != record:
            raise self._overtaken(batch_id)
        return record

    def _overtaken(self, batch_id: int) -> ConflictError:
        return ConflictError(
            f"{self._storage.address}: another process committed batch {batch_id} at the same time;"
            f" run `python -m extraction verify {self._storage.address}`"
        )

    def _write(
        self,
        batch_id: int,
        block: RowBlock | None,
        outputs: Sequence[Mapping[str, Any]] | None,
        n_sequences: int | None,
    ) -> CommitRecord:
        """Write the files of a unit, replacing those of an attempt without a commit record."""
        files: dict[str, Future[CommittedFile]] = {}
        statistics: dict[str, Future[RowStatistics]] = {}

        def contents() -> Iterator[tuple[str, Buffers]]:
            if block is not None:
                for hook, batch in self._serialised(block, helper):
                    rows = block.activations[hook]
                    counter = third if rows.nbytes >= LARGE_ROWS else helper
                    statistics[hook] = counter.submit(
                        RowStatistics.of, rows, self._dtype, keys=block
                    )
                    yield batch_file(hook, batch_id, self._format.extension), batch.data
                    if batch.sidecar is not None:
                        second = self._format.sidecar_extension
                        assert second is not None
                        yield batch_file(hook, batch_id, second), [batch.sidecar]
            if outputs is not None:
                lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in outputs]
                yield outputs_name(batch_id), ["".join(lines).encode()]

        def looked_at() -> Iterator[tuple[str, Buffers]]:
            for name, data in contents():
                files[name] = helper.submit(CommittedFile.of, name, data)
                yield name, data

        # The helper runs its tasks in order: a file is serialised only after the file two before
        # it was checksummed, so there are never more than `CONTENTS` in memory.
        with ThreadPoolExecutor(1, "commit") as helper, ThreadPoolExecutor(1, "count") as third:
            try:
                self._storage.replace_all(looked_at())
            except OSError as error:
                if error.errno in FULL:
                    self._make_room(batch_id, files)
                raise

        def of_hook_points(extension: str | None) -> dict[str, CommittedFile]:
            if extension is None:
                return {}
            names = {hook: batch_file(hook, batch_id, extension) for hook in statistics}
            return {hook: files[name].result() for hook, name in names.items() if name in files}

        return CommitRecord(
            batch_id=batch_id,
            n_rows=0 if block is None else len(block),
            n_sequences=_count_sequences(block) if n_sequences is None else n_sequences,
            keys_sha256=keys_digest(block, outputs or ()),
            files=of_hook_points(self._format.extension),
            sidecars=of_hook_points(self._format.sidecar_extension),
            outputs=None if outputs is None else files[outputs_name(batch_id)].result(),
            statistics={hook: found.result() for hook, found in statistics.items()},
            written_at=timestamp(),
        )

    def _make_room(self, batch_id: int, names: Iterable[str]) -> None:
        """Remove the files of a failed attempt, which take room too.

        Raises:
            ConflictError: another process committed the batch meanwhile; the files are now its own.
        """
        if batch_id in CommitLog(self._storage).batch_ids():
            raise self._overtaken(batch_id)
        for name in names:
            self._storage.remove(name)

    def _serialised(
        self, block: RowBlock, helper: Executor
    ) -> Iterator[tuple[str, SerialisedBatch]]:
        """Yield each hook point's file content, while the helper serialises the next one."""

        def serialise(hook: str) -> SerialisedBatch:
            return self._format.serialise(hook, block, self._dtype, self._memory)

        following = helper.submit(serialise, self._hook_points[0])
        for hook, next_hook in zip_longest(self._hook_points, self._hook_points[1:]):
            batch = following.result()
            if next_hook is not None:
                following = helper.submit(serialise, next_hook)
            yield hook, batch


def keys_digest(block: RowBlock | None, outputs: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the sha256 over the keys of the rows and the generated tokens, in order."""
    digest = hashlib.sha256()
    if block is not None:
        digest.update(json.dumps(block.task_ids.tolist()).encode())
        for column in (block.sample_idx, block.step, block.position, block.token_id):
            digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    for line in outputs:
        keys = ("task_id", "sample_idx", "generated_token_ids", "finish_reason")
        digest.update(json.dumps([line.get(key) for key in keys]).encode())
    return digest.hexdigest()


def _count_sequences(block: RowBlock | None) -> int:
    if block is None:
        return 0
    return len(set(zip(block.task_ids, block.sample_idx.tolist(), strict=True)))
