"""The plan of a run before it runs: rows, bytes, files, programs, memory, hours, dollars.

Tasks are read, tokenised and cut into units by the command's own code, so the counts are those of
the run, and whatever the command would refuse is refused here. Nothing is written.

Read in this order: `sizes` (files, to the byte), `seconds` (from rates), `calibration` (rates,
measured), `compiled` (memory, by the TPU's compiler), `report` (what is printed).
"""

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Sequence

import jax

from extraction.errors import StoreError
from extraction.interruption import raised_in_main
from extraction.setting_names import setting
from extraction.storage import open_cloud, scheme_of
from inference.engine.hosts import Workers, plan_workers, prompt_attention
from inference.engine.job import Job, plan_job
from inference.engine.memory import MemoryEstimate, estimate_memory
from inference.engine.prepare import prepare
from inference.engine.pretrained import Pretrained
from inference.errors import InputError
from inference.inputs.tasks import Task
from inference.planner.calibration import calibrate, disk_of
from inference.planner.compiled import compile_job, has_compiler
from inference.planner.machines import Machine
from inference.planner.prices import PRICES, Prices
from inference.planner.report import Planned
from inference.planner.seconds import PlannedTime, assumed_rates, batches_of, planned_time, work_of
from inference.planner.sizes import PlannedFiles, planned_files
from inference.planner.slices import slice_layout, slice_workers
from inference.settings.commands import DISTRIBUTED, DistributedSettings
from inference.unit_run import UnitRun
from qwen_hooks.attention_backends import choose_attention
from qwen_hooks.hook_points import hook_widths

log = logging.getLogger(__name__)

NO_TIME = PlannedTime(
    source="nothing is left to run", load=0.0, compile=0.0, batches=0.0, check=0.0, commits=0.0
)

DEVICE_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
"""Generation by JAX's name of the device."""


def make_plan(
    settings: DistributedSettings,
    tasks: Sequence[Task],
    slice_: Machine | None = None,
    *,
    repeats: int = 0,
    compile_memory: bool = False,
    prices: Prices = PRICES,
) -> Planned:
    """Plan a run of the distributed command.

    Args:
        settings: settings of the command.
        tasks: tasks of the run.
        slice_: slice to plan for; None: this machine.
        repeats: number of times that a batch is timed on the devices here; 0: no timing.
        compile_memory: whether to ask the TPU compiler, if installed, for the memory of the
            fullest batch.
        prices: prices of chips.

    Raises:
        InputError: the run cannot work with these settings.
        ModelError: the model cannot be run there.
        StoreError: the folder or the bucket cannot be used.
    """
    if slice_ is not None:
        if repeats:
            _check_devices(slice_)
        if settings.dtype == "auto":
            settings = dataclasses.replace(settings, dtype="bfloat16")
    prepared = prepare(settings, tasks)
    samples = prepared.samples
    workers, mesh, attention = _lay_out(prepared.settings, prepared.pretrained, slice_)
    job = plan_job(prepared, workers, attention)
    committed = _committed(job, is_here=slice_ is None)
    missing = [unit for unit in job.units if unit.number not in committed]
    files = planned_files(job, job.units)
    place = _check_place(job, files, planned_files(job, missing), slice_)
    buckets = tuple(sorted({unit.bucket for unit in missing if unit.bucket}))
    memory = {bucket: _memory(job, bucket) for bucket in buckets}
    fullest = max(buckets, key=lambda bucket: memory[bucket].batch, default=0)
    compiled = None
    if compile_memory and slice_ is not None and buckets and has_compiler():
        log.info("compiling the program for prompts of %d tokens for a TPU", fullest)
        compiled = compile_job(job, slice_, fullest)
    time = _time(job, committed, slice_, repeats) if buckets else NO_TIME
    dollars = {}
    if slice_ is not None and time is not None:
        dollars = prices.dollars(slice_.generation, slice_.chips, time.total / 3600)
    return Planned(
        machine=slice_,
        samples=len(samples),
        skipped=prepared.skipped,
        prompt_tokens=sum(
            len(samples[n].token_ids) for u in missing if u.bucket for n in u.samples
        ),
        computed_tokens=_computed_tokens(job, committed),
        units=len(job.units),
        committed=len(committed),
        files=files,
        programs=buckets,
        mesh=mesh,
        processes=workers.count,
        memory=memory.get(fullest),
        compiled_memory=None if compiled is None else compiled.bytes,
        fullest_bucket=fullest,
        device_memory=workers.device_memory,
        time=time,
        dollars=dollars,
        prices=prices,
        place=place,
    )


