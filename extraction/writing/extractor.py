"""The buffer between a model and the files: rows in, numbered batches out.

All hook points of a batch hold the same rows in the same order. `add` is the way in for loops
that have whole blocks of rows; `extract_layer_activation` is founding document 004's call, one
layer at a time, and ends in `add` too.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extraction.errors import ExistingRunError, StoreError
from extraction.formats import FORMATS
from extraction.hook_point_names import few
from extraction.run.identity import RunIdentity, RunLock, begin, check_identity
from extraction.run.rows import UNKNOWN, RowBlock, text_column, timestamp
from extraction.run.totals import BatchSummary, RunTotals
from extraction.storage import CloudStorage, Storage, open_cloud
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import close as close_run
from extraction.writing.finalise import write_metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationExtractionConfig:
    """What is captured, and where it goes.

    Attributes:
        output_dir: folder of the run; it must not hold another.
        layers_to_extract: block numbers.
        hidden_dim: width of the residual stream.
        model_name: as it shall stand in the metadata.
        save_every_n_samples: rows per layer and file.
        file_format: `pickle`, `safetensors`, `npz` or `raw`.
        store_dtype: `float32`, or `bfloat16` where the format holds it.
        gcs_bucket: `gs://bucket/prefix` to upload to; the folder is then emptied behind the
            uploads.
        upload_to_cloud: False keeps the files here although a bucket is named.
        run: settings and versions for the metadata.
    """

    output_dir: str | Path
    layers_to_extract: Sequence[int]
    hidden_dim: int
    model_name: str
    save_every_n_samples: int = 512
    file_format: str = "pickle"
    store_dtype: str = "float32"
    gcs_bucket: str | None = None
    upload_to_cloud: bool | None = None
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
        if self.file_format not in FORMATS:
            raise StoreError(f"file_format {self.file_format!r} is none of {', '.join(FORMATS)}")
        if self.upload_to_cloud and self.gcs_bucket is None:
            raise StoreError("upload_to_cloud needs a gcs_bucket")


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
        self._cloud: CloudStorage | None = None
        if config.gcs_bucket is not None and config.upload_to_cloud is not False:
            self._cloud = open_cloud(config.gcs_bucket)
        self._identity = RunIdentity.new(
            model_name=config.model_name,
            hook_points=self.hook_points,
            hidden_dim=config.hidden_dim,
            file_format=config.file_format,
            dtype=config.store_dtype,
            run=config.run,
        )
        self._identity.to_json()  # what JSON cannot hold is refused now, not after a batch
        self._committer = Committer(
            self._storage, self.hook_points, config.file_format, config.store_dtype
        )
        self._uploader: Any = None
        self._lock: RunLock | None = None
        self._begun = False
        self._buffer: list[RowBlock] = []
        self._buffered = 0
        self._written = RunTotals()
        self._listed = 0  # batches in the last metadata.json
        self._sequences: set[tuple[str, int]] = set()  # of published rows
        self._failed = False
        self._partial_rows: dict[tuple, dict[str, np.ndarray]] = {}
        self._next_step: dict[tuple[str, int], int] = {}
        self._closed = False
        for place in {id(s): s for s in (self._storage, self._target)}.values():
            exclusive = isinstance(place, LocalStorage)  # there the lock keeps others out
            check_identity(place, self._identity, resume=False, exclusive=exclusive)

    @property
    def _target(self) -> Storage:
        return self._storage if self._cloud is None else self._cloud

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._buffered:,} rows in memory"
        return (
            f"ActivationExtractor({self._target.address!r}: {len(self._written)} batches written,"
            f" {state}; {few(self.hook_points)} [{self.config.hidden_dim}],"
            f" {self.config.file_format}, {self.config.store_dtype})"
        )

    def __enter__(self) -> "ActivationExtractor":
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        try:
            if exception_type is None:
                self.close()
            elif self._written:
                # The block's own exception tells more than what goes wrong here.
                with contextlib.suppress(OSError, StoreError):
                    self._finish_uploads()
                    write_metadata(self._target, self._known(), stall_timeout=0)
        finally:
            self._release()

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
        self._failed = True  # until all is written
        self._begin()
        self._finish_uploads()
        close_run(self._target, len(self._written))
        copies = [self._storage] if self._cloud else []
        write_metadata(self._target, self._known(), copies)
        self._failed, self._closed = False, True
        self._release()

    @property
    def rows_written(self) -> int:
        """Rows per hook point in published files."""
        return self._written.n_rows

    @property
    def batches(self) -> tuple[BatchSummary, ...]:
        """What was committed."""
        return tuple(self._written.batches())

    def _known(self) -> RunTotals | None:
        """What need not be read again to know what the run has; in a cloud files may have other
        names than here."""
        return self._written if self._cloud is None else None

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("this extractor is closed; a run cannot be added to")
        if self._failed:
            raise StoreError("a write failed earlier; what was published stays, no more can follow")

    def _begin(self) -> None:
        """Claims the folder when the first batch is there, so that until then nothing is made."""
        if self._begun:
            return
        if isinstance(self._storage, LocalStorage):
            self._lock = RunLock(self._storage.folder)
        for place in {id(s): s for s in (self._storage, self._target)}.values():
            exclusive = isinstance(place, LocalStorage)
            if begin(place, self._identity, exclusive=exclusive).run_id != self._identity.run_id:
                raise ExistingRunError(f"another run was quicker to begin in {place.address}")
        if self._cloud is not None:
            from extraction.writing.upload import (
                Uploader,  # the cloud's client only where it is used
            )

            self._uploader = Uploader(self._storage, self._cloud, self._identity.run_id)
            self._uploader.__enter__()
        self._begun = True

    def _write_batch(self, block: RowBlock) -> None:
        self._failed = True  # until all is written
        self._begin()
        sequences = set(zip(block.task_ids, block.sample_idx.tolist(), strict=True))
        record = self._committer.commit(
            len(self._written) + 1, block, n_sequences=len(sequences - self._sequences)
        )
        self._written.add(record)
        self._sequences |= sequences
        if self._uploader is not None:
            self._uploader.add(record)
        # Rewriting at every batch would cost time quadratic in their number.
        elif len(self._written) >= 1.1 * self._listed:
            write_metadata(self._storage, self._written)
            self._listed = len(self._written)
        self._failed = False

    def _finish_uploads(self) -> None:
        if self._uploader is not None:
            uploader, self._uploader = self._uploader, None
            uploader.__exit__(None, None, None)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
