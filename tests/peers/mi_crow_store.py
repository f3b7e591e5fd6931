"""mi_crow's own LocalStore and StoreDataloader read what `export --to mi_crow` writes.

    python -m tests.peers.mi_crow_store

Run in the environment of `requirements-mi-crow.txt`, by `make test-peers-mi-crow`.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from mi_crow.store import LocalStore
from mi_crow.store.store_dataloader import StoreDataloader

from extraction.exports import export
from tests.extraction.exports.ragged_runs import (
    HOOKS,
    MODEL,
    ROWS,
    WITH_ROWS,
    known_row,
    write_ragged_run,
)

SHARD = 2


def wanted(samples, hook: str, dtype: str) -> np.ndarray:
    """`[rows, width]`, known without a file."""
    return np.stack(
        [known_row(s, position, hook, dtype) for s in samples for position in s.positions]
    )


def check(folder: Path, dtype: str, hooks: tuple[str, ...]) -> None:
    """Compare every row that mi_crow loads with the one that was written."""
    write_ragged_run(folder / "run", dtype=dtype)
    export(folder / "run", folder / "store", "mi_crow", hook_points=hooks, shard_size=SHARD)
    store = LocalStore(base_path=folder / "store", runs_prefix="activations")
    (run,) = (folder / "store/activations").iterdir()
    meta = store.get_run_metadata(run.name)
    assert (meta["run_name"], meta["model"]) == (run.name, MODEL)
    assert (meta["sample_count"], meta["batch_count"]) == (len(WITH_ROWS), 2)
    assert store.list_run_batches(run.name) == [0, 1]
    for number, batch in enumerate(store.iter_run_batches(run.name)):
        samples = WITH_ROWS[number * SHARD : (number + 1) * SHARD]
        keys, tensors = store.get_detector_metadata(run.name, number)
        told = [(sample["task_id"], sample["sample_idx"]) for sample in keys["samples"]]
        assert told == [sample.key for sample in samples]
        assert set(tensors) == set(hooks)
        for hook in hooks:
            rows = wanted(samples, hook, dtype)
            name = "activations" if len(hooks) == 1 else f"activations_{hook}"
            by_layer = store.get_detector_metadata_by_layer_by_key(
                run.name, number, hook, "activations"
            )
            for tensor in (batch[name], tensors[hook]["activations"], by_layer):
                assert tensor.dtype == getattr(torch, dtype)
                np.testing.assert_array_equal(tensor.float().numpy(), rows)
    for hook in hooks:
        loader = StoreDataloader(store, run.name, hook, batch_size=3, dtype=torch.float32)
        for _ in range(2):  # epochs
            given = np.concatenate([rows.numpy() for rows in loader])
            np.testing.assert_array_equal(given, wanted(WITH_ROWS, hook, dtype))
    print(f"mi_crow reads {ROWS} rows of {', '.join(hooks)} in {dtype}")


def main() -> None:
    """Check one hook point and several, in both dtypes."""
    for dtype in ("float32", "bfloat16"):
        for hooks in (HOOKS[:1], HOOKS):
            with tempfile.TemporaryDirectory() as folder:
                check(Path(folder), dtype, hooks)


if __name__ == "__main__":
    main()
