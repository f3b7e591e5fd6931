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

import json
import logging
import os
import time
from collections.abc import Sequence
from itertools import groupby

import jax
from tqdm import tqdm

from extraction.commit_log import CommitLog, CommitRecord
from extraction.committer import Committer
from extraction.extractor import refuse_existing_run
from extraction.finalise import output_lines, write_metadata
from extraction.storage import Storage
from extraction.storage.local import LocalStorage
from inference.batch_plan import (
    PlannedSample,
    PlanSettings,
    Unit,
    own_units,
    pack_batches,
    plan_units,
    rows_per_sample,
)
from inference.command_line import run_command
from inference.generation import GenerationSettings
from inference.memory_estimate import check_memory
from inference.multihost import (
    Workers,
    check_shared_folder,
    plan_workers,
    prompt_attention,
    start_distributed,
)
from inference.outputs import OutputsFile, output_line, skipped_line, write_submission
from inference.pretrained import Pretrained, describe_run, open_pretrained
from inference.run_loop import Drain, SampleResult, run_batches, unit_rows
from inference.samples import Sample, decode_text, make_samples, reason_to_skip
from inference.self_check import check_sample
from inference.settings import DistributedSettings
from inference.tasks import read_tasks
from qwen_hooks import create_model_with_hooks, load_params

log = logging.getLogger(__name__)

COMPILATION_CACHE = "~/.cache/qwen_activation_extraction/xla"
SELF_CHECKS = "_run/self_check/"
"""Folder of a file for each process: samples checked, largest error."""


def run(settings: DistributedSettings) -> None:
    """Runs this process's units, and finishes the run if they were the last."""
    tasks = read_tasks(settings.tasks_file)
    start_distributed(
        settings.coordinator_address,
        settings.num_processes,
        settings.process_id,
        settings.initialization_timeout,
    )
    _use_compilation_cache(settings.compilation_cache_dir)
    pretrained = open_pretrained(settings)
    config = pretrained.checkpoint.config
    samples = list(make_samples(tasks, pretrained.tokenizer, config.vocab_size, settings))
    reasons = [reason_to_skip(s, config.context_length, settings.max_new_tokens) for s in samples]
    workers = plan_workers(config, settings.mesh_axes(), pretrained.dtype.itemsize)
    attention = prompt_attention(settings.attention, workers.layout, config, pretrained.dtype)
    outputs = OutputsFile(settings.output_dir)
    storage = LocalStorage(settings.activations_dir)
    refuse_existing_run(storage, settings.activations_dir)
    plan = PlanSettings(
        tokens_per_batch=settings.tokens_per_batch,
        max_batch_size=settings.batch_size,
        rows_per_unit=settings.save_every_n_samples,
    )
    rows = rows_per_sample(settings.max_new_tokens)
    units = list(
        plan_units(
            (
                PlannedSample(number=s.number, tokens=0 if reason else len(s.token_ids), rows=rows)
                for s, reason in zip(samples, reasons, strict=True)
            ),
            plan,
        )
    )
    check_memory(
        config,
        workers.layout,
        plan,
        buckets=sorted({unit.bucket for unit in units if unit.bucket}),
        max_new_tokens=settings.max_new_tokens,
        captured_layers=len(pretrained.model.layers_to_extract),
        itemsize=pretrained.dtype.itemsize,
        device_memory=workers.device_memory,
    )
    check_shared_folder(storage)
    started = time.perf_counter()
    errors = _run_units(
        settings, pretrained, workers, attention, plan, units, samples, reasons, storage
    )
    seconds = time.perf_counter() - started

    check = {"samples": len(errors), "largest_error": max(errors, default=0.0)}
    name = f"{SELF_CHECKS}{jax.process_index():05d}.json"
    storage.replace(name, json.dumps(check).encode())
    records = _write_metadata(settings, pretrained, workers, len(units), storage)
    tokens = sum(len(s.token_ids) for s, reason in zip(samples, reasons, strict=True) if not reason)
    skipped = sum(reason is not None for reason in reasons)
    print(f"samples      {len(samples)}, of which {skipped} skipped")
    print(f"mesh         {dict(workers.layout.mesh.shape)}, {jax.process_count()} processes")
    print(f"time         {seconds:.1f} s, {tokens / seconds:.0f} prompt tokens/s")
    print(f"self-check   {check['samples']} samples, largest error {check['largest_error']:.1e}")
    if len(records) < len(units):
        print(f"committed    {len(records)} of {len(units)} units; other processes do the rest")
        return
    with outputs:
        _write_outputs(outputs, units, plan, samples, storage)
    written = sum(record.n_rows for record in records)
    layers = len(pretrained.model.layers_to_extract)
    print(f"activations  {written} rows for each of {layers} layers,"
          f" {len(records)} batches in {settings.activations_dir}")  # fmt: skip
    print(f"outputs      {outputs.path}")
    write_submission(tasks, outputs.path, settings)


