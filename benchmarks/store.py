"""What storing costs, and what reading gives, beside what a user would take instead.

    python -m benchmarks.store [--rows 512 4096 18724] [--folder DIR] [--parts write read entries]

write    durable: every file is on the disk before the next unit begins. The same four layers of
         rows as the commands commit them, in each format (checksums, statistics and commit records
         among it; bfloat16 as from a model that computes in it), as a raw stream of the same bytes,
         one file and one fsync for each of ours, and as torch.save, np.savez and Hugging Face
         datasets shards, each synced. Pickling alone, in one thread and to nowhere, is the most
         that the pickle format could reach. All take turns unit by unit, and what they write stays:
         up to 30 GB, more than memory holds, as in a run.
read     from memory that holds the files already: `ActivationDataset.batches`, checksums compared
         and not, against `readinto` new memory, torch.load, np.load and Hugging Face datasets.
entries  what a run costs whose `metadata.json` lists a million files: opening, finalising,
         `verify` at level 1, each in a process of its own, the median of three, of which the first
         may find that the system has let go what it knew of the files; and a commit there against
         one in an empty folder.

512 rows are a file of last-token work; 18,724 of this width are the 64 MiB that the commands put in
safetensors files where every token has a row.

What is compared takes turns in one process, in an order drawn anew in each round; each reader and
its `readinto` have one of their own, as memory that other libraries have used and given back makes
reading faster or slower. Ratios are medians over the rounds of the ratio within a round, so that a
disk that drifts is fair to all.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.entries import measure_entries
from benchmarks.shards import (
    LAYERS,
    MIB,
    OTHERS,
    WIDTH,
    in_dtype,
    make_block,
    pickle_only,
    read_stream,
    with_own_ids,
    write_arrow,
    write_savez,
    write_stream,
    write_torch,
)
from extraction.formats import FORMATS
from extraction.reading.dataset import ActivationDataset
from extraction.run.identity import RunIdentity, begin
from extraction.run.rows import RowBlock
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata

LARGE_FILE = 64 << 20
ROWS_OF_A_RUN = 65_536

Work = Callable[[int], Callable[[], object]]
"""Makes everything ready for a round, whose number it gets, from 1; what it gives is measured."""


def begin_run(folder: Path, block: RowBlock, file_format: str, dtype: str) -> Committer:
    """As the commands write: a unit at a time."""
    storage, hooks = LocalStorage(folder), tuple(block.activations)
    identity = RunIdentity.new(
        model_name="random", hook_points=hooks, hidden_dim=WIDTH, file_format=file_format,
        dtype=dtype,
    )  # fmt: skip
    begin(storage, identity)
    return Committer(storage, hooks, file_format, dtype)


def label_of(file_format: str, dtype: str) -> str:
    """Of a line in the tables."""
    return file_format if dtype == "float32" else f"{file_format}, {dtype}"


OURS = {
    label_of(name, dtype): (name, dtype)
    for name, kind in FORMATS.items()
    if kind.writable
    for dtype in kind.dtypes
}


def data_files(folder: Path) -> list[Path]:
    """The files that hold rows."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 10_000]


def rounds(works: Mapping[str, Work], repeats: int) -> dict[str, list[float]]:
    """Seconds of each in each round but the first, in an order that is drawn for each round."""
    seconds: dict[str, list[float]] = {label: [] for label in works}
    order, generator = list(works.items()), random.Random(0)
    for number in range(1, repeats + 2):
        generator.shuffle(order)
        for label, work in order:
            run = work(number)
            os.sync()
            started = time.perf_counter()
            run()
            seconds[label].append(time.perf_counter() - started)
    return {label: times[1:] for label, times in seconds.items()}


def report(
    seconds: Mapping[str, list[float]], sizes: Mapping[str, int], against: Mapping[str, str]
) -> None:
    """Prints a table: speed, and the ratio of speeds within a round."""
    for label, times in seconds.items():
        speed = sizes[label] / statistics.median(times) / MIB
        line = f"{label:28} {speed:8.0f} MiB/s"
        if label in against:
            ratios = [
                (sizes[label] / own) / (sizes[against[label]] / other)
                for own, other in zip(times, seconds[against[label]], strict=True)
            ]
            line += f"  {statistics.median(ratios):5.2f} of {against[label]}"
        print(line, flush=True)


