"""Activations on all devices: the fast path, from one CPU to a TPU pod.

    python -m inference.distributed_inference_with_activations \
        --model_path /path/to/model --tasks_file arc_tasks.json \
        --output_dir ./outputs --activations_dir ./activations \
        --batch_size 8 --mesh_shape 8,8 --layers_to_extract 6 12 18 23

Gives the same rows as `simple_extraction_inference`. The samples are cut into units
(`batch_plan`), each process runs its own on its part of the mesh (`run_loop`, `generation`) and
commits them one by one; `metadata.json` and `outputs.jsonl` are derived from the commit records
when the last unit is there, by whichever process finds it so.
"""

if __name__ == "__main__" and not __package__:
    # Run as a script: packages are found beside this folder, and nothing in it hides them.
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence

import jax
from tqdm import tqdm

from inference.batch_plan import (
    SAVE_EVERY,
    PlannedSample,
    PlanSettings,
    Unit,
    own_units,
    pack_batches,
    plan_units,
)
from inference.command_line import run_command
from inference.datasets import read_inputs, with_commit
from inference.generation import GenerationSettings
from inference.interruption import Interrupted, stop_flag
from inference.memory_estimate import check_memory
from inference.multihost import (
    Workers,
    check_shared,
    plan_workers,
    prompt_attention,
    start_distributed,
    wait_for_all,
)
from inference.outputs import NO_POSITION, output_line, skipped_line
from inference.plan_comparison import actual_of, compare, read_plan
from inference.positions import Positions
from inference.pretrained import Pretrained, open_pretrained
from inference.run_loop import (
    Drain,
    Program,
    SampleResult,
    row_slots,
    run_batches,
    unit_rows,
)
from inference.samples import Sample, decode_text, make_samples, reason_to_skip
from inference.self_check import SelfCheck, plan_check
from inference.settings import DistributedSettings
from inference.shown_positions import print_samples
from inference.unit_run import UnitRun, with_file_size
from qwen_hooks import QwenModelWithActivations, create_model_with_hooks, load_params
from qwen_hooks.hook_points import hook_widths
from qwen_hooks.model import Params

log = logging.getLogger(__name__)

COMMAND = "distributed_inference_with_activations"
COMPILATION_CACHE = "~/.cache/qwen_activation_extraction/xla"


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
    _use_compilation_cache(settings.compilation_cache_dir)
    pretrained = open_pretrained(settings)
    config = pretrained.checkpoint.config
    samples = list(
        make_samples(
            tasks, pretrained.tokenizer, config.vocab_size, settings, config.context_length
        )
    )
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
        found = _run_units(job, unit_run, committed, stop, params)
        stack.close()  # waits for the uploads
        check = {"rows": 0, "largest_error": 0.0}
        if found is not None:
            check = {"rows": found.rows, "largest_error": found.largest_error}
        totals = unit_run.finish(check)
    seconds = time.perf_counter() - started
    if stop.is_set() and len(totals) < len(job.units):
        raise Interrupted

    ran = [u for u in _own(job, committed) if u.bucket]
    tokens = sum(len(samples[n].token_ids) for unit in ran for n in unit.samples)
    skipped = sum(reason is not None for reason in job.reasons)
    done_before = f", {len(committed)} of {len(job.units)} units done before" if committed else ""
    print(f"samples      {len(samples)}, of which {skipped} skipped{done_before}")
    print(f"mesh         {mesh}, {jax.process_count()} processes")
    print(f"time         {seconds:.1f} s, {tokens / seconds:.0f} prompt tokens/s")
    print(f"self-check   {check['rows']} rows, largest error {check['largest_error']:.1e}")
    unit_run.print_summary(totals)
    if plan is not None and len(totals) == len(job.units):
        print(f"against the plan of {settings.plan}:")
        print("\n".join(compare(plan, actual_of(plan, totals, len(committed), seconds))))


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
    stop: threading.Event,
    params: Params | None,
) -> SelfCheck | None:
    """Runs and commits the units of this process; the self-check, if any unit ran."""
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
        return None
    if params is None:
        log.info("loading %s in %s", settings.model_path, pretrained.dtype)
        params = load_params(checkpoint, pretrained.dtype, layout, scan_layers=settings.scan_layers)
    program = make_program(job, params)
    choose_generated = job.positions.generated_chooser(pretrained.tokenizer)
    batches = list(pack_batches(running, job.plan, layout.mesh.shape["data"]))
    planned = plan_check(batches, settings.self_check_rows, settings.max_new_tokens)
    check = SelfCheck(make_model(job, "xla"), params, planned)
    # Hosts that share a mesh must all run the same programs in the same order, so they check when
    # all is done, and none stops alone; by itself a host stops at the first sign of trouble.
    shared = layout.mesh.is_multi_process
    with (
        Drain(
            {unit.number: unit for unit in running},
            samples,
            commit,
            planned.samples,
            choose_generated,
        ) as drain,
        tqdm(total=len(batches), unit="batch", disable=None) as progress,
    ):

        def goes_on() -> bool:
            progress.update()
            if not shared:
                for kept in drain.take_kept():
                    check.check(kept)
            return shared or not stop.is_set()

        run_batches(program, batches, samples, job.plan, drain, goes_on)
    for kept in drain.take_kept():
        check.check(kept)
    return check


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


def _use_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs for the next run."""
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", COMPILATION_CACHE)
    if folder:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return run_command(run, DistributedSettings, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
