"""Activations on all devices: the fast path, from one CPU to a TPU pod.

    python -m inference.distributed_inference_with_activations \
        --model_path /path/to/model --tasks_file arc_tasks.json \
        --output_dir ./outputs --activations_dir ./activations \
        --batch_size 8 --mesh_shape 8,8 --layers_to_extract 6 12 18 23

Gives the same rows as `simple_extraction_inference`. The samples are cut into units
(`engine.plan`); each process runs its own units on its part of the mesh (`engine.loop`,
`engine.programs`) and commits them one by one. The process that finds the last unit committed
derives `metadata.json` and `outputs.jsonl` from the commit records.
"""

if __name__ == "__main__" and not __package__:
    # Run as a script: packages are found beside this folder, and nothing in it hides them.
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    from extraction.interruption import end_on_signals, leave

    # Before the imports below, which take seconds.
    end_on_signals("the same command with --resume True goes on")

import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from extraction.interruption import StopFlag, ends_at_once, stop_flag
from extraction.progress import ProgressLine
from inference.engine.compilation import CompileTime, use_compilation_cache
from inference.engine.hosts import (
    Workers,
    check_shared,
    plan_workers,
    prompt_attention,
    start_distributed,
    wait_for_all,
)
from inference.engine.loop import (
    Drain,
    Program,
    SampleResult,
    row_slots,
    run_batches,
    unit_rows,
)
from inference.engine.memory import check_memory
from inference.engine.plan import (
    SAVE_EVERY,
    Batch,
    PlannedSample,
    PlanSettings,
    Unit,
    own_units,
    pack_batches,
    plan_units,
)
from inference.engine.plan_comparison import actual_of, compare, read_plan
from inference.engine.pretrained import Pretrained, open_pretrained
from inference.engine.programs import GenerationSettings
from inference.engine.self_check import SelfCheck, plan_check
from inference.errors import SelfCheckError
from inference.inputs.datasets import read_inputs, with_commit
from inference.inputs.positions import Positions
from inference.inputs.samples import Sample, decode_text, read_samples, reason_to_skip
from inference.inputs.shown_positions import print_samples
from inference.outputs import NO_POSITION, output_line, skipped_line
from inference.settings.command_line import run_command
from inference.settings.commands import DistributedSettings
from inference.unit_run import UnitRun, with_file_size
from qwen_hooks import QwenModelWithActivations, create_model_with_hooks, load_params
from qwen_hooks.hook_points import hook_widths
from qwen_hooks.model import Params

log = logging.getLogger(__name__)

COMMAND = "distributed_inference_with_activations"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """All that the units of a run need, checked, before anything is loaded.

    Attributes:
        settings: of the command.
        pretrained: the model.
        workers: who runs what on which devices.
        attention: of prompts.
        plan: settings of the plan.
        units: of the run.
        samples: of the tasks.
        reasons: why each sample is skipped; None where it runs.
        positions: of the tokens whose activations are kept.
        row_slots: of each bucket, how many slots of a row are captured.
    """

    settings: DistributedSettings
    pretrained: Pretrained
    workers: Workers
    attention: str
    plan: PlanSettings
    units: Sequence[Unit]
    samples: Sequence[Sample]
    reasons: Sequence[str | None]
    positions: Positions
    row_slots: Mapping[int, int]


