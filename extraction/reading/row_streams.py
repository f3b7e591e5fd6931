"""Streams and filters over the rows of whole batches, for `ActivationDataset`.

Rows by number are read elsewhere, from files that stay open (`StoredFiles.open`). A stream or a
filter needs every row of a batch at all hook points, so it reads whole files (`StoredFiles.read`),
and with `on_bad="skip"` it leaves a damaged batch out.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from extraction.errors import CorruptBatchError
from extraction.formats import ParsedBatch
from extraction.reading.batch_stream import BatchStream, StreamSettings
from extraction.reading.buffer_pool import RecycledMemory, TakeMemory, fresh_memory
from extraction.reading.frameworks import RowForm, presenter
from extraction.reading.kept_files import FilePart, KeptFile, KeptFiles
from extraction.reading.read_ahead import in_order, threads_for
from extraction.reading.row_filters import (
    TOGETHER,
    KeptRows,
    NumberedBatch,
    ReadBatch,
    RowFilter,
    RowFilters,
    limits_above,
    limits_of,
    median_norms,
)
from extraction.reading.row_numbers import RowNumbers
from extraction.reading.run_contents import RunContents, StoredBatch
from extraction.reading.shuffle_buffer import RowSource
from extraction.reading.stored_files import StoredFiles

Medians = Callable[[], Mapping[str, float | None]]
"""Function that returns the median norm of each hook point; None if no row is finite.

