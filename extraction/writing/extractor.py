"""The writer of founding document 004: one layer's activation at a time.

`extract_layer_activation` collects the layers of a token and calls `ActivationWriter.add`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.formats import written_format
from extraction.run.rows import UNKNOWN, RowBlock, text_column, timestamp
from extraction.storage import Storage
from extraction.writing.activation_writer import ActivationWriter


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationExtractionConfig:
    """Which layers are captured, and where their rows go.

    Attributes:
        output_dir: folder of the run; it must not hold another.
        layers_to_extract: block numbers.
        hidden_dim: width of the residual stream.
        model_name: the model's name for the metadata.
        save_every_n_samples: rows per layer and file.
        file_format: `pickle` or `safetensors`.
        store_dtype: `float32`, or `bfloat16` where the format holds it.
        gcs_bucket: `gs://bucket/prefix` to upload to; each file is removed from the folder after
            its upload.
        upload_to_cloud: False: do not upload, although a bucket is named.
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
            raise StoreError("layers_to_extract is empty; give block numbers, such as [6, 12]")
        if min(self.layers_to_extract) < 0:
            raise StoreError(f"layers_to_extract has negative ones: {list(self.layers_to_extract)}")
        if len(set(self.layers_to_extract)) < len(self.layers_to_extract):
            raise StoreError(f"layers_to_extract repeats a layer: {list(self.layers_to_extract)}")
        written_format(self.file_format)
        if self.upload_to_cloud and self.gcs_bucket is None:
            raise StoreError("upload_to_cloud needs gcs_bucket='gs://bucket/prefix'")


class ActivationExtractor(ActivationWriter):
    """An `ActivationWriter` for some layers of one width, which takes one layer at a time.

    Args:
        config: which layers are captured, and where their rows go.
        storage: an open storage; None: that of the address `config.output_dir`.

    Raises:
        ExistingRunError: the folder already holds a run.
        StoreError: the folder cannot be used.
    """

    def __init__(self, config: ActivationExtractionConfig, storage: Storage | None = None):
        self.config = config
        super().__init__(
            config.output_dir if storage is None else storage,
            {f"layer_{layer}": config.hidden_dim for layer in config.layers_to_extract},
            model_name=config.model_name,
            hidden_dim=config.hidden_dim,
            rows_per_file=config.save_every_n_samples,
            store_format=config.file_format,
            store_dtype=config.store_dtype,
            upload_to=None if config.upload_to_cloud is False else config.gcs_bucket,
            run=config.run,
        )
        self._partial_rows: dict[tuple, dict[str, np.ndarray]] = {}
        self._next_step: dict[tuple[str, int], int] = {}

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
        """Take one layer's activation of one token, or of one token of each of B samples.

        A token's row is complete when every layer of the run has been given.

        Args:
            layer_idx: block number.
            activation: `[D]`, or `[B, D]` with lists of length B for task_id and sample_idx (each
                of the other arguments may also be one value for all).
            task_id: id of the sample's task.
            sample_idx: number of the sample within the task.
            step: 0 for a prompt token, t for the t-th generated one; None: the number of earlier
                rows of this sample.
            position: index of the token in its sample, from 0; -1: unknown.
            token_id: id of the token; -1: unknown.

        Raises:
            StoreError: the layer is not one of the run's, was given twice, or shapes do not fit.
        """
        self._check_open()
        name = f"layer_{layer_idx}"
        if name not in self.hook_points:
            raise StoreError(
                f"layer_idx {layer_idx} is not in this run, which has {list(self.hook_points)}"
            )
        values = np.array(activation)  # a copy: the caller may use the array again
        if values.ndim == 1:
            values = values[None]
        rows = len(values) if values.ndim == 2 else 1
        told: list[Any] = [task_id, sample_idx, step, position, token_id]
        # One step, position or token id may hold for all rows; one task or sample, for one row.
        spread = (1, 1, rows, rows, rows)
        columns = [
            [value] * times if np.ndim(value) == 0 else list(value)
            for value, times in zip(told, spread, strict=True)
        ]
        if values.ndim != 2 or {len(column) for column in columns} != {rows}:
            raise StoreError(
                f"activation has the shape {list(values.shape)}, so task_id, sample_idx, step,"
                f" position and token_id must have {rows} values each, not"
                f" {[len(column) for column in columns]}"
            )
        tasks, samples = [str(task) for task in columns[0]], [int(s) for s in columns[1]]
        # Count missing steps before taking any row: the last layer's rows change the count.
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
        """Write the rows still buffered and the final `metadata.json`. Safe to call twice.

        Raises:
            StoreError: some layers of a token were never given.
        """
        if self._partial_rows and not self._closed:
            self._check_open()
            key, layers = next(iter(self._partial_rows.items()))
            missing = [name for name in self.hook_points if name not in layers]
            raise StoreError(
                f"{len(self._partial_rows)} rows are incomplete: {key} lacks {missing}"
            )
        super().close()
