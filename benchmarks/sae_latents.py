"""Time and memory of `python -m sae latents` on synthetic rows, in a process of its own.

    python -m benchmarks.sae_latents --rows 1e6

Rows are sums of sparse directions with noise, every token of samples of 512 tokens, in safetensors
files. The autoencoder has random directions; thresholds give each latent a density of its own, and
a row `--l0` active latents in the mean. The time is that of the whole command, with its second
read, `latents.jsonl` and `latents.html`; memory is the most that was resident, by the kernel.
`--again` repeats the command with `--resume True`, which has only the part after the pass to do.
"""

import argparse
import datetime
import os
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
from sae import SparseAutoencoder, save

HOOK = "layer_0"
SAMPLE_TOKENS = 512
FILE_ROWS = 32_768
VOCABULARY = 50_000


def write_rows(folder: Path, pool: np.ndarray, count: int) -> None:
    """Write a run of rows that differ from those of the pool by noise."""
    random = np.random.default_rng(1)
    texts = {token: f" token{token}" for token in range(VOCABULARY)}
    width = pool.shape[1]
    with ActivationWriter(
        folder,
        {HOOK: width},
        store_format="safetensors",
        rows_per_file=FILE_ROWS,
        model_name="synthetic",
        token_text=texts,
    ) as writer:
        for start in range(0, count, FILE_ROWS):
            rows = min(FILE_ROWS, count - start)
            noise = random.standard_normal((rows, width), dtype=np.float32)
            values = pool[random.integers(0, len(pool), rows)] + np.float32(0.2) * noise
            numbers = np.arange(start, start + rows)
            block = RowBlock.of(
                {HOOK: values},
                [f"document {number // SAMPLE_TOKENS}" for number in numbers],
                position=numbers % SAMPLE_TOKENS,
                token_id=random.zipf(1.3, rows) % VOCABULARY,
            )
            writer.add(block)


def autoencoder(pool: np.ndarray, d_sae: int, l0: float, architecture: str) -> SparseAutoencoder:
    """Return random directions whose thresholds, or whose k, give `l0` active latents of a row."""
    random = np.random.default_rng(2)
    encoder = random.standard_normal((pool.shape[1], d_sae), dtype=np.float32)
    encoder /= np.linalg.norm(encoder, axis=0)
    threshold, k = None, int(l0)
    if architecture == "jumprelu":
        density = np.exp(1.5 * random.standard_normal(d_sae))
        density = np.minimum(density * l0 / density.sum(), 0.5)
        pre = np.sort(pool[:8192] @ encoder, axis=0)
        place = ((1 - density) * (len(pre) - 1)).astype(int)
        threshold, k = np.maximum(pre[place, np.arange(d_sae)], 0), None
    return SparseAutoencoder(
        architecture=architecture,
        W_enc=encoder,
        W_dec=np.ascontiguousarray(encoder.T),
        b_enc=np.zeros(d_sae, np.float32),
        b_dec=np.zeros(pool.shape[1], np.float32),
        threshold=threshold,
        k=k,
        metadata={"hook_point": HOOK},
    )


def command(words: Sequence[str]) -> tuple[float, int, str]:
    """Run `python -m sae latents`; return its seconds, most resident bytes, and what it printed."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "sae", "latents", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command ended with status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024, told


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--d_sae", type=int, default=8192)
    parser.add_argument("--l0", type=float, default=48)
    parser.add_argument("--architecture", choices=("jumprelu", "topk"), default="jumprelu")
    parser.add_argument("--again", action="store_true", help="also with the pass finished")
    options = parser.parse_args(arguments)
    rows = int(options.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = rows_like_activations(min(rows, 16_384), options.width)
        save(autoencoder(pool, options.d_sae, options.l0, options.architecture), folder / "sae")
        write_rows(folder / "run", pool, rows)
        words = [str(folder / "sae"), "--activations_dir", str(folder / "run")]
        words += ["--output_dir", str(folder / "out")]
        seconds, memory, told = command(words)
        again = command([*words, "--resume", "True"])[0] if options.again else None
        passed = next((folder / "out/pass").iterdir()).stat().st_size
        sizes = {path.name: path.stat().st_size for path in (folder / "out").iterdir()}
        beside = sum(path.stat().st_size for path in (folder / "out").glob("latents_data/*"))
    print(f"{datetime.date.today()}, numpy {np.__version__}")
    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, float32")
    print(
        f"{rows:,} rows of width {options.width}, {options.d_sae:,} latents, {options.architecture}"
    )
    print(told.partition(": ")[2].splitlines()[0])
    print(f"whole command             {seconds:10.0f} s, {rows / seconds:,.0f} rows/s")
    if again is not None:
        print(f"of it, after the pass     {again:10.0f} s")
    print(f"most resident memory      {memory / 1e9:10.2f} GB")
    print(f"the pass's file           {passed / 1e6:10.1f} MB")
    print(f"latents.jsonl             {sizes['latents.jsonl'] / 1e6:10.1f} MB")
    print(f"latents.html              {sizes['latents.html'] / 1e6:10.1f} MB")
    print(f"latents_data/             {beside / 1e6:10.1f} MB")


if __name__ == "__main__":
    main()