def run(
    settings: DistributedSettings, params: Params | None = None, run_id: str | None = None
) -> None:
    """Runs this process's units, and finishes the run if they were the last.

    Args:
        settings: of the command.
        params: that are on the devices already, as this mesh wants them; None: they are read.
        run_id: of a run that begins; None: a new one.

    Raises:
        InputError: something is wrong with what was given; nothing was computed.
        ModelError: the model is none that can be run here.
        StoreError: the folder or the bucket cannot be used.
        Interrupted: asked to stop before all was done.
    """
    settings = with_commit(settings)
    tasks = read_inputs(settings, settings.random_seed)
    plan = None if settings.plan is None else read_plan(settings.plan)
    if params is None:  # else JAX runs already
        start_distributed(
            settings.coordinator_address,
            settings.num_processes,
            settings.process_id,
            settings.initialization_timeout,
        )
    use_compilation_cache(settings.compilation_cache_dir)
    pretrained = open_pretrained(settings)
    config = pretrained.checkpoint.config
    samples = read_samples(tasks, pretrained, settings)
    if jax.process_index() == 0:
        print_samples(samples, pretrained.tokenizer, settings.show_positions)
    workers = plan_workers(config, settings.mesh_axes(), pretrained.dtype.itemsize)
    attention = prompt_attention(settings.attention, workers.layout, config, pretrained.dtype)
    job = plan_job(settings, pretrained, samples, workers, attention)
    mesh = dict(job.workers.layout.mesh.shape)
    unit_run = UnitRun(
        COMMAND,
        job.settings,
        pretrained,
        tasks,
        samples,
        job.units,
        process=jax.process_index(),
        run={"mesh": mesh, "processes": jax.process_count(), "attention": job.attention},
        run_id=run_id,
    )
    started = time.perf_counter()
    with stop_flag() as stop, contextlib.ExitStack() as stack:
        check_shared(unit_run.storage)
        is_first = jax.process_index() == 0
        if is_first:
            unit_run.begin(stack)
        wait_for_all("the run begins")
        if not is_first:
            unit_run.begin(stack, first=False)
        committed = unit_run.committed()
        found, failed = _run_units(job, unit_run, committed, stop, params)
        stack.close()  # waits for the uploads
        check: dict[str, Any] = {"rows": 0, "largest_error": 0.0}
        if found is not None:
            check = {"rows": found.rows, "largest_error": found.largest_error}
        if failed is not None:
            check["failed"] = str(failed)
        totals = unit_run.finish(check, stop)
        unit_run.work.seconds = time.perf_counter() - started
    unit_run.refuse_failed_check()
    details = [
        ("mesh", f"data {mesh['data']}, model {mesh['model']}; {jax.process_count()} processes")
    ]
    if check["rows"]:
        text = f"{check['rows']:,} rows computed again, largest relative error"
        details.append(("self-check", f"{text} {check['largest_error']:.1e}"))
    if plan is not None and len(totals) == len(job.units):
        actual = actual_of(plan, totals, len(committed), unit_run.work.seconds)
        details += [("of the plan", line) for line in compare(plan, actual)]
    skipped = sum(reason is not None for reason in job.reasons)
    for line in unit_run.summary(totals, skipped, details).lines():
        print(line)


def plan_job(
    settings: DistributedSettings,
    pretrained: Pretrained,
    samples: Sequence[Sample],
    workers: Workers,
    attention: str,
) -> Job:
    """Cuts the samples into units for devices that need not be here.

    Args:
        settings: of the command.
        pretrained: the model, not loaded.
        samples: of the run.
        workers: who runs what on which devices.
        attention: of prompts.

    Raises:
        InputError: a batch does not fit the devices.
    """
    config = pretrained.checkpoint.config
    reasons = [reason_to_skip(s, config.context_length, settings.max_new_tokens) for s in samples]
    if settings.pack_length and attention == "cudnn":  # which would see across documents
        attention = "xla"
    positions = Positions(settings.positions)
    later = positions.most_generated(settings.max_new_tokens)
    planned = [
        PlannedSample(
            number=s.number,
            tokens=0 if reason else len(s.token_ids),
            rows=len(s.positions) + later,
        )
        for s, reason in zip(samples, reasons, strict=True)
    ]
    settings = with_file_size(settings, planned, pretrained)
    plan = PlanSettings(
        tokens_per_batch=settings.tokens_per_batch,
        max_batch_size=settings.batch_size,
        rows_per_unit=settings.save_every_n_samples or SAVE_EVERY,
        pack_length=settings.pack_length,
    )
    units = list(plan_units(planned, plan))
    slots = row_slots(units, samples, predicts=settings.max_new_tokens > 0)
    check_memory(
        config,
        workers.layout,
        plan,
        buckets=sorted({unit.bucket for unit in units if unit.bucket}),
        max_new_tokens=settings.max_new_tokens,
        row_slots=slots,
        captured_width=sum(hook_widths(pretrained.model.hook_points, config).values()),
        itemsize=pretrained.dtype.itemsize,
        device_memory=workers.device_memory,
    )
    return Job(
        settings=settings,
        pretrained=pretrained,
        workers=workers,
        attention=attention,
        plan=plan,
        units=units,
        samples=samples,
        reasons=reasons,
        positions=positions,
        row_slots=slots,
    )


def _own(job: Job, committed: set[int]) -> list[Unit]:
    return list(own_units(job.units, job.workers.number, job.workers.count, committed))


