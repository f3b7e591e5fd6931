"""What a run costs whose `metadata.json` lists very many files: for `benchmarks.store`."""

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.shards import LAYERS, MIB, make_block
from extraction.maintenance.verify import verify
from extraction.reading.dataset import ActivationDataset
from extraction.run.identity import RunIdentity, begin
from extraction.run.records import CommitLog
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from extraction.writing.finalise import write_metadata


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


WORKS: dict[str, Callable[[LocalStorage], object]] = {
    "finalising": write_metadata,
    "opening": lambda storage: len(ActivationDataset(storage.folder, LAYERS[0])),
    "verify, level 1": verify,
}


def measured(label: str, folder: Path) -> tuple[float, int]:
    """Seconds that one of `WORKS` took, and the most bytes that this process has held."""
    started = time.perf_counter()
    WORKS[label](LocalStorage(folder))
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_new_process(label: str, folder: Path) -> tuple[float, int]:
    """`measured` where nothing else has been done."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measured, label, folder).result()


def measure_entries(parent: Path, entries: int) -> None:
    """Prints what a run of many files costs."""
    folder = parent / "entries"
    batches = write_entries(folder, entries)
    os.sync()
    print(f"\na run of {entries:,} files of rows in {batches:,} batches")
    for label in WORKS:
        seconds, peaks = zip(*(in_new_process(label, folder) for _ in range(3)), strict=True)
        print(
            f"{label:28} {statistics.median(seconds):6.1f} s ({min(seconds):.1f} to"
            f" {max(seconds):.1f}), {max(peaks) / MIB:6.0f} MiB at most",
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