def write_works(parent: Path, block: RowBlock) -> dict[str, Work]:
    """Everything that writes, each in a folder of its own; a round is a unit."""
    content = memoryview(np.random.default_rng(1).bytes(len(block) * WIDTH * 4))
    half = content[: len(content) // 2]
    others: dict[str, Callable[[Path, RowBlock], object]] = {
        "raw stream": lambda folder, _: write_stream(folder, [content] * len(LAYERS)),
        "raw stream, half the bytes": lambda folder, _: write_stream(folder, [half] * len(LAYERS)),
        "pickling alone": lambda _, block: pickle_only(block),
        "torch.save": write_torch,
        "np.savez": write_savez,
        "datasets (Arrow)": write_arrow,
    }

    def commits(committer: Committer, dtype: str) -> Work:
        rows = in_dtype(block, dtype)
        return lambda number: partial(committer.commit, number, with_own_ids(rows, number))

    def writes(label: str, write: Callable[[Path, RowBlock], object]) -> Work:
        def work(number: int) -> Callable[[], object]:
            folder = parent / label / str(number)
            folder.mkdir(parents=True)
            return partial(write, folder, with_own_ids(block, number))

        return work

    works = {
        label: commits(begin_run(parent / label, block, *form), form[1])
        for label, form in OURS.items()
    }
    return works | {label: writes(label, write) for label, write in others.items()}


def measure_write(parent: Path, rows: int, repeats: int) -> None:
    """Prints the table of writing."""
    block = make_block(rows)
    units = max(repeats, ROWS_OF_A_RUN // rows)
    runs = -(-3 * repeats // units)  # a few units tell little of a disk whose speed changes
    print(f"\nwrite, {runs} times {units} batches of {rows} rows, 4 layers of width {WIDTH}")
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            for label, times in rounds(write_works(Path(folder), block), units).items():
                seconds[label] += times
            for label in seconds:
                written = sum(path.stat().st_size for path in data_files(Path(folder) / label))
                sizes[label] = written // (units + 1)
    # Ratios are of the bytes that each has to store; pickling alone and the shards of others are
    # of the same rows.
    stream, half = "raw stream", "raw stream, half the bytes"
    for label in seconds.keys() - OURS.keys() - {half}:
        sizes[label] = sizes[stream]
    against = {label: half if "bfloat16" in label else stream for label in seconds}
    del against[stream]
    report(seconds, sizes, against)
    ratios = [
        max(streamed, alone) / own
        for own, streamed, alone in zip(
            seconds["pickle"], seconds[stream], seconds["pickling alone"], strict=True
        )
    ]
    least = statistics.median(ratios)
    print(f"pickle: {least:.2f} of the lesser of raw stream and pickling alone")


def read_run(folder: Path, rows: int, *, verified: bool) -> None:
    """All rows in batches."""
    dataset = ActivationDataset(folder, LAYERS, dtype="stored", verify_checksums=verified)
    with dataset.batches(rows) as stream:
        for _ in stream:
            pass


def read_rounds(label: str, folder: Path, rows: int, repeats: int) -> dict[str, list[float]]:
    """`rounds` of a reader and the `readinto` of its files."""
    if label in OTHERS:
        read = OTHERS[label][1]
        shards = sorted(shard for unit in folder.iterdir() for shard in unit.iterdir())
        works: dict[str, Work] = {label: lambda _: lambda: [read(shard) for shard in shards]}
    else:
        works = {
            label: lambda _: partial(read_run, folder, rows, verified=True),
            f"{label}, unverified": lambda _: partial(read_run, folder, rows, verified=False),
        }
    files = sorted(data_files(folder))
    works[f"readinto, {label}"] = lambda _: partial(read_stream, files)
    return rounds(works, repeats)


def measure_read(parent: Path, rows: int, repeats: int) -> None:
    """Prints the table of reading."""
    block = make_block(rows)
    batches = max(4, ROWS_OF_A_RUN // rows)
    print(f"\nread, {batches} batches of {rows} rows, {len(LAYERS)} layers of width {WIDTH}")
    for label in (*OURS, *OTHERS):
        folder = parent / "run"
        if label in OTHERS:
            for number in range(batches):
                (folder / str(number)).mkdir(parents=True)
                OTHERS[label][0](folder / str(number), block)
        else:
            committer = begin_run(folder, block, *OURS[label])
            for number in range(1, batches + 1):
                committer.commit(number, with_own_ids(block, number))
            write_metadata(LocalStorage(folder))
        size = sum(path.stat().st_size for path in data_files(folder))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            seconds = process.submit(read_rounds, label, folder, rows, repeats).result()
        stream = f"readinto, {label}"
        against = {work: stream for work in seconds if work != stream}
        report(seconds, dict.fromkeys(seconds, size), against)
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[512, 4096, LARGE_FILE // (4 * WIDTH)]
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--folder", help="on the disk that is to be measured")
    parts = ["write", "read", "entries"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    options = parser.parse_args(arguments)
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, "
        + ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "datasets"))
    )
    for part, measure in (("write", measure_write), ("read", measure_read)):
        for rows in options.rows if part in options.parts else ():
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                measure(Path(folder), rows, options.repeats)
    if "entries" in options.parts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure_entries(Path(folder), options.entries)


if __name__ == "__main__":
    main()
