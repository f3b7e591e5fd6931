"""A program of its own that reads runs through torch's DataLoader, and prints what came.

    python -m tests.extraction.torch_workers CASES.json

It is no part of a test's process: that has imported JAX, which forbids forking. Workers that are
spawned import this module, which has therefore no work outside of `main`.
"""

import json
import multiprocessing
import sys
import threading
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from extraction.reading.dataset import ActivationDataset


def numbers(batch: torch.Tensor) -> list[int]:
    """Which rows these are; `known_rows` says how they are told."""
    return (batch[:, 0] // 1000).int().tolist()


def loader_of(batches, case: dict) -> DataLoader:
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=case["workers"],
        multiprocessing_context=case["method"] if case["workers"] else None,
        persistent_workers=case.get("persistent", False),
    )


def run(case: dict) -> dict:
    """Reads epochs whole, and then one again in two halves, the second from a position."""
    dataset = ActivationDataset(case["address"], 6)
    batches = dataset.torch(case["batch_size"], **case["asked"])
    loader = loader_of(batches, case)
    epochs = []
    for epoch in range(case["epochs"]):
        batches.set_epoch(epoch)
        epochs.append([numbers(batch) for batch in loader])
    halves = []
    if "stop" in case:
        batches.set_epoch(0)
        for batch in loader:
            halves.append(numbers(batch))
            if len(halves) == case["stop"]:
                break  # the rest of the stream is left unread
        position = json.loads(json.dumps(batches.position(case["stop"], case["workers"])))
        again = ActivationDataset(case["address"], "layer_6")
        rest = again.torch(case["batch_size"], **case["asked"], start=position)
        halves += [numbers(batch) for batch in loader_of(rest, case)]
    return {"epochs": epochs, "halves": halves}


def main() -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    cases = json.loads(Path(sys.argv[1]).read_text())
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    print(json.dumps([run(case) for case in cases]))
    print(
        [thread.name for thread in threading.enumerate()[1:] if "read-activations" in thread.name]
    )


if __name__ == "__main__":
    main()
