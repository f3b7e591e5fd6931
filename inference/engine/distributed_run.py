"""The distributed command's work: run, check and commit this process's units.

The samples are cut into units (`plan`); each process runs its own units on its part of the mesh
(`engine`, `programs`) and commits them one by one. The process that finds the last unit committed
derives `metadata.json` and `outputs.jsonl` from the commit records.
"""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from extraction.interruption import StopFlag, ends_at_once, stop_flag
from extraction.progress import ProgressLine
from extraction.setting_names import setting
from inference.engine.batches import SampleResult, by_unit, unit_rows
from inference.engine.commit_thread import CommitThread
from inference.engine.compilation import CompileTime, use_compilation_cache
from inference.engine.hosts import (
    check_shared,
    peak_memory,
    plan_workers,
    prompt_attention,
    start_distributed,
    wait_for_all,
)
from inference.engine.job import Job, plan_job
from inference.engine.plan import Unit, pack_batches
from inference.engine.plan_comparison import actual_of, compare, read_plan
from inference.engine.prepare import prepare
from inference.engine.pretrained import Pretrained
from inference.engine.self_check import SelfCheck, plan_check
from inference.errors import InputError, SelfCheckError
from inference.inputs.samples import decode_text
from inference.inputs.shown_positions import print_samples
from inference.inputs.tasks import Task
from inference.outputs import NO_POSITION, output_line, skipped_line
from inference.settings.commands import DISTRIBUTED, DistributedSettings
from inference.unit_run import UnitRun
from qwen_hooks import load_params
from qwen_hooks.model import Params

log = logging.getLogger(__name__)


