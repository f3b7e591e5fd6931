"""Rows that try a format's limits, and what any parsed batch must be."""

import pickle

import numpy as np

from extraction.formats import ParsedBatch, SerialisedBatch
from extraction.run.rows import RowBlock, text_column

HOOK = "layer_6"
COLUMNS = ["task_ids", "sample_idx", "step", "position", "token_id", "timestamps"]


def varied_block(rows: int, width: int = 4, dtype=np.float32, seed: int = 0) -> RowBlock:
    """Rows that share texts or not, with texts of all kinds and numbers of all sizes."""
    random = np.random.default_rng(seed)
    # Any bits at all: subnormals, infinities and NaN among them.
    values = random.integers(0, 256, (rows, width * 8), np.uint8).view(np.float64)
    with np.errstate(all="ignore"):
        values = values.astype(np.float32).astype(dtype)
    texts = [
        "task_a",
        "",
        "ünï-編號-🧩",
        "a" * 300,
        "../../etc/passwd",
        "\0",
        "%2F\n'\"",
        "u.(q\x94",
    ]
    tasks = [texts[n % len(texts)] if n % 3 else f"task_{n}" for n in range(rows)]
    times = [f"2025-01-15T10:{n // 40 % 60:02d}:00+00:00" for n in range(rows)]
    sizes = np.array([1, 200, 60_000, 2**31 - 1, 2**62])
    return RowBlock(
        task_ids=text_column(tasks),
        sample_idx=random.choice(sizes, rows) - random.integers(0, 3, rows),
        step=random.choice(sizes[:4], rows).astype(np.int32),
        position=random.integers(-1, 300, rows).astype(np.int32),
        token_id=random.integers(0, 151_936, rows).astype(np.int32),
        timestamps=text_column(times),
        activations={HOOK: values, "final_norm": values[:, :1]},
    )


def assert_same_keys(found: RowBlock, expected: RowBlock):
    for name in COLUMNS:
        column = getattr(found, name)
        assert column.tolist() == getattr(expected, name).tolist()
        if name in ("task_ids", "timestamps"):
            assert column.dtype == object
            assert {type(text) for text in column} <= {str}
        else:
            assert column.dtype == (np.int64 if name == "sample_idx" else np.int32)


def assert_well_formed(batch: ParsedBatch):
    """What a parser promises of any file that it does not refuse."""
    assert type(batch.hook_point) is str
    assert batch.dtype in ("float16", "float32", "float64", "bfloat16")
    assert batch.stored.dtype.name == ("uint16" if batch.dtype == "bfloat16" else batch.dtype)
    assert batch.stored.ndim == 2
    assert_same_keys(batch.keys, batch.keys)
    block = batch.block()
    assert len(block) == len(batch.stored)
    assert list(block.activations) == [batch.hook_point]
    assert block.activations[batch.hook_point].dtype == np.float32
    assert block.activations[batch.hook_point].shape == batch.stored.shape


def files(serialised: SerialisedBatch) -> tuple[bytes, bytes | None]:
    """The content of the file, and of its sidecar."""
    return serialised.join(), serialised.sidecar


def founding_document(rows: int, width: int = 4, dtype=np.float32, layer=6) -> dict:
    """What founding document 004's own code pickles: no step, position or token id."""
    values = np.arange(rows * width, dtype=np.float64).reshape(rows, width) / 3
    return {
        "layer": layer,
        "activations": [
            {
                "task_id": f"task_abc{row // 2}",
                "sample_idx": row,
                "activation": np.array(values[row], dtype),
                "timestamp": f"2025-01-15T10:30:{row % 60:02d}.{row:06d}",
            }
            for row in range(rows)
        ],
    }


def founding_pickle(rows: int, protocol: int | None = None, **kwargs) -> bytes:
    return pickle.dumps(founding_document(rows, **kwargs), protocol=protocol)