def _lay_out(
    settings: DistributedSettings, pretrained: Pretrained, slice_: Machine | None
) -> tuple[Workers, tuple[int, int], str]:
    """Return this process's worker, the mesh shape of all devices, and the attention of prompts."""
    config, itemsize = pretrained.checkpoint.config, pretrained.dtype.itemsize
    if slice_ is None:
        workers = plan_workers(config, settings.mesh_axes(), itemsize)
        shape = workers.layout.mesh.shape
        attention = prompt_attention(settings.attention, workers.layout, config, pretrained.dtype)
    else:
        workers = slice_workers(config, slice_, itemsize, settings.mesh_axes())
        shape = slice_layout(config, slice_, itemsize, settings.mesh_axes()).mesh.shape
        attention = "xla"
        if shape["model"] == 1:
            attention = choose_attention(settings.attention, "tpu", pretrained.dtype, config)
        elif settings.attention not in ("auto", "xla"):
            raise InputError(
                f"{setting('attention', settings.attention)} needs a model axis of 1 in"
                f" {setting('mesh_shape')}"
            )
    return workers, (shape["data"], shape["model"]), attention


def _committed(job: Job, *, is_here: bool) -> set[int]:
    """Return the committed units of a run to be resumed, after all checks of the command."""

    def found(settings: DistributedSettings) -> set[int]:
        prepared = dataclasses.replace(job.prepared, settings=settings)
        return UnitRun(DISTRIBUTED, prepared, job.units).committed()

    if is_here:
        return found(job.settings)
    with raised_in_main(), tempfile.TemporaryDirectory() as folder:  # a new machine's disk is empty
        settings = dataclasses.replace(job.settings, output_dir=folder)
        if scheme_of(settings.activations_dir) is None:
            settings = dataclasses.replace(settings, activations_dir=folder)
        return found(settings)


def _check_place(
    job: Job, files: PlannedFiles, missing: PlannedFiles, slice_: Machine | None
) -> str:
    """Check that the files fit their folder or bucket; return a line about it.

    Raises:
        InputError: the files do not fit the disk.
    """
    settings, cloud = job.settings, job.settings.cloud()
    if slice_ is not None:
        if cloud is not None:
            return _cloud_place(cloud)
        if slice_.hosts > 1:
            return (
                f"{settings.activations_dir} on {slice_.hosts} hosts, which must share this folder;"
                f" if they do not, give {setting('gcs_bucket')}"
            )
        return f"{settings.activations_dir} on the slice, whose disk is not checked"
    needed = missing.activation_bytes
    if cloud is not None:
        needed = min(needed, int(settings.spool_gb * 1e9))
    needed += 2 * missing.output_bytes  # each unit's lines, and outputs.jsonl
    free = shutil.disk_usage(disk_of(settings.spool)).free
    if needed > free:
        raise InputError(
            f"{settings.spool} needs {needed / 1e9:.1f} GB, but its disk has only"
            f" {free / 1e9:.1f} GB free; choose another {setting('activations_dir')}, fewer hook"
            f" points or positions, or {setting('gcs_bucket')}"
        )
    disk = f"{settings.spool}, where {free / 1e9:.1f} GB are free"
    return disk if cloud is None else f"{_cloud_place(cloud)}, by way of {disk}"


def _cloud_place(address: str) -> str:
    """Return a line about a bucket; nothing is written to it."""
    try:
        missing = open_cloud(address).missing_permissions()
    except StoreError:  # it exists, since it was listed; some servers do not say
        return f"{address}, which can be reached; write permission is not known"
    if not missing:
        return f"{address}, which can be reached and written to"
    return f"{address}, where this account lacks {', '.join(missing)}"


def _memory(job: Job, bucket: int) -> MemoryEstimate:
    pretrained = job.prepared.pretrained
    config = pretrained.checkpoint.config
    return estimate_memory(
        config,
        job.workers.layout,
        batch_size=job.plan.batch_size(bucket),
        bucket=bucket,
        max_new_tokens=job.settings.max_new_tokens,
        row_slots=job.row_slots[bucket],
        captured_width=sum(hook_widths(pretrained.model.hook_points, config).values()),
        itemsize=pretrained.dtype.itemsize,
    )


def _time(
    job: Job, committed: set[int], slice_: Machine | None, repeats: int
) -> PlannedTime | None:
    if repeats:
        rates = calibrate(job, repeats)
    elif slice_ is not None:
        rates = assumed_rates(job, slice_)
    else:
        return None
    return planned_time(work_of(job, committed), rates)


def _computed_tokens(job: Job, committed: set[int]) -> int:
    data = job.workers.layout.mesh.shape["data"]
    return sum(
        batch.bucket * job.plan.batch_size(batch.bucket) * data
        for number in range(job.workers.count)
        for batch in batches_of(job, number, committed)
    )


def _check_devices(slice_: Machine) -> None:
    """Refuse to calibrate on another kind of device than that of the plan."""
    devices = jax.local_devices()
    here = DEVICE_KINDS.get(devices[0].device_kind)
    if here != slice_.generation or len(devices) != slice_.chips_per_host:
        raise InputError(
            f"{setting('calibrate')} times the devices here, {len(devices)}"
            f" {devices[0].device_kind}, and tells nothing of {slice_.name}; run it on a host of"
            f" such a slice, or leave one of {setting('calibrate')} and {setting('machine')} out"
        )