def run(
    settings: DistributedSettings,
    tasks: Sequence[Task],
    params: Params | None = None,
    run_id: str | None = None,
) -> None:
    """Run this process's units, and finish the run if they are the last.

    Args:
        settings: settings of the command.
        tasks: tasks of the run.
        params: parameters on the devices already, laid out for this mesh; None: load them.
        run_id: id for a new run; None: a random one.

    Raises:
        InputError: a setting or an input is wrong; nothing was computed.
        ModelError: the model cannot be run here.
        StoreError: the folder or the bucket cannot be used.
        Interrupted: a signal stopped the run before all units were done.
    """
    foreseen = None if settings.plan is None else read_plan(settings.plan)
    if params is None:  # else JAX is initialised already
        start_distributed(
            settings.coordinator_address,
            settings.num_processes,
            settings.process_id,
            settings.initialization_timeout,
        )
    use_compilation_cache(settings.compilation_cache_dir)
    prepared = prepare(settings, tasks)
    pretrained, samples = prepared.pretrained, prepared.samples
    if jax.process_index() == 0:
        print_samples(samples, pretrained.tokenizer, settings.show_positions)
    config = pretrained.checkpoint.config
    workers = plan_workers(config, settings.mesh_axes(), pretrained.dtype.itemsize)
    attention = prompt_attention(settings.attention, workers.layout, config, pretrained.dtype)
    job = plan_job(prepared, workers, attention)
    if prepared.steering is not None and job.workers.layout.mesh.is_multi_process:
        raise InputError(
            f"{setting('interventions')} needs a mesh in each process; this one is shared by"
            " several, as a model axis that is larger than a process's devices makes it"
        )
    mesh = dict(job.workers.layout.mesh.shape)
    unit_run = UnitRun(
        DISTRIBUTED,
        prepared,
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
        check = _run_units(job, unit_run, committed, stop, params)
        stack.close()  # waits for the uploads
        totals = unit_run.finish(check, stop)
        unit_run.work.seconds = time.perf_counter() - started
    unit_run.refuse_failed_check()
    details = [
        ("mesh", f"data {mesh['data']}, model {mesh['model']}; {jax.process_count()} processes")
    ]
    if check["rows"]:
        text = f"{check['rows']:,} rows computed again, largest relative error"
        details.append(("self-check", f"{text} {check['largest_error']:.1e}"))
    if foreseen is not None and len(totals) == len(job.units):
        seconds = unit_run.work.seconds
        actual = actual_of(foreseen, totals, len(committed), seconds, peak_memory())
        details += [("of the plan", line) for line in compare(foreseen, actual)]
    for line in unit_run.summary(totals, details).lines():
        print(line)


def _run_units(
    job: Job,
    unit_run: UnitRun,
    committed: set[int],
    stop: StopFlag,
    params: Params | None,
) -> Mapping[str, Any]:
    """Run and commit the units of this process.

    Args:
        job: the planned run.
        unit_run: the run that they are committed to.
        committed: numbers of units that are committed already.
        stop: ends the run between two batches.
        params: parameters on the devices; None: load them.

    Returns:
        Result of the self-check: `rows`, `largest_error`, and `failed`, a message, if a row is
        wrong, which ends the run.
    """
    prepared, layout = job.prepared, job.workers.layout
    pretrained, samples = prepared.pretrained, prepared.samples
    own = job.own_units(committed)
    for unit in own:
        if not unit.bucket and job.workers.writes:
            lines = [skipped_line(samples[n], prepared.reasons[n] or "") for n in unit.samples]
            unit_run.commit(unit, None, lines)
    running = [unit for unit in own if unit.bucket]
    if not running or stop.is_set():
        return {"rows": 0, "largest_error": 0.0}
    if params is None:
        log.info("loading %s in %s", job.settings.model_path, pretrained.dtype)
        began = time.perf_counter()
        with ends_at_once():
            params = load_params(
                pretrained.checkpoint,
                pretrained.dtype,
                layout,
                scan_layers=job.settings.scan_layers,
            )
        unit_run.work.loading = time.perf_counter() - began
    batches = list(pack_batches(running, job.plan, layout.mesh.shape["data"]))
    planned = plan_check(batches, job.settings.self_check_rows, job.settings.max_new_tokens)
    engine, failed = job.engine(params), None
    edits = prepared.interventions(engine.model.config)
    check = SelfCheck(job.model("xla"), params, planned, edits)
    # Hosts that share a mesh must all run the same programs in the same order, so they check at the
    # end, and no host stops alone. A host with its own mesh stops at the first wrong row.
    shared = layout.mesh.is_multi_process
    kept: list[SampleResult] = []
    total, done = sum(len(unit.samples) for unit in running), 0

    def commit(finished: tuple[Unit, list[SampleResult]]) -> None:
        unit, results = finished
        lines = [_result_line(result, pretrained) for result in results]
        unit_run.commit(unit, unit_rows(results), lines)

    try:
        with (
            CommitThread(commit) as commits,
            ProgressLine() as progress,
            CompileTime() as compiling,
        ):
            results = engine.run(
                batches,
                samples,
                interventions=edits,
                goes_on=lambda: shared or not stop.is_set(),
            )

            def watched():
                nonlocal done
                for result in results:
                    if result.sample.number in planned.samples:
                        kept.append(result)
                    done += 1
                    progress("samples run", done, total)
                    yield result

            for finished in by_unit(watched(), running):
                if job.workers.writes:
                    commits.put(finished)
                while kept and not shared:
                    check.check(kept.pop(0))
            unit_run.work.compiling = compiling.seconds
        for result in kept:
            check.check(result)
    except SelfCheckError as error:
        failed = str(error)
    found: dict[str, Any] = {"rows": check.rows, "largest_error": check.largest_error}
    return found if failed is None else found | {"failed": failed}


def _result_line(result: SampleResult, pretrained: Pretrained) -> dict[str, Any]:
    tokens = result.token_ids
    is_stopped = bool(tokens) and tokens[-1] in pretrained.checkpoint.stop_token_ids
    text = decode_text(pretrained.tokenizer, tokens)
    no_rows = None if len(result.positions) else NO_POSITION
    reason = "stop" if is_stopped else "length"
    return output_line(result.sample, tokens, text, reason, no_rows)