def _run_units(
    settings: DistributedSettings,
    pretrained: Pretrained,
    workers: Workers,
    attention: str,
    plan: PlanSettings,
    units: Sequence[Unit],
    samples: Sequence[Sample],
    reasons: Sequence[str | None],
    storage: Storage,
) -> list[float]:
    """Runs and commits the units of this process; the errors that the self-check found."""
    checkpoint, layout = pretrained.checkpoint, workers.layout
    layers = pretrained.model.layers_to_extract
    committer = Committer(storage, [f"layer_{layer}" for layer in layers])
    own = list(own_units(units, workers.number, workers.count, CommitLog(storage).batch_ids()))

    def commit(unit: Unit, results: list[SampleResult]) -> None:
        if not workers.writes:
            return
        lines = [_result_line(result, pretrained, checkpoint.stop_token_ids) for result in results]
        if not unit.bucket:
            lines = [skipped_line(samples[n], reasons[n] or "") for n in unit.samples]
        committer.commit(unit.number + 1, unit_rows(results, layers), lines)

    for unit in own:
        if not unit.bucket:
            commit(unit, [])
    running = [unit for unit in own if unit.bucket]
    if not running:
        return []
    log.info("loading %s in %s", settings.model_path, pretrained.dtype)
    scan = settings.scan_layers
    params = load_params(checkpoint, pretrained.dtype, layout, scan_layers=scan)
    model, alone = (
        create_model_with_hooks(
            layout.config(checkpoint.config), layers, pretrained.dtype, kind, scan_layers=scan
        )
        for kind in (attention, "xla")
    )
    generation = GenerationSettings(
        max_new_tokens=settings.max_new_tokens,
        stop_token_ids=checkpoint.stop_token_ids,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.random_seed,
    )
    batches = list(pack_batches(running, plan, layout.mesh.shape["data"]))
    every = max(1, len(batches) // max(1, settings.self_check))
    keep = [batch.rows[0][1] for batch in batches[::every]][: settings.self_check]
    errors: list[float] = []
    with (
        Drain({unit.number: unit for unit in running}, samples, commit, keep) as drain,
        tqdm(total=len(batches), unit="batch", disable=None) as progress,
    ):

        def after_batch() -> None:
            progress.update()
            # Hosts that share a mesh must all run the same programs in the same order, so they
            # check when all is done; alone, a host stops at the first sign of trouble.
            if not layout.mesh.is_multi_process:
                errors.extend(check_sample(alone, params, kept) for kept in drain.take_kept())

        run_batches(
            model, params, batches, samples, plan, generation, layout.mesh, drain, after_batch
        )
    errors.extend(check_sample(alone, params, kept) for kept in drain.take_kept())
    return errors


def _write_metadata(
    settings: DistributedSettings,
    pretrained: Pretrained,
    workers: Workers,
    planned: int,
    storage: Storage,
) -> list[CommitRecord]:
    """Writes `metadata.json` of all that is committed, and gives the records.

    Another process may commit meanwhile and write it too, and be overwritten with less. So
    afterwards each looks again: the last to write then wrote everything.
    """
    while True:
        seen = CommitLog(storage).batch_ids(), storage.names(SELF_CHECKS)
        run_description = describe_run(
            "distributed_inference_with_activations", settings, pretrained.dtype
        ) | {
            "mesh": dict(workers.layout.mesh.shape),
            "processes": jax.process_count(),
            "self_check": [json.loads(storage.get(name)) for name in seen[1]],
        }
        records = write_metadata(
            storage,
            model_name=settings.model_path,
            hook_points=tuple(f"layer_{n}" for n in pretrained.model.layers_to_extract),
            hidden_dim=pretrained.checkpoint.config.hidden_size,
            file_format="pickle",
            planned_batches=planned,
            run=run_description,
        )
        if seen == (CommitLog(storage).batch_ids(), storage.names(SELF_CHECKS)):
            return records


def _result_line(result: SampleResult, pretrained: Pretrained, stop: tuple[int, ...]) -> dict:
    tokens = result.token_ids
    reason = "stop" if tokens and tokens[-1] in stop else "length"
    return output_line(result.sample, tokens, decode_text(pretrained.tokenizer, tokens), reason)


def _write_outputs(
    outputs: OutputsFile,
    units: Sequence[Unit],
    plan: PlanSettings,
    samples: Sequence[Sample],
    storage: Storage,
) -> None:
    """Joins the units' output lines in the order of the samples, a window at a time."""
    commits = CommitLog(storage)
    for window, members in groupby(units, key=lambda unit: unit.samples[0] // plan.window):
        records = [commits.read(unit.number + 1) for unit in members]
        first = window * plan.window
        place = {(s.task_id, s.sample_idx): s.number for s in samples[first : first + plan.window]}
        lines = list(output_lines(storage, records))
        for line in sorted(lines, key=lambda line: place[line["task_id"], line["sample_idx"]]):
            outputs.write(line)


def _use_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs for the next run."""
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", COMPILATION_CACHE)
    if folder:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return run_command(run, DistributedSettings, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
