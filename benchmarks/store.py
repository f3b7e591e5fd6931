"""What storing costs, and what reading gives, beside what a user would take instead.

    python -m benchmarks.store [--rows 512 4096 18724] [--folder DIR] [--parts write read entries]

write    durable: every file is on the disk before the next begins. The same four layers of rows as
         the commands commit them, in each format (checksums, statistics and commit
         records among it), as a raw stream of the same bytes, one file and one fsync for each of
         ours, and as torch.save, np.savez and Hugging Face datasets shards, each synced. Pickling
         alone, in one thread and to nowhere, is the most that the pickle format could reach.
read     from memory that holds the files already: `ActivationDataset.batches`, checksums compared
         and not, against `readinto` new memory, torch.load, np.load and Hugging Face datasets.
entries  what a run costs whose `metadata.json` lists a million files: opening, finalising,
         `verify` at level 1, each in a process of its own, the median of three, of which the first
         may find that the system has let go what it knew of the files; and a commit there against
         one in an empty folder.

512 rows are a file of last-token work; 18,724 of this width are the 64 MiB that the commands put in
safetensors and raw files where every token has a row.

All that is compared takes turns in one process, in an order drawn anew in each round; each reader
and its `readinto` have one of their own, as memory that other libraries have used and given back
makes reading faster or slower. Ratios are medians over the rounds of the ratio within a round, so
that a disk that drifts is fair to all.
"""

import argparse
import collections
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
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

Work = Callable[[Path], object]


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


def blocks_of_run(block: RowBlock, batches: int) -> list[RowBlock]:
    """The same activations with task ids of their own."""
    return [
        dataclasses.replace(
            block, task_ids=text_column([f"{number}_{task_id}" for task_id in block.task_ids])
        )
        for number in range(1, batches + 1)
    ]


def write_run(folder: Path, blocks: Sequence[RowBlock], file_format: str, dtype: str) -> None:
    """As the commands write: a unit at a time."""
    storage, hooks = LocalStorage(folder), tuple(blocks[0].activations)
    identity = RunIdentity.new(
        model_name="random",
        hook_points=hooks,
        hidden_dim=WIDTH,
        file_format=file_format,
        dtype=dtype,
        planned_batches=len(blocks),
    )
    begin(storage, identity)
    committer = Committer(storage, hooks, file_format, dtype)
    for number, block in enumerate(blocks, start=1):
        committer.commit(number, block)
    write_metadata(storage)


@contextlib.contextmanager
def synced(path: Path) -> Iterator[None]:
    """What is written to the path, a file or a folder of files, is on the disk afterwards."""
    yield
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def shards(block: RowBlock, batches: int) -> Iterator[tuple[str, np.ndarray]]:
    """A name and the rows of each file."""
    for number in range(batches):
        for hook, rows in block.activations.items():
            yield f"{hook}_{number}", rows


def write_stream(folder: Path, sizes: Sequence[int], content: memoryview) -> None:
    """Bytes, as fast as the disk takes them."""
    folder.mkdir()
    for number, size in enumerate(sizes):
        descriptor = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT, 0o666)
        left = content[:size]
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
        os.close(descriptor)


def write_torch(folder: Path, block: RowBlock, batches: int) -> None:
    """Shards as many training scripts keep them."""
    import torch  # here, as processes that do not measure it need not take its memory

    folder.mkdir()
    for name, rows in shards(block, batches):
        with synced(folder / name):
            torch.save({"activations": torch.from_numpy(rows)}, folder / name)


def write_savez(folder: Path, block: RowBlock, batches: int) -> None:
    """numpy's own archives."""
    folder.mkdir()
    for name, rows in shards(block, batches):
        with synced(folder / f"{name}.npz"):
            np.savez(folder / f"{name}.npz", activations=rows)


def write_arrow(folder: Path, block: RowBlock, batches: int) -> None:
    """Hugging Face datasets, made of Arrow arrays that share our memory."""
    import datasets
    import pyarrow as pa

    datasets.disable_progress_bars()
    folder.mkdir()
    for name, rows in shards(block, batches):
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        with synced(folder / name):
            datasets.Dataset(pa.table({"activation": column})).save_to_disk(folder / name)


def pickle_only(block: RowBlock, batches: int) -> None:
    """Founding document 004's documents, to nowhere."""
    for hook, rows in list(block.activations.items()) * batches:
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


