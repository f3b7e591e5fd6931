"""Rows to store, and what a user would store and read them with instead: for `benchmarks.store`.

Whatever writes leaves its files on the disk, and not in memory alone.
"""

import contextlib
import dataclasses
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from extraction.run.rows import RowBlock, text_column

LAYERS = (6, 12, 18, 23)
WIDTH = 896
MIB = 1 << 20


def make_block(rows: int, layers: Sequence[int] = LAYERS, width: int = WIDTH) -> RowBlock:
    """Rows as a run has them."""
    random = np.random.default_rng(0)
    return RowBlock(
        task_ids=text_column([f"task_{number // 8:08x}" for number in range(rows)]),
        sample_idx=np.arange(rows) % 8,
        step=np.zeros(rows, np.int32),
        position=random.integers(4000, size=rows).astype(np.int32),
        token_id=random.integers(150_000, size=rows).astype(np.int32),
        timestamps=text_column(["2026-01-01T00:00:00+00:00"] * rows),
        activations={
            f"layer_{layer}": random.standard_normal((rows, width), np.float32) for layer in layers
        },
    )


def in_dtype(block: RowBlock, dtype: str) -> RowBlock:
    """The rows as a model that computes in that dtype gives them."""
    if dtype == "float32":
        return block
    import ml_dtypes  # here, as reading needs none

    activations = {h: rows.astype(ml_dtypes.bfloat16) for h, rows in block.activations.items()}
    return dataclasses.replace(block, activations=activations)


def with_own_ids(block: RowBlock, number: int) -> RowBlock:
    """The same activations with task ids that no other batch has."""
    task_ids = text_column([f"{number}_{task_id}" for task_id in block.task_ids])
    return dataclasses.replace(block, task_ids=task_ids)


@contextlib.contextmanager
def synced(path: Path) -> Iterator[None]:
    """What is written to the path, a file or a folder of files, is on the disk afterwards."""
    yield
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def write_stream(folder: Path, contents: Sequence[memoryview]) -> None:
    """Bytes, as fast as the disk takes them."""
    for number, left in enumerate(contents):
        descriptor = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT, 0o666)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
        os.close(descriptor)


def write_torch(folder: Path, block: RowBlock) -> None:
    """Shards as many training scripts keep them."""
    import torch  # here, as processes that do not measure it need not take its memory

    for hook, rows in block.activations.items():
        with synced(folder / hook):
            torch.save({"activations": torch.from_numpy(rows)}, folder / hook)


def write_savez(folder: Path, block: RowBlock) -> None:
    """numpy's own archives."""
    for hook, rows in block.activations.items():
        with synced(folder / f"{hook}.npz"):
            np.savez(folder / f"{hook}.npz", activations=rows)


def write_arrow(folder: Path, block: RowBlock) -> None:
    """Hugging Face datasets, made of Arrow arrays that share our memory."""
    import datasets
    import pyarrow as pa

    datasets.disable_progress_bars()
    for hook, rows in block.activations.items():
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        with synced(folder / hook):
            datasets.Dataset(pa.table({"activation": column})).save_to_disk(folder / hook)


def pickle_only(block: RowBlock) -> None:
    """Founding document 004's documents, to nowhere."""
    for hook, rows in block.activations.items():
        records = [
            {"task_id": t, "sample_idx": i, "activation": row, "timestamp": s}
            for t, i, row, s in zip(
                block.task_ids, block.sample_idx.tolist(), rows, block.timestamps, strict=True
            )
        ]
        pickle.dumps({"layer": hook, "activations": records}, protocol=pickle.HIGHEST_PROTOCOL)


def read_stream(files: Sequence[Path]) -> None:
    """`readinto` new memory, one file after the other; a batch is kept until the next is there."""
    kept = deque(maxlen=2 * len(LAYERS))
    for path in files:
        with path.open("rb", buffering=0) as stream:
            kept.append(np.empty(os.fstat(stream.fileno()).st_size, np.uint8))
            stream.readinto(kept[-1].data)


def read_torch(path: Path) -> None:
    """A shard as one array."""
    import torch

    assert isinstance(torch.load(path)["activations"].numpy(), np.ndarray)


def read_savez(path: Path) -> None:
    """A shard as one array."""
    assert isinstance(np.load(path)["activations"], np.ndarray)


def read_arrow(folder: Path) -> None:
    """A shard as one array."""
    import datasets

    shard = datasets.load_from_disk(folder).with_format("numpy")[:]["activation"]
    assert isinstance(shard, np.ndarray)


OTHERS: dict[str, tuple[Callable[[Path, RowBlock], None], Callable[[Path], object]]] = {
    "torch.load": (write_torch, read_torch),
    "np.load": (write_savez, read_savez),
    "datasets (Arrow)": (write_arrow, read_arrow),
}
"""How others write the shards of a unit, and read one."""
