"""Read a run: rows by number, their keys, and streams of batches for training.

    acts = ActivationDataset("activations", layer=12)       # or gs://bucket/prefix
    acts.info.rows, acts[5], acts[100:200], acts.keys(slice(100, 200)).task_ids
    for batch in acts.batches(4096, shuffle_seed=0, framework="jax"):
        ...                                                 # [4096, hidden]

Reading needs numpy and google-crc32c. Read the modules in this order: `run_contents` (the batches
of a run), `stored_files` (from a file to checked rows), `row_numbers`, `row_streams`, `row_order`,
`batch_stream`.

Rows are numbered in the order of their batches. A run that is still being written may commit batch
4 before batch 3. `refresh` appends new batches to the known ones, so a row keeps its number within
one `ActivationDataset`. A dataset that is opened later numbers the rows by batch id.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extraction.errors import CorruptBatchError, StoreError
from extraction.hook_point_names import few
from extraction.reading.batch_stream import BatchStream, StreamSettings
from extraction.reading.frameworks import RowForm, with_dtype
from extraction.reading.kept_files import KeptFiles
from extraction.reading.listed_run import open_run
from extraction.reading.row_filters import KeptRows, RowFilters, limits_above, rows_above
from extraction.reading.row_numbers import RowNumbers, is_number
from extraction.reading.row_streams import RowStreams
from extraction.reading.run_contents import StoredBatch, chosen_hook_points
from extraction.reading.run_info import RunInfo
from extraction.reading.stored_files import StoredFiles, listing_problems
from extraction.run.rows import RowBlock
from extraction.run.statistics import MAX_NORM_MULTIPLE
from extraction.storage import Storage

if TYPE_CHECKING:
    from extraction.reading.torch_batches import TorchBatches

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

    Opening a dataset reads the commit records (or `metadata.json`, in a folder without `_run/`) and
    lists the files. Activations are read when they are needed, and every file is compared with the
    checksum in its commit record. For rows by number, local safetensors and raw files are mapped,
    so that a few rows cost a few pages. The first row of a file costs a pass over the whole file
    for the checksum.

    Args:
        source: folder, `gs://bucket/prefix`, `s3://bucket/prefix`, or an open back end.
        layer: 12, `"layer_12"`, or the name of another hook point in any spelling (also
            TransformerLens' and Hugging Face's): results are arrays `[rows, width]`. A list of
            these: results are dictionaries of such arrays, by the names in the list. None: the
            run's only hook point.
        dtype: `"float32"` (bfloat16 is widened, exactly) or `"stored"`.
        on_bad: at a damaged batch a stream raises (`"raise"`) or leaves the batch out at all hook
            points and notes it in `skipped` (`"skip"`). Rows by number always raise.
        verify_checksums: whether to compare files with the checksums in their commit records.
        cache_bytes: most bytes of the files that are cached for rows by number.

    Attributes:
        hook_points: names in the run of the hook points that are read.
        skipped: why each batch was left out, by batch id.

    Raises:
        StoreError: there is no run, or no such layer.
        CorruptBatchError: a file is missing, or has another size than its commit record says.
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
        if on_bad not in ("raise", "skip"):
            raise StoreError(f"on_bad must be 'raise' or 'skip', not {on_bad!r}")
        self._run = open_run(source)
        self._storage = self._run.storage
        run = self._run.description
        asked = chosen_hook_points(layer, run.hook_points, self._storage.address)
        self.hook_points = tuple(asked)
        single = isinstance(layer, str) or not isinstance(layer, Iterable)
        self._form = RowForm.of(dtype, run.dtype, self._storage.address, asked, single=single)
        self._skip = on_bad == "skip"
        self._verify = verify_checksums
        self._files = StoredFiles(
            self._storage,
            run,
            self.hook_points,
            verify_checksums=verify_checksums,
            cache_bytes=cache_bytes,
        )
        self._streams = RowStreams(self._run, self._files, self._form, skip=self._skip)
        self.skipped = self._streams.skipped
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
            f" {self._run.description.dtype if self._form.stored else 'float32'})"
        )

    def _repr_html_(self) -> str:
        from extraction.notebook_html import summary

        facts = {"address": str(self._storage.address), "rows": f"{len(self):,}"}
        facts |= {hook: f"[{len(self):,}, {width}]" for hook, width in self._widths().items()}
        dtype = self._run.description.dtype if self._form.stored else "float32"
        return summary("Activations", facts | {"dtype": str(dtype)})

    @property
    def stored_batches(self) -> int:
        """Number of batches, each of which has a file for every hook point."""
        return len(self._numbers.batches)

    @property
    def info(self) -> RunInfo:
        """Information about the run, as of the last `refresh`."""
        if self._info is None:
            self._info = RunInfo.of(self._run, self._widths(), len(self))
        return self._info

    def refresh(self) -> int:
        """Add the batches that were committed since; known rows keep their numbers.

        Returns:
            Number of new rows.

        Raises:
            StoreError: see the class.
            CorruptBatchError: see the class.
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
            self._streams.leave_out(batch_id, problem)
        good = [batch for batch in new if batch.batch_id not in problems]
        self._numbers = RowNumbers((*self._numbers.batches, *good))
        self._info = None
        return len(self) - rows

    def __getitem__(self, rows: Any) -> Any:
        """Return rows by number, as new arrays: `[width]` for one number, else `[rows, width]`.

        Args:
            rows: a number, a slice, an array of numbers in any order, or a mask.

        Raises:
            IndexError: there is no such row.
            CorruptBatchError: a file is damaged, also with `on_bad="skip"`.
        """
        pieces, count = self._numbers.pieces(rows)
        result = {}
        for hook, width in self._widths().items():
            values = np.empty((count, width), self._form.dtype)
            for batch, here, there in pieces:
                values[there] = self._form.values(self._files.open(batch, hook), here)
            values = with_dtype(values, self._form.bfloat16)
            result[hook] = values[0] if is_number(rows) else values
        return self._form.as_asked(result)

    def keys(self, rows: Any = slice(None)) -> RowBlock:
        """Return the keys of rows, which say where each row comes from.

        Args:
            rows: see `[]`; one number gives a block of one row.

        Returns:
            A block of task ids, sample indices, steps, positions, token ids and times, without
            activations; its `token_text` is the text of the tokens.
        """
        pieces, count = self._numbers.pieces(rows)
        columns: dict[str, Any] = {
            name: np.empty(count, dtype) for name, dtype in KEY_COLUMNS.items()
        }
        for batch, here, there in pieces:
            found = self._files.open(batch, self.hook_points[0]).keys
            for name, column in columns.items():
                column[there] = getattr(found, name)[here]
        return RowBlock(**columns, activations={}, vocabulary=self._run.vocabulary())

    def find(self, task_id: str, sample_idx: int | None = None) -> np.ndarray:
        """Return the numbers of the rows of a task or sample; reads the keys of all batches."""
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
        """Return a stream of batches of all known rows, each row once in an epoch.

        Threads read files ahead. A shuffled stream holds two shuffle buffers in memory.

        Args:
            batch_size: rows of a batch; the last batch of an epoch may have fewer.
            shuffle_seed: None: stored order. A number: in each epoch, files come in a new random
                order, and rows are shuffled within a buffer of `pool_rows`. A seed gives the same
                order on every machine and for every layer.
            pool_rows: rows of the shuffle buffer; a stored batch with more rows fills one alone.
            drop_last: leave the last batch of an epoch out if it is not full.
            framework: framework of the arrays: numpy, jax (on its default device) or torch.
            epochs: number of epochs; None for no end.
            start: the `position` of an earlier stream with the same seed and shuffle buffer. This
                stream continues there, and reads the stored batches that the earlier one knew.
            part: `(index, parts)`: of `parts` streams with the same settings, each in a process of
                its own, this one reads the files that no other reads in that epoch. All parts
                together give every row once. Each part has a `position` of its own.
            max_norm_multiple, exclude_special, skip_first: rows to leave out, see `RowFilters`;
                the stream's `left_out` counts them.

        Returns:
            An iterator over arrays `[batch_size, width]`, or over dictionaries of such arrays. It
            has a `position` and counts in `left_out`.

        Raises:
            StoreError: an argument does not fit, or the run does not record what a filter needs.
            CorruptBatchError: a file is damaged; raised when the stream reaches it.
        """
        filters = RowFilters(
            max_norm_multiple=max_norm_multiple,
            exclude_special=exclude_special,
            skip_first=skip_first,
        )
        settings = StreamSettings(
            batch_size=batch_size,
            shuffle_seed=shuffle_seed,
            pool_rows=pool_rows,
            drop_last=drop_last,
            epochs=epochs,
        )
        return self._streams.stream(
            self._numbers.batches if start is None else list(self._known.values()),
            settings,
            filters,
            self._medians,
            widths=self._widths(),
            framework=framework,
            start=start,
            part=part,
        )

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

        One pass over the loader is one epoch. The loader's workers, forked or spawned, divide the
        files, so that every row comes once in an epoch. Each worker has its own shuffle buffer, and
        its last batch may have fewer rows. The ranks of a distributed training would all read
        everything; give each rank a `part` of `batches` instead.

        Args:
            batch_size: see `batches`.
            shuffle_seed: see `batches`; the order also depends on the number of workers.
            pool_rows: see `batches`; each worker holds two shuffle buffers in memory.
            drop_last: leave the last batch of each worker out if it is not full.
            start: a `TorchBatches.position`, to continue there; not available with a filter.
            max_norm_multiple, exclude_special, skip_first: rows to leave out, see `RowFilters`.

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
            max_norm_multiple, exclude_special, skip_first: rows to leave out, see `RowFilters`.

        Raises:
            StoreError: an argument does not fit, or the run does not record what a filter needs.
            CorruptBatchError: a file is damaged.
        """
        filters = RowFilters(
            max_norm_multiple=max_norm_multiple,
            exclude_special=exclude_special,
            skip_first=skip_first,
        )
        return self._streams.kept_rows(self._numbers, filters, self._medians)

    def kept_files(self, filters: RowFilters, **which: Any) -> KeptFiles:
        """Yield the rows file by file: see `RowStreams.kept_files` for `which` files and errors."""
        return self._streams.kept_files(self._numbers, filters, self._medians, **which)

    def outlier_rows(self, factor: float = MAX_NORM_MULTIPLE) -> Any:
        """Return the numbers of the rows whose norm is above `factor` medians, or not finite.

        Qwen's attention sinks are such rows, and training on them is rarely wanted. They stay in
        the dataset. The median comes from the run's statistics, within 4.5 % of the exact one. In a
        folder without statistics it is computed from all rows. All rows are read.

        Returns:
            `[found]` int64 in ascending order, or a dictionary of such arrays.
        """
        limits = limits_above(self._medians(), factor)
        return self._form.as_asked(rows_above(limits, self._streams.numbered(self._numbers)))

    def _medians(self) -> dict[str, float | None]:
        return self._streams.medians(self._numbers, self.info.statistics)

    def _widths(self) -> dict[str, int]:
        return {hook: self._files.width(hook, self._numbers.batches) for hook in self.hook_points}
