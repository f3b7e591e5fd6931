"""The rows of a run for an export: their samples first, then all rows once, in stored order.

Every file is read once for its rows; before that, the files of one hook point are read for the
keys. A few batches are in memory at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.exports.samples import samples_of
from extraction.formats.float_types import bfloat16_bits
from extraction.maintenance.committed_files import read_outputs
from extraction.progress import Progress, silent
from extraction.reading.dataset import ActivationDataset
from extraction.reading.frameworks import Rows
from extraction.reading.listed_run import open_run
from extraction.reading.run_contents import chosen_hook_points
from extraction.run.records import CommitLog
from extraction.setting_names import setting
from extraction.storage import Storage

CHUNK_BYTES = 16 << 20
"""Approximate bytes of activations that are yielded at a time."""


class RunRows:
    """The rows of some hook points of a run.

    Args:
        source: folder, `gs://bucket/prefix`, or a storage.
        hook_points: numbers of blocks or names; None: all that the run has.
        dtype: dtype to yield rows in, float32 or bfloat16; None: the run's own.
        dtypes: dtypes that the export can hold; a run of any other is read as float32.
        progress: called with the progress of reading.
        filters: rows to leave out, arguments of `ActivationDataset.batches`.

    Attributes:
        address: address of the run.
        info: model, dtype and shapes of the run.
        hook_points: names of the hook points.
        widths: width of each hook point's rows.
        dtype: dtype of the rows that are yielded.
        samples: samples of the rows.
        left_out: number of rows that each filter leaves out, by its name, and of all `together`.

    Raises:
        StoreError: there is no run, no such hook point, or there are no rows.
        CorruptBatchError: a file is damaged.
    """

    def __init__(
        self,
        source: str | Path | Storage,
        hook_points: Sequence[int | str] | None = None,
        dtype: str | None = None,
        dtypes: Sequence[str] = ("float32",),
        progress: Progress = silent,
        filters: Mapping[str, Any] | None = None,
    ):
        run = open_run(source)
        storage, captured = run.storage, run.description.hook_points
        self.address = storage.address
        asked = captured if hook_points is None else hook_points
        self.hook_points = tuple(chosen_hook_points(asked, captured, storage.address))
        stored = run.description.dtype
        own = stored if stored is not None and stored in dtypes else "float32"
        self.dtype = own if dtype is None else dtype
        self._rounded = self.dtype == "bfloat16" != stored
        self._dataset = ActivationDataset(
            storage,
            self.hook_points,
            dtype="stored" if self.dtype == stored == "bfloat16" else "float32",
        )
        keys = ActivationDataset(storage, self.hook_points[0])
        if len(keys) != len(self._dataset):
            raise StoreError(f"{self.address} got rows while it was opened; repeat the export")
        if not len(keys):
            raise StoreError(f"{self.address} holds no rows yet; export it when it has some")
        self._filters = filters or {}
        kept = self._dataset.kept_rows(**self._filters) if filters else None
        self.left_out = {} if kept is None else kept.left_out
        if kept is not None and not len(kept.numbers):
            raise StoreError(
                f"the filters leave none of the {len(keys):,} rows of {self.address}:"
                f" {', '.join(self.left_out_notes())}"
            )
        self.info = self._dataset.info
        self.widths = {hook: self.info.width[hook] for hook in self.hook_points}
        self.samples = samples_of(keys, progress, None if kept is None else kept.numbers)
        self._storage, self._progress = storage, progress

    def __len__(self) -> int:
        return len(self.samples.sample)

    def left_out_notes(self) -> list[str]:
        """Return notes for the user about the rows that filters left out."""
        return [
            f"rows that {setting(name)} leaves out: {count:,}"
            for name, count in self.left_out.items()
            if name in self._filters
        ]

    def stream(self) -> Iterator[tuple[slice, Rows]]:
        """Yield the rows that are kept, some at a time: their numbers among those that are kept,
        and `[rows, width]` of each hook point.

        The arrays are float32, or uint16 bits for bfloat16.
        """
        size = max(1, CHUNK_BYTES // (4 * sum(self.widths.values())))
        first = 0
        with self._dataset.batches(size, **self._filters) as batches:
            for batch in batches:
                rows = {hook: self._bits(values) for hook, values in batch.items()}
                count = len(rows[self.hook_points[0]])
                yield slice(first, first + count), rows
                first += count
                self._progress("rows exported", first, len(self))

    def _bits(self, values: np.ndarray) -> np.ndarray:
        if self._rounded:
            return bfloat16_bits(values)
        return values.view(np.uint16) if self.dtype == "bfloat16" else values

    def sequences(self) -> Iterator[tuple[int | None, list[int] | None, list[int]]]:
        """Yield the tokens of each sample, from the run's output lines.

        Yields:
            For each line the sample's number (None if it has no rows), its prompt's token ids (None
            if the line lacks them), and the generated token ids.

        Raises:
            CorruptBatchError: a file of output lines is damaged.
        """
        for record in CommitLog(self._storage).records():
            if record.outputs is None:
                continue
            for line in read_outputs(self._storage, record.outputs):
                yield (
                    self.samples.numbers.get((line["task_id"], line["sample_idx"])),
                    line.get("prompt_token_ids"),
                    line.get("generated_token_ids", []),
                )
