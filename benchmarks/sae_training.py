"""Rows per second of training a sparse autoencoder on a CPU, beside three other trainers.

    python -m benchmarks.sae_training --peers .venv-peers-sae/bin/python

Every trainer runs in a process of its own, with as many threads as there are cores, one after the
other in an order drawn anew in each round; each takes the median of a few steps. Ratios are medians
over the rounds of the ratio within a round. BatchTopK is compared with SAELens' and
dictionary_learning's, TopK with sparsify's. No latent is dead in so few steps, so that nobody pays
for the loss of dead latents. `reader` is `ActivationDataset.batches`, shuffled, from files that the
system has in memory, and through the training's own stream.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.timing import cpu_name
from extraction import ActivationWriter
from extraction.run.rows import RowBlock
from sae.training.row_stream import RowStream
from sae.training.run_settings import DataSettings

RUNS = {
    "ours, batch_topk": ("ours", "batch_topk"),
    "SAELens, batch_topk": ("saelens", "batch_topk"),
    "dictionary_learning, batch_topk": ("dictionary_learning", "batch_topk"),
    "ours, topk": ("ours", "topk"),
    "sparsify, topk": ("sparsify", "topk"),
}
AGAINST = {
    "SAELens, batch_topk": "ours, batch_topk",
    "dictionary_learning, batch_topk": "ours, batch_topk",
    "sparsify, topk": "ours, topk",
}


def rows_like_activations(count: int, width: int) -> np.ndarray:
    """Return `[count, width]` float32: sums of about 48 of 4,096 directions, a little noise."""
    random_ = np.random.default_rng(0)
    directions = random_.standard_normal((4096, width), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chance = 1 / np.sqrt(np.arange(1, 4097))
    chance = np.minimum(chance / chance.sum() * 48, 0.9)
    rows = np.empty((count, width), np.float32)
    for begin in range(0, count, 4096):
        part = rows[begin : begin + 4096]
        active = random_.random((len(part), 4096)) < chance
        part[:] = (active * (1 + 0.3 * random_.standard_normal(active.shape)).clip(0)).astype(
            np.float32
        ) @ directions
    rows += 0.05 * random_.standard_normal(rows.shape, dtype=np.float32)
    return rows * np.float32(np.sqrt(width) / np.linalg.norm(rows, axis=1).mean())


def reader_rows_per_second(rows: np.ndarray, batch_size: int, folder: Path) -> float:
    """Return how many rows the training's stream gives in a second."""
    block = RowBlock.of({"layer_0": rows}, ["t"] * len(rows), position=np.arange(len(rows)))
    with ActivationWriter(
        folder, {"layer_0": rows.shape[1]}, store_format="safetensors", rows_per_file=4096
    ) as writer:
        writer.add(block)
    settings = DataSettings(activations_dir=str(folder), batch_size=batch_size, pool_rows=16_384)
    stream = RowStream(settings, None)
    stream.begin()
    next(stream)
    batches, began = 60, time.perf_counter()
    for _ in range(batches):
        next(stream)
    seconds = time.perf_counter() - began
    stream.close()
    return batches * batch_size / seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", required=True, help="python of the other trainers")
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--d_sae", type=int, default=7168)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    script = str(Path(__file__).with_name("sae_peers.py"))
    found: dict[str, list[float]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        rows = rows_like_activations(4 * options.batch_size, options.width)
        np.save(path, rows)
        shape = [f"--{name}={getattr(options, name)}" for name in ("d_sae", "k", "batch_size")]
        for _ in range(options.rounds):
            for name in random.sample(sorted(RUNS), len(RUNS)):
                trainer, architecture = RUNS[name]
                own = trainer == "ours"
                told = subprocess.run(
                    [
                        *(sys.executable if own else options.peers, script, trainer, str(path)),
                        *(*shape, f"--steps={options.steps}", f"--architecture={architecture}"),
                    ],
                    env=os.environ | {"PYTHONPATH": os.getcwd() if own else ""},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                seconds = json.loads(told.stdout.splitlines()[-1])["seconds"]
                found[name].append(options.batch_size / seconds)
        reading = [
            reader_rows_per_second(rows, options.batch_size, Path(folder) / f"run_{number}")
            for number in range(options.rounds)
        ]
    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, float32")
    print(
        f"width {options.width}, {options.d_sae} latents, k {options.k}, batches of"
        f" {options.batch_size}; medians of {options.rounds} rounds"
    )
    print(f"{'trainer':36}{'rows/s':>10}{'ours / it':>12}")
    for name, rates in found.items():
        ratio = ""
        if name in AGAINST:
            pairs = zip(found[AGAINST[name]], rates, strict=True)
            ratio = f"{statistics.median(ours / theirs for ours, theirs in pairs):.2f}"
        print(f"{name:36}{statistics.median(rates):10,.0f}{ratio:>12}")
    print(f"{'reader':36}{statistics.median(reading):10,.0f}")


if __name__ == "__main__":
    main()