def _run_units(
    job: Job,
    unit_run: UnitRun,
    committed: set[int],
    stop: StopFlag,
    params: Params | None,
) -> tuple[SelfCheck | None, SelfCheckError | None]:
    """Runs and commits the units of this process.

    Args:
        job: the plan.
        unit_run: that they are committed to.
        committed: units that are there.
        stop: ends the run between two batches.
        params: on the devices; None: they are read.

    Returns:
        The self-check, if any unit ran, and what it found wrong, which ends the run.
    """
    settings, pretrained, samples = job.settings, job.pretrained, job.samples
    checkpoint, layout = pretrained.checkpoint, job.workers.layout
    own = _own(job, committed)

    def commit(unit: Unit, results: list[SampleResult]) -> None:
        if not job.workers.writes:
            return
        lines = [_result_line(result, pretrained, checkpoint.stop_token_ids) for result in results]
        if not unit.bucket:
            lines = [skipped_line(samples[n], job.reasons[n] or "") for n in unit.samples]
        unit_run.commit(unit, unit_rows(results), lines)

    for unit in own:
        if not unit.bucket:
            commit(unit, [])
    running = [unit for unit in own if unit.bucket]
    if not running or stop.is_set():
        return None, None
    if params is None:
        log.info("loading %s in %s", settings.model_path, pretrained.dtype)
        began = time.perf_counter()
        with ends_at_once():
            params = load_params(
                checkpoint, pretrained.dtype, layout, scan_layers=settings.scan_layers
            )
        unit_run.work.loading = time.perf_counter() - began
    program = make_program(job, params)
    choose_generated = job.positions.generated_chooser(pretrained.tokenizer)
    batches = list(pack_batches(running, job.plan, layout.mesh.shape["data"]))
    planned = plan_check(batches, settings.self_check_rows, settings.max_new_tokens)
    check = SelfCheck(make_model(job, "xla"), params, planned)
    # Hosts that share a mesh must all run the same programs in the same order, so they check when
    # all is done, and none stops alone; by itself a host stops at the first sign of trouble.
    shared = layout.mesh.is_multi_process
    total, done = sum(len(unit.samples) for unit in running), 0
    drain = Drain(
        {unit.number: unit for unit in running}, samples, commit, planned.samples, choose_generated
    )

    def check_kept() -> None:
        for kept in drain.take_kept():
            check.check(kept)

    try:
        with drain, ProgressLine() as progress, CompileTime() as compiling:

            def goes_on(batch: Batch) -> bool:
                nonlocal done
                done += sum(len(members) for _, members in batch.rows)
                progress("samples run", done, total)
                if not shared:
                    check_kept()
                return shared or not stop.is_set()

            run_batches(program, batches, samples, job.plan, drain, goes_on)
            unit_run.work.compiling = compiling.seconds
        check_kept()
    except SelfCheckError as error:
        return check, error
    return check, None


def make_program(job: Job, params: Params) -> Program:
    """What runs the batches of a job.

    Args:
        job: the plan.
        params: on the devices, as the job's mesh wants them.
    """
    return Program(
        model=make_model(job, job.attention),
        params=params,
        generation=generation_settings(job),
        mesh=job.workers.layout.mesh,
        row_slots=job.row_slots,
    )


def generation_settings(job: Job) -> GenerationSettings:
    """What the programs of a job are compiled for."""
    settings = job.settings
    return GenerationSettings(
        max_new_tokens=settings.max_new_tokens,
        capture_generated=job.positions.any_generated,
        stop_token_ids=job.pretrained.checkpoint.stop_token_ids,
        temperature=settings.temperature,
        top_p=settings.top_p,
        repetition_penalty=job.pretrained.repetition_penalty,
        seed=settings.random_seed,
    )


def make_model(job: Job, attention: str) -> QwenModelWithActivations:
    """The model as the mesh of a job wants it, with one kind of attention for prompts."""
    return create_model_with_hooks(
        job.workers.layout.config(job.pretrained.checkpoint.config),
        dtype=job.pretrained.dtype,
        attention=attention,
        scan_layers=job.settings.scan_layers,
        hook_points=job.pretrained.model.hook_points,
    )


def _result_line(result: SampleResult, pretrained: Pretrained, stop: tuple[int, ...]) -> dict:
    tokens = result.token_ids
    reason = "stop" if tokens and tokens[-1] in stop else "length"
    text = decode_text(pretrained.tokenizer, tokens)
    no_rows = None if len(result.positions) else NO_POSITION
    return output_line(result.sample, tokens, text, reason, no_rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return run_command(run, DistributedSettings, __doc__ or "", arguments)


if __name__ == "__main__":
    leave(main())
