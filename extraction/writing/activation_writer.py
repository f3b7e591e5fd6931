"""The writer for your own loops: rows in, numbered batches out.

    with ActivationWriter("run", {"layer_6": 896, "layers.6.mlp.post": 4864}) as writer:
        writer.add(rows)

Each hook point has its own width; all hook points of a batch hold the same rows in the same order.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from extraction.errors import StoreError
from extraction.formats import written_format
from extraction.hook_point_names import few
from extraction.run.identity import RunIdentity
from extraction.run.rows import RowBlock
from extraction.run.totals import BatchSummary, RunTotals
from extraction.run.vocabulary import as_token_bytes, of_ids
from extraction.storage import Storage
from extraction.storage.names import check_hook_point
from extraction.writing.finalise import close as close_run
from extraction.writing.run_writer import RunWriter


class ActivationWriter:
    """Collects rows and writes `layer_6_batch_000001.pkl`, its siblings and `metadata.json`.

    Use it in a `with` block. A block that ends without an error writes the remaining rows and marks
    the run complete; one that ends with an exception leaves the published batches, all of them
    valid. The folder is made when the first batch is written.

    Args:
        address: folder of the run, `gs://bucket/prefix`, or an open `Storage`; it must not hold
            another run.
        widths: width of each hook point, by name, in the order of the metadata.
        model_name: the model's name for the metadata.
        hidden_dim: width of the residual stream; None: the first hook point's.
        rows_per_file: rows of each hook point in a file.
        store_format: `pickle` or `safetensors`.
        store_dtype: `float32`, or `bfloat16` where the format holds it.
        upload_to: `gs://bucket/prefix`, where the address is a folder; the folder is then emptied
            as the uploads arrive.
        run: settings and versions for the metadata.
        token_text: text or bytes of token ids: a mapping, or a function from an id; recorded for
            the ids that occur, for `dataset.keys(...).token_text`.

    Raises:
        ExistingRunError: the folder already holds a run.
        StoreError: the folder or a setting cannot be used.
    """

    def __init__(
        self,
        address: str | Path | Storage,
        widths: Mapping[str, int],
        *,
        model_name: str = "",
        hidden_dim: int | None = None,
        rows_per_file: int = 512,
        store_format: str = "pickle",
        store_dtype: str = "float32",
        upload_to: str | None = None,
        run: Mapping[str, Any] | None = None,
        token_text: Mapping[int, str | bytes] | Callable[[int], str | bytes | None] | None = None,
    ):
        if rows_per_file < 1:
            raise StoreError(f"rows_per_file must be at least 1, not {rows_per_file}")
        if not widths:
            raise StoreError('widths is empty; name a hook point, as in {"layer_6": 896}')
        written_format(store_format)
        for hook_point in widths:
            check_hook_point(hook_point)
        self.widths = dict(widths)
        self._rows_per_file = rows_per_file
        identity = RunIdentity.new(
            model_name=model_name,
            hook_points=tuple(widths),
            hidden_dim=next(iter(widths.values())) if hidden_dim is None else hidden_dim,
            file_format=store_format,
            dtype=store_dtype,
            run=run,
        )
        self._token_text = None if token_text is None else as_token_bytes(token_text)
        self._writer = RunWriter(address, identity, upload_to=upload_to)
        self._claim = contextlib.ExitStack()
        self._begun = self._failed = self._closed = False
        self._buffer: list[RowBlock] = []
        self._buffered = 0
        self._written = RunTotals()
        self._listed = 0  # batches in the last metadata.json
        self._sequences: set[tuple[str, int]] = set()  # of published rows

    @property
    def hook_points(self) -> tuple[str, ...]:
        """The names of the hook points, in the order of the metadata."""
        return tuple(self.widths)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._buffered:,} rows in memory"
        identity, widths = self._writer.identity, sorted(set(self.widths.values()))
        return (
            f"{type(self).__name__}({self._writer.storage.address!r}: {len(self._written)} batches"
            f" written, {state}; {few(self.hook_points)} {widths}, {identity.file_format},"
            f" {identity.dtype})"
        )

    def __enter__(self):
        return self

    def __exit__(self, exception_type, exception, traceback) -> None:
        with self._claim:
            if exception_type is None:
                self.close()
            elif self._written:
                # The block's own exception says more than an error here would.
                with contextlib.suppress(OSError, StoreError):
                    self._claim.close()
                    self._writer.write_metadata()

    def add(self, block: RowBlock) -> None:
        """Take rows, and write every batch that is full.

        Raises:
            StoreError: hook points or widths differ from the run's, the writer is closed, or a
                write failed earlier.
        """
        self._check_open()
        if set(block.activations) != set(self.widths):
            raise StoreError(
                f"the rows have the hook points {sorted(block.activations)}; this run has"
                f" {list(self.widths)}"
            )
        for name, values in block.activations.items():
            if values.ndim != 2 or values.shape[1] != self.widths[name]:
                raise StoreError(
                    f"{name} has shape {list(values.shape)}, not [rows, {self.widths[name]}]"
                )
        self._buffer.append(block)
        self._buffered += len(block)
        rows = self._rows_per_file
        if self._buffered >= rows:
            pending = RowBlock.concatenate(self._buffer)
            while len(pending) >= rows:
                self._write_batch(pending[:rows])
                pending = pending[rows:]
            self._buffer, self._buffered = [pending], len(pending)

    def close(self) -> None:
        """Write the rows still buffered and the final `metadata.json`. Safe to call twice.

        Raises:
            StoreError: a write failed, now or earlier.
        """
        if self._closed:
            return
        self._check_open()
        if self._buffered:
            self._write_batch(RowBlock.concatenate(self._buffer))
            self._buffer, self._buffered = [], 0
        self._failed = True  # until all is written
        self._begin()
        close_run(self._writer.storage, len(self._written))
        self._claim.close()  # waits for the uploads
        self._writer.write_metadata(here_too=True)
        self._failed, self._closed = False, True

    @property
    def rows_written(self) -> int:
        """Rows of each hook point in published files."""
        return self._written.n_rows

    @property
    def batches(self) -> tuple[BatchSummary, ...]:
        """The committed batches."""
        return tuple(self._written.batches())

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("this writer is closed; open another one, with an empty folder")
        if self._failed:
            raise StoreError("a write failed earlier; published batches stay, no more can be added")

    def _begin(self) -> None:
        """Claim the folder, when the first batch is about to be written."""
        if not self._begun:
            self._claim.enter_context(self._writer.begun())
            self._begun = True

    def _new_texts(self, block: RowBlock) -> dict[int, bytes] | None:
        """Return the text of token ids that no committed batch has."""
        if self._token_text is None:
            return None
        found = of_ids(block.token_id, self._token_text)
        return {i: text for i, text in found.items() if i not in self._written.vocabulary}

    def _write_batch(self, block: RowBlock) -> None:
        self._failed = True  # until all is written
        self._begin()
        sequences = set(zip(block.task_ids, block.sample_idx.tolist(), strict=True))
        record = self._writer.commit(
            len(self._written) + 1,
            block,
            n_sequences=len(sequences - self._sequences),
            vocabulary=self._new_texts(block),
        )
        self._written.add(record)
        self._sequences |= sequences
        self._writer.upload(record)
        # Rewriting at every batch would cost time quadratic in their number.
        if self._writer.storage.is_local and len(self._written) >= 1.1 * self._listed:
            self._writer.write_metadata(self._written)
            self._listed = len(self._written)
        self._failed = False