It may read all rows, so it is called only if a filter needs it."""

AHEAD_THREADS = 2
"""Threads that read whole files of a bucket ahead; at most two files for each are in memory."""

log = logging.getLogger(__name__)


class RowStreams:
    """The rows of whole batches of a run.

    Args:
        run: the run.
        files: files of the run, for the hook points that are read.
        form: form in which the user gets rows.
        skip: whether damaged batches are left out; else they raise.

    Attributes:
        skipped: why each batch was left out, by batch id.
    """

    def __init__(self, run: RunContents, files: StoredFiles, form: RowForm, *, skip: bool):
        self._run, self._files, self._form, self._skip = run, files, form, skip
        self.skipped: dict[int, str] = {}

    def stream(
        self,
        batches: Sequence[StoredBatch],
        settings: StreamSettings,
        filters: RowFilters,
        medians: Medians,
        *,
        widths: Mapping[str, int],
        framework: str,
        start: Mapping[str, Any] | None,
        part: tuple[int, int],
    ) -> BatchStream:
        """Return a stream of the rows that filters keep.

        Args:
            batches: stored batches, in their stored order.
            settings: size, order and number of the stream's batches.
            filters: rows to leave out.
            medians: returns the median norms.
            widths: width of each hook point's rows.
            framework: see `ActivationDataset.batches`.
            start: see `ActivationDataset.batches`.
            part: see `ActivationDataset.batches`.

        Raises:
            StoreError: an argument does not fit, or the run does not record what a filter needs.
        """
        row_filter = self._row_filter(filters, medians, start)
        source = RowSource(
            read=functools.partial(self._read, memory=RecycledMemory().take, row_filter=row_filter),
            present=presenter(framework, self._form),
            widths=widths,
            dtype=self._form.dtype,
            threads=threads_for(self._run.storage),
        )
        of_position = None if row_filter is None else row_filter.position()
        run_id = self._run.description.run_id
        return BatchStream(source, batches, settings, run_id, start, part, of_position)

    def kept_rows(self, numbers: RowNumbers, filters: RowFilters, medians: Medians) -> KeptRows:
        """Return the numbers of the rows that filters keep; reads all rows if there is a filter.

        Args:
            numbers: numbers of the rows.
            filters: rows to leave out.
            medians: returns the median norms.

        Raises:
            StoreError: the run does not record what a filter needs.
            CorruptBatchError: a file is damaged.
        """
        row_filter = self._row_filter(filters, medians, None)
        if row_filter is None:
            return KeptRows(np.arange(numbers.rows), {TOGETHER: 0})
        return row_filter.kept_of_all(self.numbered(numbers))

    def kept_files(
        self,
        numbers: RowNumbers,
        filters: RowFilters,
        medians: Medians,
        *,
        part: FilePart = (0, 1),
        start: int = 0,
        only: np.ndarray | None = None,
    ) -> KeptFiles:
        """Yield the kept rows of each file; a bucket's files are read ahead.

        Args:
            numbers: numbers of the rows.
            filters: rows to leave out.
            medians: returns the median norms.
            part: see `FilePart`.
            start: files that end at or before this row number are not read.
            only: ascending row numbers; files without one of them are not read. None: all files.

        Raises:
            StoreError: the run does not record what a filter needs.
            CorruptBatchError: a file is damaged.
        """
        row_filter = self._row_filter(filters, medians, None)
        wanted = [
            (first, batch)
            for place, (first, batch) in enumerate(numbers)
            if place % part[1] == part[0]
            and first + batch.rows > start
            and (only is None or np.diff(np.searchsorted(only, (first, first + batch.rows)))[0])
        ]

        def read(file: tuple[int, StoredBatch]) -> KeptFile | None:
            first, batch = file
            parsed = self._parsed(batch, fresh_memory)
            if parsed is None:
                return None
            some = next(iter(parsed.values()))
            rows = {hook: self._form.values(values) for hook, values in parsed.items()}
            kept = KeptRows(np.arange(batch.rows), {})
            if row_filter is not None:
                kept = row_filter.kept(parsed, batch.batch_id)
                rows = ReadBatch.of(rows, kept).rows
            return KeptFile(
                batch_id=batch.batch_id,
                first=first,
                end=first + batch.rows,
                numbers=first + kept.numbers,
                rows=rows,
                left_out=kept.left_out,
                read_keys=lambda: some.keys,
            )

        threads = 1 if self._run.storage.is_local else AHEAD_THREADS
        return (file for _, file in in_order(read, wanted, threads) if file is not None)

    def medians(
        self, numbers: RowNumbers, statistics: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, float | None]:
        """Return the median norm of each hook point; None if no row is finite.

        Args:
            numbers: numbers of the rows; all are read if the run records no statistics.
            statistics: the statistics that the run records, see `RunInfo`.

        Raises:
            CorruptBatchError: a file is damaged.
        """
        hooks = tuple(self._form.names)
        if all(hook in statistics for hook in hooks):
            return {hook: statistics[hook]["median_norm"] for hook in hooks}
        return median_norms(hooks, self.numbered(numbers))

    def numbered(self, numbers: RowNumbers) -> Iterator[NumberedBatch]:
        """Yield all batches with their rows, which stay valid until the next batch.

        Args:
            numbers: numbers of the rows.

        Raises:
            CorruptBatchError: a file is damaged.
        """
        memory = RecycledMemory().take
        for first, batch in numbers:
            parsed = self._parsed(batch, memory)
            if parsed is not None:
                yield first, batch.batch_id, parsed

    def leave_out(self, batch_id: int, problem: str) -> None:
        """Note that a batch is damaged, and log it the first time.

        Args:
            batch_id: number of the batch.
            problem: description of the damage.
        """
        # Threads of two epochs may find it at the same time; one of them logs it.
        if self.skipped.setdefault(batch_id, problem) is problem:
            log.warning("batch %d is left out: %s", batch_id, problem)

    def _row_filter(
        self, filters: RowFilters, medians: Medians, start: Mapping[str, Any] | None
    ) -> RowFilter | None:
        """Return what applies the filters to this run; None if there are none."""
        if not filters:
            return None
        limits: Mapping[str, float | None] = {}
        if filters.max_norm_multiple is not None:
            # A continued stream keeps the limits of its beginning, though the run has grown.
            limits = limits_of(start, tuple(self._form.names)) or limits_above(
                medians(), filters.max_norm_multiple
            )
        recorded = self._run.description.special_token_ids
        special_ids = filters.special_ids(recorded, self._run.storage.address)
        return RowFilter(filters, limits, special_ids)

    def _read(
        self, batch: StoredBatch, memory: TakeMemory, row_filter: RowFilter | None
    ) -> ReadBatch | None:
        """Return the kept rows of a batch; None if it is damaged and left out."""
        parsed = self._parsed(batch, memory)
        if parsed is None:
            return None
        rows = {hook: self._form.values(part) for hook, part in parsed.items()}
        if row_filter is None:
            return ReadBatch(rows=rows)
        return ReadBatch.of(rows, row_filter.kept(parsed, batch.batch_id))

    def _parsed(self, batch: StoredBatch, memory: TakeMemory) -> dict[str, ParsedBatch] | None:
        try:
            return self._files.read(batch, memory)
        except CorruptBatchError as error:
            if not self._skip:
                raise
            self.leave_out(batch.batch_id, str(error))
            return None
