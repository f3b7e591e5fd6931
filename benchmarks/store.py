"""What storing costs, and what reading gives, beside what a user would take instead.

    python -m benchmarks.store [--rows 512 4096 18724] [--folder DIR] [--parts write read entries]

write    durable: every file is on the disk before the next unit begins. The same four layers of
         rows as the commands commit them, in each format (checksums, statistics and commit records
         among it), as a raw stream of the same bytes, one file and one fsync for each of ours, and
         as torch.save, np.savez and Hugging Face datasets shards, each synced. Pickling alone, in
         one thread and to nowhere, is the most that the pickle format could reach. All take turns
         unit by unit, and what they write stays: up to 30 GB, more than memory holds, as in a run.
read     from memory that holds the files already: `ActivationDataset.batches`, checksums compared
         and not, against `readinto` new memory, torch.load, np.load and Hugging Face datasets.
entries  what a run costs whose `metadata.json` lists a million files: opening, finalising,
         `verify` at level 1, each in a process of its own, the median of three, of which the first
         may find that the system has let go what it knew of the files; and a commit there against
         one in an empty folder.

512 rows are a file of last-token work; 18,724 of this width are the 64 MiB that the commands put in
safetensors and raw files where every token has a row.

What is compared takes turns in one process, in an order drawn anew in each round; each reader and
its `readinto` have one of their own, as memory that other libraries have used and given back makes
reading faster or slower. Ratios are medians over the rounds of the ratio within a round, so that a
disk that drifts is fair to all.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import multiprocessing
import os
import pickle
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from extraction.commit_log import CommitLog
from extraction.committer import Committer
from extraction.finalise import write_metadata
from extraction.formats import FORMATS
from extraction.reader import ActivationDataset
from extraction.rows import RowBlock, text_column
from extraction.run_identity import RunIdentity, begin
from extraction.storage.local import LocalStorage
from extraction.verify import verify

LAYERS = (6, 12, 18, 23)
WIDTH = 896
LARGE_FILE = 64 << 20
ROWS_OF_A_RUN = 65_536
MIB = 1 << 20

Work = Callable[[int], Callable[[], object]]
"""Makes everything ready for a round, whose number it gets, from 1; what it gives is measured."""


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


def with_own_ids(block: RowBlock, number: int) -> RowBlock:
    """The same activations with task ids that no other batch has."""
    task_ids = text_column([f"{number}_{task_id}" for task_id in block.task_ids])
    return dataclasses.replace(block, task_ids=task_ids)


def begin_run(folder: Path, block: RowBlock, file_format: str, dtype: str) -> Committer:
    """As the commands write: a unit at a time."""
    storage, hooks = LocalStorage(folder), tuple(block.activations)
    identity = RunIdentity.new(
        model_name="random", hook_points=hooks, hidden_dim=WIDTH, file_format=file_format,
        dtype=dtype,
    )  # fmt: skip
    begin(storage, identity)
    return Committer(storage, hooks, file_format, dtype)


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


def label_of(file_format: str, dtype: str) -> str:
    """Of a line in the tables."""
    return file_format if dtype == "float32" else f"{file_format}, {dtype}"


OURS = {
    label_of(name, dtype): (name, dtype) for name, kind in FORMATS.items() for dtype in kind.dtypes
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

    def commits(committer: Committer) -> Work:
        return lambda number: partial(committer.commit, number, with_own_ids(block, number))

    def writes(label: str, write: Callable[[Path, RowBlock], object]) -> Work:
        def work(number: int) -> Callable[[], object]:
            folder = parent / label / str(number)
            folder.mkdir(parents=True)
            return partial(write, folder, with_own_ids(block, number))

        return work

    works = {
        label: commits(begin_run(parent / label, block, *form)) for label, form in OURS.items()
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


def read_stream(files: Sequence[Path]) -> None:
    """`readinto` new memory, one file after the other; a batch is kept until the next is there."""
    kept = deque(maxlen=2 * len(LAYERS))
    for path in files:
        with path.open("rb", buffering=0) as stream:
            kept.append(np.empty(os.fstat(stream.fileno()).st_size, np.uint8))
            stream.readinto(kept[-1].data)


def read_run(folder: Path, rows: int, *, verified: bool) -> None:
    """All rows in batches."""
    dataset = ActivationDataset(folder, LAYERS, dtype="stored", verify_checksums=verified)
    with dataset.batches(rows) as stream:
        for _ in stream:
            pass


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


def write_entries(folder: Path, entries: int) -> int:
    """A run with so many files, made quickly: small, and nothing synced. Gives its batches."""
    batches = entries // len(LAYERS)
    storage = LocalStorage(folder)
    hooks = tuple(f"layer_{layer}" for layer in LAYERS)
    identity = RunIdentity.new(
        model_name="random", hook_points=hooks, hidden_dim=8, file_format="safetensors",
        planned_batches=batches,
    )  # fmt: skip
    begin(storage, identity)
    block = make_block(64, width=8)
    line = {"task_id": "t", "sample_idx": 0, "generated_token_ids": [], "finish_reason": "length"}
    record = Committer(storage, hooks, "safetensors").commit(1, block, [line])
    files = {file.file: storage.get(file.file) for file in record.all_files()}
    text = CommitLog(storage).read(1).to_json().decode()
    for batch_id in range(2, batches + 1):
        new = f"{batch_id:06d}"
        for name, data in files.items():
            (folder / name.replace("000001", new)).write_bytes(data)
        changed = text.replace("000001", new).replace('"batch_id": 1,', f'"batch_id": {batch_id},')
        (folder / f"_run/commits/{new}.json").write_text(changed)
    return batches


ENTRIES_WORK: dict[str, Callable[[Path], object]] = {
    "opening": lambda folder: len(ActivationDataset(folder, LAYERS[0])),
    "finalising": lambda folder: write_metadata(LocalStorage(folder)),
    "verify, level 1": lambda folder: verify(LocalStorage(folder)).exit_status,
}


def measure_entries(parent: Path, entries: int) -> None:
    """Prints what a run of many files costs."""
    folder = parent / "entries"
    batches = write_entries(folder, entries)
    os.sync()
    print(f"\na run of {entries:,} files of rows in {batches:,} batches")
    for label in ("finalising", "opening", "verify, level 1"):
        told = [told_by_process(label, folder) for _ in range(3)]
        seconds = [one["seconds"] for one in told]
        peak = max(one["peak"] for one in told) / MIB
        print(
            f"{label:28} {statistics.median(seconds):6.1f} s ({min(seconds):.1f} to"
            f" {max(seconds):.1f}), {peak:6.0f} MiB at most",
            flush=True,
        )
    hooks = tuple(f"layer_{layer}" for layer in LAYERS)
    block = make_block(64, width=8)
    places = {"full": LocalStorage(folder), "empty": LocalStorage(parent / "empty")}
    taken: dict[str, list[float]] = {name: [] for name in places}
    for number in range(batches + 1, batches + 201):
        for name, storage in places.items():
            started = time.perf_counter()
            Committer(storage, hooks, "safetensors").commit(number, block)
            taken[name].append(time.perf_counter() - started)
    median = {name: statistics.median(times) for name, times in taken.items()}
    ratio = median["full"] / median["empty"]
    print(
        f"{'a commit there':28} {median['full'] * 1e3:6.1f} ms, {ratio:.2f} of one in a new folder"
    )


def told_by_process(label: str, folder: Path) -> dict[str, float]:
    """What `entries_work` prints, in a new process."""
    command = [sys.executable, "-m", "benchmarks.store", "--entries_work", label]
    command += ["--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def entries_work(label: str, folder: Path) -> None:
    """One of `ENTRIES_WORK` in this process; prints JSON."""
    started = time.perf_counter()
    ENTRIES_WORK[label](folder)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


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
    parser.add_argument("--entries_work", choices=ENTRIES_WORK, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.entries_work:
        entries_work(options.entries_work, Path(options.folder))
        return
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
