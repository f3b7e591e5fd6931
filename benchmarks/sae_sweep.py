"""Four autoencoders on one read of the rows, against four trainings; and a training of one step.

    python -m benchmarks.sae_sweep

Whole commands, `python -m sae train`, with imports, reading and writing, in turn. What four
autoencoders share is the start and the reading; each multiplies for itself.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.sae_training import rows_like_activations
from benchmarks.timing import cpu_name
from extraction import ActivationWriter
from extraction.run.rows import RowBlock

SAES = ("{k: 32}", "{k: 64}", "{k: 64, random_seed: 1}", "{k: 64, architecture: topk}")


def seconds(words: Sequence[str]) -> float:
    """Return how long a training takes as a whole process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sae", "train", *words], check=True, capture_output=True)
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--d_sae", type=int, default=3584)
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    found: dict[str, list[float]] = {"four on one read": [], "four trainings": [], "one step": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = rows_like_activations(options.rows, options.width)
        block = RowBlock.of({"layer_0": rows}, ["t"] * len(rows), position=np.arange(len(rows)))
        with ActivationWriter(
            folder / "run", {"layer_0": options.width}, store_format="safetensors"
        ) as writer:
            writer.add(block)
        common = [f"--activations_dir={folder / 'run'}", f"--d_sae={options.d_sae}"]
        common += [f"--batch_size={options.batch_size}"]
        for number in range(options.rounds):
            configs = []
            for index, saes in enumerate([SAES, *([sae] for sae in SAES)]):
                configs.append(folder / f"{number}_{index}.yaml")
                configs[-1].write_text(
                    f"output_dir: {folder / f'{number}_{index}'}\n"
                    + "saes:\n"
                    + "".join(f"  - {sae}\n" for sae in saes)
                )
            found["four on one read"].append(seconds([f"--config={configs[0]}", *common]))
            found["four trainings"].append(
                sum(seconds([f"--config={config}", *common]) for config in configs[1:])
            )
            one = [f"--output_dir={folder / f'{number}_one'}", f"--train_rows={options.batch_size}"]
            found["one step"].append(seconds([*common, *one]))
    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, float32")
    print(
        f"{options.rows:,} rows of width {options.width}, {options.d_sae} latents, batches of"
        f" {options.batch_size}; medians of {options.rounds} rounds"
    )
    for label, times in found.items():
        print(f"{label:20}{statistics.median(times):8.1f} s")
    pairs = zip(found["four trainings"], found["four on one read"], strict=True)
    print(f"four trainings take {statistics.median(a / b for a, b in pairs):.2f} times as long")


if __name__ == "__main__":
    main()
