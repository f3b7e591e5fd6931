"""Rows whose every number tells where it belongs, and a plain reading of what was written.

Row r of hook point number h holds 1000 r + 100 h + column, exact in float32.
"""

import json
import pickle
from pathlib import Path

import numpy as np

from extraction import ActivationExtractionConfig, ActivationExtractor, RowBlock
from extraction.run.rows import text_column
from extraction.storage import Storage

WIDTH = 4
TIME = "2025-01-15T10:30:00"


def known_values(first: int, rows: int, hook: int = 0) -> np.ndarray:
    """`[rows, WIDTH]` float32 of the rows from number `first` on."""
    numbers = 1000 * np.arange(first, first + rows)[:, None] + 100 * hook + np.arange(WIDTH)
    return numbers.astype(np.float32)


def known_block(first: int, rows: int, layers: tuple[int, ...] = (6,)) -> RowBlock:
    """Rows from number `first` on; each is a sample of its own."""
    numbers = range(first, first + rows)
    return RowBlock(
        task_ids=text_column([f"task_{number}" for number in numbers]),
        sample_idx=np.array(numbers, np.int64),
        step=np.zeros(rows, np.int32),
        position=np.array(numbers, np.int32) + 10,
        token_id=np.array(numbers, np.int32) + 20,
        timestamps=text_column([TIME] * rows),
        activations={
            f"layer_{layer}": known_values(first, rows, hook) for hook, layer in enumerate(layers)
        },
    )


def make_extractor(
    folder: Path, layers=(6,), save_every: int = 512, storage: Storage | None = None
) -> ActivationExtractor:
    """An extractor of rows of `known_block`."""
    config = ActivationExtractionConfig(
        output_dir=folder,
        layers_to_extract=layers,
        hidden_dim=WIDTH,
        model_name="Qwen/Qwen2.5-0.5B",
        save_every_n_samples=save_every,
        run={"seed": 7},
    )
    return ActivationExtractor(config, storage)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def batch_names(folder: Path, layer: int = 6) -> list[str]:
    """Names of one layer's files, in order of their numbers."""
    return sorted(path.name for path in folder.glob(f"layer_{layer}_batch_*"))


def read_records(folder: Path, layer: int = 6) -> list[dict]:
    """All records of one layer, in the order of the files."""
    files = [pickle.loads((folder / name).read_bytes()) for name in batch_names(folder, layer)]
    return [record for file in files for record in file["activations"]]


def read_metadata(folder: Path) -> dict:
    """The parsed `metadata.json`."""
    return json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
