"""The buffer between a model and the files: rows in, numbered batches out.

All hook points of a batch hold the same rows in the same order. `add` is the way in for loops
that have whole blocks of rows; `extract_layer_activation` is founding document 004's call, one
layer at a time, and ends in `add` too.
"""

import contextlib
import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extraction.errors import ExistingRunError, StoreError
from extraction.formats import FORMATS
from extraction.metadata import METADATA_FILE, BatchFile, metadata_document
from extraction.rows import UNKNOWN, RowBlock, text_column
from extraction.storage import Storage
from extraction.storage.local import LocalStorage

BATCH_FILE = re.compile(r".+_batch_\d{6,}\.\w+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationExtractionConfig:
    """What is captured, and where it goes.

    Attributes:
        output_dir: folder of the run; it must not hold another.
        layers_to_extract: block numbers.
        hidden_dim: width of the residual stream.
        model_name: as it shall stand in the metadata.
        save_every_n_samples: rows per layer and file.
        run: settings and versions for the metadata.
    """

    output_dir: str | Path
    layers_to_extract: Sequence[int]
    hidden_dim: int
    model_name: str
    save_every_n_samples: int = 512
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.save_every_n_samples < 1:
            raise StoreError(
                f"save_every_n_samples must be at least 1, not {self.save_every_n_samples}"
            )
        if not self.layers_to_extract:
            raise StoreError("no layer to extract")
        if min(self.layers_to_extract) < 0:
            raise StoreError(f"a layer is below 0 in {list(self.layers_to_extract)}")
        if len(set(self.layers_to_extract)) < len(self.layers_to_extract):
            raise StoreError(f"a layer is named twice in {list(self.layers_to_extract)}")


class ActivationExtractor:
    """Collects rows and writes `layer_6_batch_000001.pkl` and its siblings, and `metadata.json`.

    Use it in a `with` block: a block that ends in order writes the rest and marks the run
    complete; one that ends with an exception leaves what was published, all of it valid.

    Args:
        config: what is captured, and where it goes.
        storage: back end; None: the local folder `config.output_dir`.

    Raises:
        ExistingRunError: the folder already holds a run.
        StoreError: the folder cannot be used.
    """

    def __init__(self, config: ActivationExtractionConfig, storage: Storage | None = None):
        self.config = config
        self.hook_points = tuple(f"layer_{layer}" for layer in config.layers_to_extract)
        self._storage = LocalStorage(config.output_dir) if storage is None else storage
        self._format_name = "pickle"
        self._format = FORMATS[self._format_name]
        self._buffer: list[RowBlock] = []
        self._buffered = 0
        self._batches: list[BatchFile] = []
        self._listed = 0  # batches in the last metadata.json
        self._sequences: set[tuple[str, int]] = set()  # of published rows
        self._failed = False
        self._metadata(complete=False)  # what JSON cannot hold is refused now, not after a batch
        self._partial_rows: dict[tuple, dict[str, np.ndarray]] = {}
        self._next_step: dict[tuple[str, int], int] = {}
        self._closed = False
        refuse_existing_run(self._storage, config.output_dir)

    def __enter__(self) -> "ActivationExtractor":
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        if exception_type is None:
            self.close()
        elif self._batches:
            with contextlib.suppress(OSError):  # the block's own exception tells more
                self._write_metadata(complete=False)

    def add(self, block: RowBlock) -> None:
        """Takes rows; writes every batch that they fill.

        Raises:
            StoreError: hook points or widths differ from the run's, it is closed, or a write
                failed earlier.
        """
        self._check_open()
        if set(block.activations) != set(self.hook_points):
            raise StoreError(
                f"rows of {sorted(block.activations)} do not fit a run of {list(self.hook_points)}"
            )
        for name, values in block.activations.items():
            if values.ndim != 2 or values.shape[1] != self.config.hidden_dim:
                raise StoreError(
                    f"{name} has shape {list(values.shape)}, not [rows, {self.config.hidden_dim}]"
                )
        self._buffer.append(block)
        self._buffered += len(block)
        rows = self.config.save_every_n_samples
        if self._buffered >= rows:
            pending = RowBlock.concatenate(self._buffer)
            while len(pending) >= rows:
                self._write_batch(pending[:rows])
                pending = pending[rows:]
            self._buffer, self._buffered = [pending], len(pending)

    def extract_layer_activation(
        self,
        layer_idx: int,
        activation: Any,
        task_id: str | Sequence[str],
        sample_idx: int | Sequence[int] | np.ndarray,
        *,
        step: int | Sequence[int] | np.ndarray | None = None,
        position: int | Sequence[int] | np.ndarray = UNKNOWN,
        token_id: int | Sequence[int] | np.ndarray = UNKNOWN,
    ) -> None:
        """Takes one layer's activation of one token, or of one token of each of B sequences.

        A token's row is complete when every layer of the run has been given.

        Args:
            layer_idx: block number.
            activation: `[D]`, or `[B, D]` with sequences of length B for task_id and sample_idx
                (the others may also be one value for all).
            task_id: of the sample.
            sample_idx: of the sample within the task.
            step: 0 for a prompt token, t for the t-th generated one; None: the number of earlier
                rows of this sample.
            position: of the token in its sequence, from 0; -1: not told.
            token_id: of the token; -1: not told.

        Raises:
            StoreError: the layer is not one of the run's, was given twice, or shapes do not fit.
        """
        self._check_open()
        name = f"layer_{layer_idx}"
        if name not in self.hook_points:
            raise StoreError(f"{name} is not captured by this run, {list(self.hook_points)} are")
        values = np.array(activation)  # a copy: the caller may use the array again
        if values.ndim == 1:
            values = values[None]
        rows = len(values) if values.ndim == 2 else 1
        told: list[Any] = [task_id, sample_idx, step, position, token_id]
        # One step, position or token id may stand for all rows; a task and sample for one row only.
        spread = (1, 1, rows, rows, rows)
        columns = [
            [value] * times if np.ndim(value) == 0 else list(value)
            for value, times in zip(told, spread, strict=True)
        ]
        if values.ndim != 2 or {len(column) for column in columns} != {rows}:
            raise StoreError(
                f"an activation of shape {list(values.shape)} needs {rows} task ids, sample"
                f" indices and so on, not {[len(column) for column in columns]}"
            )
        tasks, samples = [str(task) for task in columns[0]], [int(s) for s in columns[1]]
        # Steps not told are counted before any row is taken: the last layer's rows move the count.
        count = {}
        for i, sequence in enumerate(zip(tasks, samples, strict=True)):
            if columns[2][i] is None:
                columns[2][i] = count.get(sequence, self._next_step.get(sequence, 0))
                count[sequence] = columns[2][i] + 1
        for row, task, sample, at_step, at, token in zip(
            values, tasks, samples, *columns[2:], strict=True
        ):
            self._take_row(name, row, task, sample, int(at_step), int(at), int(token), bool(count))

    def _take_row(self, name, row, task, sample, step, position, token, counted) -> None:
        key = (task, sample, step, position, token)
        layers = self._partial_rows.setdefault(key, {})
        if name in layers:
            raise StoreError(f"{name} was given twice for {key} before the other layers came")
        layers[name] = row
        if len(layers) == len(self.hook_points):
            del self._partial_rows[key]
            if counted:
                self._next_step[task, sample] = step + 1
            self.add(
                RowBlock(
                    task_ids=text_column([task]),
                    sample_idx=np.array([sample], np.int64),
                    step=np.array([step], np.int32),
                    position=np.array([position], np.int32),
                    token_id=np.array([token], np.int32),
                    timestamps=text_column([timestamp()]),
                    activations={hook: layers[hook][None] for hook in self.hook_points},
                )
            )

    def close(self) -> None:
        """Writes the rows still buffered and the final `metadata.json`. Safe to call twice.

        Raises:
            StoreError: some layers of a token were never given.
        """
        if self._closed:
            return
        self._check_open()
        if self._partial_rows:
            key, layers = next(iter(self._partial_rows.items()))
            missing = [name for name in self.hook_points if name not in layers]
            raise StoreError(
                f"{len(self._partial_rows)} rows are incomplete: {key} lacks {missing}"
            )
        if self._buffered:
            self._write_batch(RowBlock.concatenate(self._buffer))
            self._buffer, self._buffered = [], 0
        self._write_metadata(complete=True)
        self._closed = True

    @property
    def rows_written(self) -> int:
        """Rows per hook point in published files."""
        return sum(b.n_samples for b in self._batches if b.hook_point == self.hook_points[0])

    @property
    def batches(self) -> tuple[BatchFile, ...]:
        """The published files."""
        return tuple(self._batches)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("this extractor is closed; a run cannot be added to")
        if self._failed:
            raise StoreError("a write failed earlier; what was published stays, no more can follow")

    def _write_batch(self, block: RowBlock) -> None:
        batch_id = len(self._batches) // len(self.hook_points) + 1
        files = []
        self._failed = True  # until all is written
        for name in self.hook_points:
            file = f"{name}_batch_{batch_id:06d}.{self._format.extension}"
            self._storage.put_new(file, self._format.serialise(name, block))
            files.append(
                BatchFile(batch_id=batch_id, hook_point=name, file=file, n_samples=len(block))
            )
        self._batches += files
        self._sequences |= set(zip(block.task_ids, block.sample_idx.tolist(), strict=True))
        # Rewriting at every batch would cost time quadratic in their number.
        if len(self._batches) >= 1.1 * self._listed:
            self._write_metadata(complete=False)
        self._failed = False

    def _metadata(self, *, complete: bool) -> bytes:
        return metadata_document(
            model_name=self.config.model_name,
            hook_points=self.hook_points,
            hidden_dim=self.config.hidden_dim,
            batches=self._batches,
            total_sequences=len(self._sequences),
            complete=complete,
            file_format=self._format_name,
            run=self.config.run,
        )

    def _write_metadata(self, *, complete: bool) -> None:
        self._storage.replace(METADATA_FILE, self._metadata(complete=complete))
        self._listed = len(self._batches)


def refuse_existing_run(storage: Storage, folder: str | Path) -> None:
    """Makes sure that a folder holds no run.

    Raises:
        ExistingRunError: it does.
    """
    holds = [n for n in storage.names() if n == METADATA_FILE or BATCH_FILE.fullmatch(n)]
    holds += storage.names("_run/commits/")
    if holds:
        raise ExistingRunError(
            f"{folder} already holds a run ({holds[0]} and {len(holds) - 1} more files); choose"
            " another folder, nothing was changed"
        )


def timestamp() -> str:
    """Now, UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
