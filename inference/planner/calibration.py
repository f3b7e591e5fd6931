"""Calibration: time a plan's batches on this machine's devices, with real parameters and prompts.

For a few buckets from the shortest to the longest, the first batch runs once to compile and then
several times more, on the engine that a run uses; buckets in between are interpolated. The
self-check of a sample is timed twice, and committing a unit once, on the disk where the files will
be. All files are removed afterwards.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from extraction.interruption import raised_in_main
from extraction.storage.local import LocalStorage
from extraction.writing.committer import Committer
from inference.engine.batches import SampleResult
from inference.engine.engine import Engine
from inference.engine.job import Job
from inference.engine.plan import Batch
from inference.engine.self_check import SelfCheck, plan_check
from inference.outputs import output_line
from inference.planner.seconds import Rates, batches_of
from inference.planner.sizes import unit_keys, with_zeros
from qwen_hooks import load_params
from qwen_hooks.hook_points import hook_widths

TIMED_BUCKETS = 5


def calibrate(job: Job, repeats: int) -> Rates:
    """Measure the costs of a job's parts on this machine.

    Args:
        job: a job for the devices of this process.
        repeats: number of times that a batch is timed.
    """
    pretrained = job.prepared.pretrained
    batches = batches_of(job, job.workers.number, ())
    started = time.perf_counter()
    params = load_params(
        pretrained.checkpoint,
        pretrained.dtype,
        job.workers.layout,
        scan_layers=job.settings.scan_layers,
    )
    jax.block_until_ready(params)
    load = time.perf_counter() - started
    engine = job.engine(params)
    by_bucket = {batch.bucket: batch for batch in reversed(batches)}
    buckets = sorted(by_bucket)
    timed = _spread(buckets, TIMED_BUCKETS)
    first, steady, kept = {}, {}, {}
    for bucket in timed:
        first[bucket], kept[bucket] = _run(job, engine, [by_bucket[bucket]])
        seconds = [_run(job, engine, [by_bucket[bucket]] * 2)[0] / 2 for _ in range(repeats)]
        steady[bucket] = float(np.median(seconds))
    planned = plan_check(batches, job.settings.self_check_rows, job.settings.max_new_tokens)
    alone, checks = job.model("xla"), [0.0, 0.0]
    for turn in range(2 if planned.samples else 0):
        started = time.perf_counter()
        SelfCheck(alone, params, planned).check(kept[timed[0]])  # all are padded to one length
        checks[turn] = time.perf_counter() - started
    return Rates(
        source=f"measured here, on {len(jax.local_devices())} {jax.devices()[0].device_kind},"
        f" {repeats} times for each of {len(timed)} buckets",
        load=load,
        compile=_between({b: max(0.0, first[b] - steady[b]) for b in timed}, buckets),
        batch=_batch_seconds(job, steady, buckets),
        check=(max(0.0, checks[0] - checks[1]), checks[1]),
        unit=_commit_seconds(job),
    )


def _run(job: Job, engine: Engine, batches: Sequence[Batch]) -> tuple[float, SampleResult]:
    """Return the seconds until all rows of some batches are here, and the result of one sample."""
    started = time.perf_counter()
    *_, result = engine.run(batches, job.prepared.samples)
    return time.perf_counter() - started, result


def _commit_seconds(job: Job) -> float:
    """Return the seconds to commit a unit of median size."""
    later = job.prepared.positions.most_generated(job.settings.max_new_tokens)
    planned = [
        (sum(len(job.prepared.samples[n].positions) + later for n in unit.samples), unit.number)
        for unit in job.units
        if unit.bucket
    ]
    unit = job.units[sorted(planned)[len(planned) // 2][1]]
    keys = unit_keys(job, unit, later)
    hook_points = job.prepared.pretrained.model.hook_points
    dtype = job.settings.stored_dtype(str(job.prepared.pretrained.dtype))
    widths = hook_widths(hook_points, job.prepared.pretrained.checkpoint.config)
    samples = [job.prepared.samples[number] for number in unit.samples]
    lines = [output_line(sample, [], None, "length") for sample in samples]
    place = disk_of(job.settings.spool)
    with raised_in_main(), tempfile.TemporaryDirectory(dir=place) as folder:
        committer = Committer(LocalStorage(folder), hook_points, job.settings.format, dtype)
        block = None if keys is None else with_zeros(keys, widths, dtype)
        started = time.perf_counter()
        committer.commit(1, block, lines)
        return time.perf_counter() - started


def disk_of(folder: Path) -> Path:
    """Return the nearest existing parent folder of a folder."""
    path = folder.expanduser().absolute()
    return next(parent for parent in path.parents if parent.is_dir())


def _spread(buckets: Sequence[int], count: int) -> list[int]:
    """Return at most `count` buckets, evenly spread, with the first and the last."""
    places = np.linspace(0, len(buckets) - 1, min(count, len(buckets)))
    return [buckets[place] for place in np.unique(places.round().astype(int))]


def _between(seconds: Mapping[int, float], buckets: Sequence[int]) -> dict[int, float]:
    """Return the seconds of every bucket, interpolated linearly between timed ones."""
    known = sorted(seconds)
    found = np.interp(buckets, known, [seconds[bucket] for bucket in known])
    return dict(zip(buckets, found.tolist(), strict=True))


def _batch_seconds(
    job: Job, timed: Mapping[int, float], buckets: Sequence[int]
) -> dict[int, float]:
    """Return the seconds of every bucket's batch, interpolated in seconds per token."""
    tokens = {bucket: bucket * job.plan.batch_size(bucket) for bucket in buckets}
    of_token = _between({bucket: timed[bucket] / tokens[bucket] for bucket in timed}, buckets)
    return {bucket: of_token[bucket] * tokens[bucket] for bucket in buckets}