def rounds(works: Mapping[str, Work], parent: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each in each round but the first, in an order that is drawn for each round.

    Each finds what the one before it left: memory that the system need not fetch again, a disk
    that rested.
    """
    seconds: dict[str, list[float]] = {label: [] for label in works}
    order, generator = list(works.items()), random.Random(0)
    for _ in range(repeats + 1):
        generator.shuffle(order)
        for label, work in order:
            folder = parent / "work"
            os.sync()
            started = time.perf_counter()
            work(folder)
            seconds[label].append(time.perf_counter() - started)
            shutil.rmtree(folder, ignore_errors=True)
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


def measure_write(parent: Path, rows: int, repeats: int) -> None:
    """Prints the table of writing."""
    block = make_block(rows)
    batches = max(2, ROWS_OF_A_RUN // rows)
    blocks = blocks_of_run(block, batches)
    print(f"\nwrite, {batches} batches of {rows} rows, {len(LAYERS)} layers of width {WIDTH}")
    works: dict[str, Work] = {}
    sizes: dict[str, int] = {}
    for label, form in OURS.items():
        write_run(parent / "sizes", blocks, *form)
        own = [path.stat().st_size for path in data_files(parent / "sizes")]
        shutil.rmtree(parent / "sizes")
        sizes[label] = sum(own)
        works[label] = lambda folder, form=form: write_run(folder, blocks, *form)
    number, size = batches * len(LAYERS), rows * WIDTH * 4
    content = memoryview(np.random.default_rng(1).bytes(size))
    others: dict[str, Work] = {
        "raw stream": lambda folder: write_stream(folder, [size] * number, content),
        "raw stream, half the bytes": lambda folder: write_stream(
            folder, [size // 2] * number, content
        ),
        "pickling alone": lambda folder: pickle_only(block, batches),
        "torch.save": lambda folder: write_torch(folder, block, batches),
        "np.savez": lambda folder: write_savez(folder, block, batches),
        "datasets (Arrow)": lambda folder: write_arrow(folder, block, batches),
    }
    sizes |= dict.fromkeys(others, number * size) | {
        "raw stream, half the bytes": number * (size // 2)
    }
    seconds = rounds(works | others, parent, repeats)
    against = {label: "raw stream" for label in seconds if label != "raw stream"}
    for label in works:
        if "bfloat16" in label:
            against[label] = "raw stream, half the bytes"
    report(seconds, sizes, against)
    ratios = [
        max(stream, alone) / own
        for own, stream, alone in zip(
            seconds["pickle"], seconds["raw stream"], seconds["pickling alone"], strict=True
        )
    ]
    least = statistics.median(ratios)
    print(f"pickle: {least:.2f} of the lesser of raw stream and pickling alone")


def read_stream(files: Sequence[Path]) -> None:
    """`readinto` new memory, one file after the other; a batch is kept until the next is there."""
    kept = collections.deque(maxlen=2 * len(LAYERS))
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


OTHERS: dict[str, tuple[Callable[[Path, RowBlock, int], None], Callable[[Path], object]]] = {
    "torch.load": (write_torch, read_torch),
    "np.load": (write_savez, read_savez),
    "datasets (Arrow)": (write_arrow, read_arrow),
}
"""How others write their shards, and read one."""


def read_rounds(label: str, folder: Path, rows: int, repeats: int) -> dict[str, list[float]]:
    """`rounds` of a reader and the `readinto` of its files."""
    if label in OTHERS:
        read, shards = OTHERS[label][1], sorted(folder.iterdir())
        works: dict[str, Work] = {label: lambda _: [read(shard) for shard in shards]}
    else:
        works = {
            label: lambda _: read_run(folder, rows, verified=True),
            f"{label}, unverified": lambda _: read_run(folder, rows, verified=False),
        }
    files = sorted(data_files(folder))
    works[f"readinto, {label}"] = lambda _: read_stream(files)
    return rounds(works, folder.parent, repeats)


def measure_read(parent: Path, rows: int, repeats: int) -> None:
    """Prints the table of reading."""
    block = make_block(rows)
    batches = max(4, ROWS_OF_A_RUN // rows)
    print(f"\nread, {batches} batches of {rows} rows, {len(LAYERS)} layers of width {WIDTH}")
    for label in (*OURS, *OTHERS):
        folder = parent / "run"
        if label in OTHERS:
            OTHERS[label][0](folder, block, batches)
        else:
            write_run(folder, blocks_of_run(block, batches), *OURS[label])
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
