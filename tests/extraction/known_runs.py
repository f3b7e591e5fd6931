"""Runs of known rows in every format, written as programs write them."""

from pathlib import Path

import numpy as np

from extraction import ActivationExtractionConfig, ActivationExtractor
from extraction.formats.float_types import as_stored
from extraction.run.identity import RunIdentity, begin
from extraction.storage import Storage
from extraction.writing.committer import Committer
from tests.extraction.known_rows import WIDTH, known_block, known_values

MODEL = "Qwen/Qwen2.5-0.5B"
FORMS = [
    ("pickle", "float32"),
    ("npz", "float32"),
    ("safetensors", "float32"),
    ("safetensors", "bfloat16"),
    ("raw", "float32"),
    ("raw", "bfloat16"),
]


def write_run(
    folder: Path,
    rows: int = 10,
    layers: tuple[int, ...] = (6,),
    *,
    save_every: int = 4,
    file_format: str = "safetensors",
    dtype: str = "float32",
    gcs_bucket: str | None = None,
) -> Path:
    """The rows 0 .. rows-1 of `known_block`, in files of `save_every`; gives the folder."""
    config = ActivationExtractionConfig(
        output_dir=folder,
        layers_to_extract=layers,
        hidden_dim=WIDTH,
        model_name=MODEL,
        save_every_n_samples=save_every,
        file_format=file_format,
        store_dtype=dtype,
        gcs_bucket=gcs_bucket,
    )
    with ActivationExtractor(config) as extractor:
        extractor.add(known_block(0, rows, layers))
    return folder


def expected_rows(numbers, hook: int = 0, dtype: str = "float32") -> np.ndarray:
    """What a reader gives for these rows: float32, rounded as they are stored."""
    values = known_values(0, 1 + max(numbers, default=0), hook)[np.array(list(numbers), np.int64)]
    return as_stored(values, dtype)


class OpenRun:
    """A run that is being written, batch by batch in any order.

    Args:
        storage: where.
        layers: that are captured.
        planned: batches of the finished run.
        file_format: of the files.
    """

    def __init__(
        self,
        storage: Storage,
        layers: tuple[int, ...] = (6,),
        planned: int | None = None,
        file_format: str = "safetensors",
    ):
        self.layers = layers
        hooks = tuple(f"layer_{layer}" for layer in layers)
        begin(
            storage,
            RunIdentity.new(
                model_name=MODEL,
                hook_points=hooks,
                hidden_dim=WIDTH,
                file_format=file_format,
                planned_batches=planned,
            ),
        )
        self._committer = Committer(storage, hooks, file_format)

    def commit(self, batch_id: int, first: int, rows: int) -> None:
        """The rows first .. first+rows-1 as one batch, or a batch without rows."""
        block = known_block(first, rows, self.layers) if rows else None
        self._committer.commit(batch_id, block)
