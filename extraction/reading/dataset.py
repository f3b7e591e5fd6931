"""Runs as data: rows by number, their keys, and streams of batches for training.

    acts = ActivationDataset("activations", layer=12)       # or gs://bucket/prefix
    acts.info.rows, acts[5], acts[100:200], acts.keys(slice(100, 200)).task_ids
    for batch in acts.batches(4096, shuffle_seed=0, framework="jax"):
        ...                                                 # [4096, hidden]

It needs numpy and google-crc32c. Read in this order: `run_contents` (which batches there are),
`stored_files` (from a file to checked rows), `row_numbers`, `shuffle` (the order of a stream),
`batch_stream`.

Rows have numbers in the order of their batches. A run that is still being written may commit
batch 4 before batch 3; `refresh` puts what is new behind what was there, so within one
`ActivationDataset` a row's number never changes. Another one, opened later, counts by batch id.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extraction.errors import CorruptBatchError, StoreError
from extraction.formats import ParsedBatch
from extraction.formats.float_types import to_float32
from extraction.hook_point_names import few
from extraction.reading.batch_stream import BatchStream, StreamSettings
from extraction.reading.buffer_pool import RecycledMemory, TakeMemory
from extraction.reading.frameworks import presenter, with_dtype
from extraction.reading.listed_run import open_run
from extraction.reading.read_ahead import threads_for
from extraction.reading.row_filters import (
    TOGETHER,
    KeptRows,
    ReadBatch,
    RowFilter,
    RowFilters,
    limits_of,
    median_norms,
    rows_above,
)
from extraction.reading.row_numbers import EVERY, Place, RowNumbers, is_number
from extraction.reading.run_contents import (
    StoredBatch,
    chosen_hook_points,
)
from extraction.reading.run_info import RunInfo
from extraction.reading.shuffle_buffer import RowSource
from extraction.reading.stored_files import StoredFiles, listing_problems
from extraction.run.rows import RowBlock
from extraction.run.statistics import MAX_NORM_MULTIPLE
from extraction.storage import Storage

if TYPE_CHECKING:
    from extraction.reading.torch_batches import TorchBatches

log = logging.getLogger(__name__)

CACHE_BYTES = 512 << 20
POOL_ROWS = 1 << 16

KEY_COLUMNS = {
    "task_ids": object,
    "sample_idx": np.int64,
    "step": np.int32,
    "position": np.int32,
    "token_id": np.int32,
    "timestamps": object,
}


class ActivationDataset:
    """The rows of one layer of a run, or of several layers aligned row by row.

    Opening it reads the commit records (or `metadata.json`, in a folder without `_run/`) and
    lists the files; activations are read when they are asked for. Every file is compared with the
    checksum in its record. For rows by number, local safetensors and raw files are mapped, so
    that a few rows cost a few pages; the checksum costs a reading of the whole file, the first
    time that one of its rows is touched.

    Args:
        source: folder, `gs://bucket/prefix`, `s3://bucket/prefix`, or an open back end.
        layer: 12, `"layer_12"` or any name of another hook point (TransformerLens' and Hugging
            Face's too): arrays are `[rows, width]`. Several of them: dictionaries of such arrays,
            by the names asked with. None: the only one there is.
        dtype: `"float32"`, which bfloat16 is widened to exactly, or `"stored"`.
        on_bad: what streams do at a damaged batch: `"raise"`, or `"skip"` it with all its hook
            points, and note it in `skipped`. Rows asked for by number are never skipped.
        verify_checksums: False: files are not compared with the checksums in their records.
        cache_bytes: that files which rows were taken from by number are kept up to.

    Attributes:
        hook_points: that are read, by their names in the run.
        skipped: why batches were left out, by batch id.

    Raises:
        StoreError: there is no run, or no such layer.
        CorruptBatchError: files are missing or of another size than recorded.
    """

    def __init__(
        self,
        source: str | Path | Storage,
        layer: int | str | Sequence[int | str] | None = None,
        *,
        dtype: str = "float32",
        on_bad: str = "raise",
        verify_checksums: bool = True,
        cache_bytes: int = CACHE_BYTES,
    ):
        if dtype not in ("float32", "stored"):
            raise StoreError(f"dtype must be 'float32' or 'stored', not {dtype!r}")
        if on_bad not in ("raise", "skip"):
            raise StoreError(f"on_bad must be 'raise' or 'skip', not {on_bad!r}")
        self._run = open_run(source)
        self._storage = self._run.storage
        run = self._run.description
        self._single = isinstance(layer, str) or not isinstance(layer, Iterable)
        self._asked = chosen_hook_points(layer, run.hook_points, self._storage.address)
        self.hook_points = tuple(self._asked)
        self._stored = dtype == "stored"
        if self._stored and run.dtype is None:
            raise StoreError(f"{self._storage.address} does not tell its dtype; read it as float32")
        self._bits = self._stored and run.dtype == "bfloat16"
        self._dtype = np.dtype(np.uint16 if self._bits else np.float32)
        with_dtype(np.zeros(0, self._dtype), self._bits)  # refused now, not after a while
        self._skip = on_bad == "skip"
        self._verify = verify_checksums
        self._files = StoredFiles(
            self._storage,
            run,
            self.hook_points,
            verify_checksums=verify_checksums,
            cache_bytes=cache_bytes,
        )
        self.skipped: dict[int, str] = {}
        self._known: dict[int, StoredBatch] = {}  # those left out among them
        self._numbers = RowNumbers(())
        self._info: RunInfo | None = None
        self.refresh()

    def __len__(self) -> int:
        return self._numbers.rows

    def __repr__(self) -> str:
        hooks = [f"{hook} [{width}]" for hook, width in self._widths().items()]
        return (
            f"ActivationDataset({self._storage.address!r}: {len(self):,} rows of {few(hooks)},"
            f" {self._run.description.dtype if self._stored else 'float32'})"
        )

    @property
    def info(self) -> RunInfo:
        """Of the run, as of the last `refresh`."""
        if self._info is None:
            run, progress = self._run.description, self._run.progress()
            self._info = RunInfo(
                model_name=run.model_name,
                hook_points=run.hook_points,
                width=self._widths(),
                dtype=run.dtype,
                format=run.file_format,
                rows=len(self),
                sequences=progress.sequences,
                complete=progress.complete,
                run_id=run.run_id,
                statistics=progress.statistics,
            )
        return self._info

    def refresh(self) -> int:
        """Takes up the batches committed since; rows that were there keep their numbers.

        Returns:
            New rows.

        Raises:
            StoreError: see the class.
        """
        rows = len(self)
        new = self._run.new_batches(self.hook_points, self._known.keys())
        known = list(self._known.values())
        problems = (
            listing_problems(self._storage, known, new, with_crc32c=self._verify) if new else {}
        )
        if problems and not self._skip:
            raise CorruptBatchError(next(iter(problems.values())))
        self._known |= {batch.batch_id: batch for batch in new}
        for batch_id, problem in problems.items():
            self._leave_out(batch_id, problem)
        good = [batch for batch in new if batch.batch_id not in problems]
        self._numbers = RowNumbers((*self._numbers.batches, *good))
        self._info = None
        return len(self) - rows

    def __getitem__(self, rows: Any) -> Any:
        """Rows by number: `[width]` for one, else `[rows, width]`, new arrays each time.

        Args:
            rows: a number, a slice, an array of numbers in any order, or a mask.

        Raises:
            IndexError: there is no such row.
            CorruptBatchError: a file is damaged, whatever `on_bad` is.
        """
        pieces, count = self._numbers.pieces(rows)
        result = {}
        for hook, width in self._widths().items():
            values = np.empty((count, width), self._dtype)
            for batch, here, there in pieces:
                values[there] = self._values(self._files.open(batch, hook), here)
            values = with_dtype(values, self._bits)
            result[hook] = values[0] if is_number(rows) else values
        return self._as_asked(result)

    def keys(self, rows: Any = slice(None)) -> RowBlock:
        """Where rows come from: task ids, sample indices, steps, positions, token ids, times.

        Args:
            rows: as for `[]`; one number gives a block of one row.

        Returns:
            A block without activations.
        """
        pieces, count = self._numbers.pieces(rows)
        columns = {name: np.empty(count, dtype) for name, dtype in KEY_COLUMNS.items()}
        for batch, here, there in pieces:
            found = self._files.open(batch, self.hook_points[0]).keys
            for name, column in columns.items():
                column[there] = getattr(found, name)[here]
        return RowBlock(**columns, activations={})

    def find(self, task_id: str, sample_idx: int | None = None) -> np.ndarray:
        """Numbers of a task's rows, or of one of its samples; looks through all batches."""
        found = [np.zeros(0, np.int64)]
        for first, batch in self._numbers:
            keys = self._files.open(batch, self.hook_points[0]).keys
            wanted = keys.task_ids == task_id
            if sample_idx is not None:
                wanted &= keys.sample_idx == sample_idx
            found.append(first + np.flatnonzero(wanted))
        return np.concatenate(found)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        pool_rows: int = POOL_ROWS,
        drop_last: bool = False,
        framework: str = "numpy",
        epochs: int | None = 1,
        start: Mapping[str, Any] | None = None,
        part: tuple[int, int] = (0, 1),
        max_norm_multiple: float | None = None,
        exclude_special: bool | Sequence[int] = False,
        skip_first: int = 0,
    ) -> BatchStream:
        """All rows there are now, in batches; every row once in each epoch.

        Files are read ahead in threads, those of two pools if shuffled; both are in memory.

        Args:
            batch_size: rows of a batch; the last of an epoch has what is left.
            shuffle_seed: None: in the order of the batches. Else files come in random order and
                rows are mixed among `pool_rows` of them, in each epoch anew; the same seed gives
                the same order on every machine and for every layer.
            pool_rows: rows that are mixed; a batch with more is a pool alone.
            drop_last: leave the last batch of an epoch out if it is not full.
            framework: of the batches: numpy, jax (on its default device) or torch.
            epochs: None: without end.
            start: the `position` of an earlier stream with the same seed and pool: what would
                have followed there follows here, of the batches that it knew.
            part: `(index, parts)`: of `parts` streams with the same settings, each in a process of
                its own, this one reads the files that no other reads in that epoch. All together
                give every row once. Each has a `position` of its own.
            max_norm_multiple: leave out rows whose norm is above this many times the median norm of
                their hook point, or not finite: 10 leaves attention sinks out, mostly. Of several
                hook points, at any of them. The stream's `left_out` counts them.
            exclude_special: leave out the rows of special tokens; True: of those that the run
                records, or their token ids.
            skip_first: leave out rows at positions below this number.

        Returns:
            An iterator over `[batch_size, width]`, or dictionaries of such, with a `position` and
            `left_out`.

        Raises:
            StoreError: an argument does not fit; the run does not tell what a filter needs.
            CorruptBatchError: while it is read: a file is damaged.
        """
        asked = RowFilters(
            max_norm_multiple=max_norm_multiple,
            exclude_special=exclude_special,
            skip_first=skip_first,
        )
        filters = self._filters(asked, start)
        source = RowSource(
            read=functools.partial(self._read, memory=RecycledMemory().take, filters=filters),
            present=presenter(framework, self._asked, self._single, self._bits),
            widths=self._widths(),
            dtype=self._dtype,
            threads=threads_for(self._storage),
        )
        settings = StreamSettings(
            batch_size=batch_size,
            shuffle_seed=shuffle_seed,
            pool_rows=pool_rows,
            drop_last=drop_last,
            epochs=epochs,
        )
        batches = self._numbers.batches if start is None else list(self._known.values())
        told = None if filters is None else filters.position()
        run_id = self._run.description.run_id
        return BatchStream(source, batches, settings, run_id, start, part, told)

    def torch(
        self,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        pool_rows: int = POOL_ROWS,
        drop_last: bool = False,
        start: Mapping[str, Any] | None = None,
        max_norm_multiple: float | None = None,
        exclude_special: bool | Sequence[int] = False,
        skip_first: int = 0,
    ) -> "TorchBatches":
        """Return a torch `IterableDataset` of batches, for `DataLoader(..., batch_size=None)`.

            batches = acts.torch(4096, shuffle_seed=0)
            loader = DataLoader(batches, batch_size=None, num_workers=2)
            for epoch in range(3):
                batches.set_epoch(epoch)
                for batch in loader:
                    ...                                     # torch.Tensor [4096, hidden]

        One pass over the loader is one epoch. The loader's workers, forked or spawned, share the
        files, so that every row comes once in an epoch; each worker shuffles within its own
        `pool_rows` and ends with a batch of what is left. Processes of one training (ranks) are
        not told apart; give each a `part` of `batches`.

        Args:
            batch_size: see `batches`.
            shuffle_seed: see `batches`; the order depends on the number of workers too.
            pool_rows: see `batches`; two pools are in memory for each worker.
            drop_last: leave the last batch of each worker out if it is not full.
            start: what `TorchBatches.position` gave, to go on from there. With a filter there are
                no positions.
            max_norm_multiple: see `batches`.
            exclude_special: see `batches`.
            skip_first: see `batches`.

        Raises:
            ImportError: torch is not installed.
            StoreError: an argument does not fit.
        """
        from extraction.reading.torch_batches import TorchBatches

        asked = {"shuffle_seed": shuffle_seed, "pool_rows": pool_rows, "drop_last": drop_last}
        filters = RowFilters(
            max_norm_multiple=max_norm_multiple,
            exclude_special=exclude_special,
            skip_first=skip_first,
        )
        if filters:
            asked |= dataclasses.asdict(filters)
        countable = not self._skip and not filters
        return TorchBatches(self, batch_size, asked, start, countable=countable)

    def kept_rows(
        self,
        *,
        max_norm_multiple: float | None = None,
        exclude_special: bool | Sequence[int] = False,
        skip_first: int = 0,
    ) -> KeptRows:
        """Return the numbers of the rows that filters keep, for `[]`; reads all rows.

            kept = acts.kept_rows(max_norm_multiple=10, skip_first=1)
            acts[kept.numbers], acts.keys(kept.numbers), kept.left_out

        Args:
            max_norm_multiple: see `batches`.
            exclude_special: see `batches`.
            skip_first: see `batches`.

        Raises:
            StoreError: an argument does not fit; the run does not tell what a filter needs.
            CorruptBatchError: a file is damaged.
        """
        asked = RowFilters(
            max_norm_multiple=max_norm_multiple,
            exclude_special=exclude_special,
            skip_first=skip_first,
        )
        filters = self._filters(asked, None)
        if filters is None:
            return KeptRows(np.arange(len(self)), {TOGETHER: 0})
        return filters.kept_of_all(self._all_rows())

    def outlier_rows(self, factor: float = MAX_NORM_MULTIPLE) -> Any:
        """Numbers of the rows whose norm is beyond `factor` times the median, or not finite.

        Qwen's attention sinks are such rows; training on them is rarely wanted. Nothing is ever
        dropped for it here. The median is that of the run's statistics, right within 4.5 %; in a
        folder without them the rows are read once more for it. All rows are read.

        Returns:
            `[found]` int64 in ascending order, or a dictionary of such.
        """
        medians = self._medians()
        limits = {h: None if median is None else factor * median for h, median in medians.items()}
        return self._as_asked(rows_above(limits, self._all_rows()))

    def _medians(self) -> dict[str, float | None]:
        """The median norm of each hook point; None: no row is finite."""
        statistics = self.info.statistics
        if all(hook in statistics for hook in self.hook_points):
            return {hook: statistics[hook]["median_norm"] for hook in self.hook_points}
        return median_norms(self.hook_points, self._all_rows())

    def _filters(self, asked: RowFilters, start: Mapping[str, Any] | None) -> RowFilter | None:
        """What applies the filters that are asked for; None: there are none."""
        if not asked:
            return None
        limits: dict[str, float | None] = {}
        if asked.max_norm_multiple is not None:
            limits = limits_of(start, self.hook_points) or {
                hook: None if median is None else asked.max_norm_multiple * median
                for hook, median in self._medians().items()
            }
        recorded = self._run.description.special_token_ids
        return RowFilter(asked, limits, asked.special_ids(recorded, self._storage.address))

    def _all_rows(self) -> Iterator[tuple[int, int, dict[str, ParsedBatch]]]:
        """Yield each batch: the number of its first row, its id, and its rows until the next."""
        memory = RecycledMemory().take
        for first, batch in self._numbers:
            parsed = self._parsed(batch, memory)
            if parsed is not None:
                yield first, batch.batch_id, parsed

    def _read(
        self, batch: StoredBatch, memory: TakeMemory, filters: RowFilter | None
    ) -> ReadBatch | None:
        """The rows of a batch for a stream; None: it is damaged, and left out."""
        parsed = self._parsed(batch, memory)
        if parsed is None:
            return None
        rows = {hook: self._values(part) for hook, part in parsed.items()}
        if filters is None:
            return ReadBatch(rows=rows)
        return ReadBatch.of(rows, filters.kept(parsed, batch.batch_id))

    def _parsed(self, batch: StoredBatch, memory: TakeMemory) -> dict[str, ParsedBatch] | None:
        try:
            return self._files.read(batch, memory)
        except CorruptBatchError as error:
            if not self._skip:
                raise
            self._leave_out(batch.batch_id, str(error))
            return None

    def _leave_out(self, batch_id: int, problem: str) -> None:
        # Two epochs may come upon it at the same time; one of them tells.
        if self.skipped.setdefault(batch_id, problem) is problem:
            log.warning("batch %d is left out: %s", batch_id, problem)

    def _as_asked(self, result: dict[str, np.ndarray]) -> Any:
        """The only array, or a dictionary by the names asked with."""
        if self._single:
            return result[self.hook_points[0]]
        return {self._asked[hook]: values for hook, values in result.items()}

    def _widths(self) -> dict[str, int]:
        return {hook: self._files.width(hook, self._numbers.batches) for hook in self.hook_points}

    def _values(self, parsed: ParsedBatch, rows: Place = EVERY) -> np.ndarray:
        """Rows in the dtype asked for; bits of bfloat16 stay bits until the very end."""
        stored = parsed.stored[rows]
        return stored if self._stored else to_float32(stored, parsed.dtype)
