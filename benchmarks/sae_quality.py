"""Is an autoencoder that is trained here as good as SAELens', on the same batches?

    python -m benchmarks.sae_quality synthetic --peers .venv-peers-sae/bin/python
    python -m benchmarks.sae_quality run --peers PYTHON --activations_dir RUN --held_out RUN

Both train BatchTopK on the same batches with the same settings; each draws its own initial weights.
`synthetic`: rows of SAELens' synthetic model, judged by SAELens on new ones (explained variance,
mean correlation of matched features, F1, dead latents). `run`: rows of a run without those of
norms above 10 medians, judged here on rows of another run: FVU (squared error by squared distance
from the mean), active latents, latents that never fire.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sae_batches import batches
from benchmarks.timing import cpu_name
from extraction import ActivationDataset
from sae.files import load, save
from sae.training.autoencoder_training import AutoencoderTraining
from sae.training.settings import SaeSettings

PEER = str(Path(__file__).with_name("sae_quality_peer.py"))


def train_ours(rows: np.ndarray, folder: Path, options: argparse.Namespace, seed: int) -> dict:
    """Train here, and save the autoencoder."""
    settings = SaeSettings(
        d_sae=str(options.d_sae),
        k=options.k,
        normalize="none",
        learning_rate=options.learning_rate,
        random_seed=seed,
        dead_rows=options.dead_steps * options.batch_size,
    ).resolved(rows.shape[1])
    training = AutoencoderTraining(settings, rows.shape[1], None, options.batch_size, options.steps)
    began = time.monotonic()
    for batch in batches(rows, options.batch_size, options.steps, seed):
        training.step(batch)
    found = {"dead": training.dead(), "seconds": round(time.monotonic() - began)}
    save(training.autoencoder(), folder)
    training.close()
    return found


def peer(options: argparse.Namespace, *words: str) -> Any:
    """Run a command of SAELens' side, and return what it prints last."""
    done = subprocess.run(
        [options.peers, PEER, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None


def train_theirs(path: Path, folder: Path, options: argparse.Namespace, seed: int) -> dict:
    """Train with SAELens, and save the autoencoder."""
    names = ("d_sae", "k", "steps", "batch_size", "dead_steps", "learning_rate")
    flags = [f"--{name}={getattr(options, name)}" for name in names]
    return peer(options, "train", str(path), str(folder), *flags, f"--seed={seed}")


def held_out(folder: Path, rows: np.ndarray) -> dict[str, float]:
    """Return FVU, active latents and latents that never fire, in float64 sums."""
    sae = load(folder)
    error = active = 0.0
    fired = np.zeros(sae.d_sae, bool)
    for begin in range(0, len(rows), 4096):
        part = rows[begin : begin + 4096]
        latents = sae.encode(part)
        error += float(((sae.decode(latents) - part).astype(np.float64) ** 2).sum())
        active += float((latents > 0).sum())
        fired |= (latents > 0).any(0)
    spread = float(((rows - rows.mean(0, dtype=np.float64)) ** 2).sum())
    return {
        "fvu": error / spread,
        "l0": active / len(rows),
        "never fired": int((~fired).sum()),
    }


def filtered(address: str, hook_point: str | None) -> np.ndarray:
    """Return the rows of a run without those of very large norm."""
    dataset = ActivationDataset(address, hook_point)
    return dataset[dataset.kept_rows(max_norm_multiple=10).numbers]


def table(found: dict[str, list[dict[str, float]]]) -> None:
    """Print each seed's figures, then mean and standard deviation."""
    columns = list(next(iter(found.values()))[0])
    print(f"{'trainer, seed':20}" + "".join(f"{column:>14}" for column in columns))
    for name, rows in found.items():
        for seed, row in enumerate(rows):
            print(f"{f'{name}, {seed}':20}" + "".join(f"{row[c]:14.4f}" for c in columns))
        means = [statistics.mean(row[c] for row in rows) for c in columns]
        print(f"{f'{name}, mean':20}" + "".join(f"{mean:14.4f}" for mean in means))
        if len(rows) > 1:
            spread = [statistics.stdev(row[c] for row in rows) for c in columns]
            print(f"{f'{name}, sd':20}" + "".join(f"{sd:14.4f}" for sd in spread))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and judge, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("of", choices=("synthetic", "run"))
    parser.add_argument("--peers", required=True, help="python that has sae-lens")
    parser.add_argument("--activations_dir")
    parser.add_argument("--held_out")
    parser.add_argument("--hook_point")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--d_sae", type=int, default=512)
    parser.add_argument("--k", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--dead_steps", type=int, default=200)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    options = parser.parse_args(arguments)
    found: dict[str, list[dict[str, float]]] = {"SAELens": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        path = work / "rows.npy"
        if options.of == "synthetic":
            peer(options, "rows", str(path), f"--count={options.steps * options.batch_size}")
            unseen = np.zeros(0)
        else:
            np.save(path, filtered(options.activations_dir, options.hook_point))
            unseen = filtered(options.held_out, options.hook_point)
        rows = np.load(path, mmap_mode="r")
        for seed in range(options.seeds):
            for trainer in found:
                folder = work / f"{trainer}_{seed}"
                if trainer == "ours":
                    told = train_ours(rows, folder, options, seed)
                else:
                    told = train_theirs(path, folder, options, seed)
                if options.of == "synthetic":
                    figures = peer(options, "judge", str(folder))
                else:
                    figures = held_out(folder, unseen) | {"dead": told["dead"]}
                found[trainer].append(figures | {"seconds": told["seconds"]})
    print(f"{cpu_name()}; {len(rows):,} rows of width {rows.shape[1]}")
    shown = ("d_sae", "k", "steps", "batch_size", "dead_steps", "learning_rate")
    print(", ".join(f"{name} {getattr(options, name)}" for name in shown))
    table(found)


if __name__ == "__main__":
    main()
