"""The simple command's work, one sample at a time; faster paths are tested against it.

The prompt runs once (prefill) and then each generated token once, with a KV cache. By default
step t captures the last token so far, so a sample has as many rows as it generated tokens, and at
least one. Prompts are padded on the right to a few lengths, and one program is compiled for each
length; causal attention never looks to the right, so no row depends on the padding.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from extraction.interruption import ends_at_once, stop_flag
from extraction.progress import ProgressLine
from extraction.run.rows import RowBlock, text_column, timestamp
from inference.engine.buckets import bucket_length
from inference.engine.compilation import CompileTime
from inference.engine.plan import SAVE_EVERY, plan_in_order
from inference.engine.prepare import prepare
from inference.engine.token_choice import (
    choose_tokens,
    occurring_tokens,
    penalise_repetition,
    step_keys,
    with_tokens,
)
from inference.inputs.positions import ChooseGenerated
from inference.inputs.samples import Sample, decode_text
from inference.inputs.shown_positions import print_samples
from inference.inputs.tasks import Task
from inference.outputs import NO_POSITION, output_line, skipped_line
from inference.settings.commands import SIMPLE, ExtractionSettings
from inference.unit_run import UnitRun
from qwen_hooks import KVCache, QwenModelWithActivations, load_params
from qwen_hooks.interventions import Interventions
from qwen_hooks.model import Params, forward, unembed

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """The result of one sample.

    Attributes:
        token_ids: the generated token ids, including a stop token.
        finish_reason: `stop` or `length`.
        positions: int32 `[rows]`, position of each row's token, ascending.
        rows: `[rows, width]` of each hook point.
    """

    token_ids: list[int]
    finish_reason: str
    positions: np.ndarray
    rows: dict[str, np.ndarray]


@functools.partial(jax.jit, static_argnames=("model", "predict", "capacity"))
def prefill(
    model: QwenModelWithActivations,
    params: Params,
    input_ids: jax.Array,
    length: jax.Array,
    slots_wanted: jax.Array,
    *,
    predict: bool,
    capacity: int | None,
    interventions: Interventions | None = None,
) -> tuple[dict[str, jax.Array], jax.Array | None, KVCache | None]:
    """Run a prompt, int32 `[1, S]` of which the first `length` are tokens.

    Returns:
        Rows `[R, width]` of the slots `slots_wanted`, int32 `[1, R]`; with `predict` the logits
        `[1, V]` after the last of them, else None, and then only the blocks up to the deepest
        captured one run; with `capacity` a KV cache, else None.
    """
    slots = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None]
    positions = jnp.where(slots < length, slots, -1)
    num_layers = None if predict else model.blocks_needed
    output = forward(
        model,
        params,
        input_ids,
        positions,
        num_layers=num_layers,
        rows=slots_wanted,
        interventions=interventions,
    )
    rows = {h: values[0].reshape(values.shape[1], -1) for h, values in output.activations.items()}
    logits = cache = None
    if predict:
        logits = unembed(model, params, output.residual[:, -1])
    if capacity is not None:
        cache = KVCache.from_prefill(output.keys_values, positions, capacity)
    return rows, logits, cache


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def decode_step(
    model: QwenModelWithActivations,
    params: Params,
    token: jax.Array,
    position: jax.Array,
    cache: KVCache,
    interventions: Interventions | None = None,
) -> tuple[dict[str, jax.Array], jax.Array, KVCache]:
    """Run one token, int32 `[1]`; return its rows `[1, width]`, the next logits and the cache."""
    output = forward(
        model,
        params,
        token[:, None],
        position[None, None],
        cache=cache,
        interventions=interventions,
    )
    assert output.cache is not None
    rows = {hook: values.reshape(1, -1) for hook, values in output.activations.items()}
    return rows, unembed(model, params, output.residual[:, 0]), output.cache


def generate(
    model: QwenModelWithActivations,
    params: Params,
    sample: Sample,
    stop_token_ids: Sequence[int],
    settings: ExtractionSettings,
    choose_generated: ChooseGenerated,
    pad_to: int | None = None,
    repetition_penalty: float = 1.0,
    interventions: Interventions | None = None,
) -> Generated:
    """Generate text for one sample, and capture the chosen tokens.

    Args:
        model: the model, which captures `model.hook_points`.
        params: the full `{'params': ...}`.
        sample: a sample with at least one token.
        stop_token_ids: tokens that end the text; the result includes the stop token.
        settings: number of tokens, temperature, nucleus and seed.
        choose_generated: chooses the generated tokens whose rows are kept.
        pad_to: length to pad the prompt to; None: not padded.
        repetition_penalty: penalty for tokens that have occurred; 1: none.
        interventions: those in this sample; None: none.
    """
    length, steps = len(sample.token_ids), settings.max_new_tokens
    input_ids = np.zeros((1, pad_to or length), np.int32)
    input_ids[0, :length] = sample.token_ids
    capacity = None
    if steps > 1:  # a power of two, so that few decode programs are compiled
        capacity = 1 << (input_ids.shape[1] + steps - 2).bit_length()
    chosen = list(sample.positions)
    slots = [*chosen, length - 1]  # the last predicts; repeated to a power of two
    slots = np.array([slots + slots[-1:] * ((1 << (len(slots) - 1).bit_length()) - len(slots))])
    rows, logits, cache = prefill(
        model,
        params,
        input_ids,
        np.int32(length),
        slots.astype(np.int32),
        predict=steps > 0,
        capacity=capacity,
        interventions=interventions,
    )
    captured = [{hook: np.asarray(values)[: len(chosen)] for hook, values in rows.items()}]
    tokens: list[int] = []
    occurring = None
    if repetition_penalty != 1:
        lengths = np.array([length], np.int32)
        occurring = occurring_tokens(input_ids, lengths, model.config.vocab_size)
    while logits is not None:
        if occurring is not None:
            logits = penalise_repetition(logits, occurring, repetition_penalty)
        keys = step_keys(settings.random_seed, jnp.array([sample.number]), len(tokens))
        token = choose_tokens(logits, keys, settings.temperature, settings.top_p)
        if occurring is not None:
            occurring = with_tokens(occurring, token)
        tokens.append(int(token[0]))
        if tokens[-1] in stop_token_ids or len(tokens) == steps:
            break
        position = np.int32(length - 1 + len(tokens))
        rows, logits, cache = decode_step(model, params, token, position, cache, interventions)
        captured.append({hook: np.asarray(values) for hook, values in rows.items()})
    later = choose_generated(length, tokens[:-1])
    kept = [captured[0], *(captured[1 + number] for number in later)]
    return Generated(
        token_ids=tokens,
        finish_reason="stop" if tokens and tokens[-1] in stop_token_ids else "length",
        positions=np.array([*chosen, *(length + number for number in later)], np.int32),
        rows={hook: np.concatenate([part[hook] for part in kept]) for hook in model.hook_points},
    )


def row_block(sample: Sample, generated: Generated) -> RowBlock:
    """Return the rows of a sample with their keys."""
    position, count = generated.positions, len(generated.positions)
    sequence = [*sample.token_ids, *generated.token_ids]
    return RowBlock(
        task_ids=text_column([sample.task_id] * count),
        sample_idx=np.full(count, sample.sample_idx, np.int64),
        step=np.maximum(position - (len(sample.token_ids) - 1), 0),
        position=position,
        token_id=np.array([sequence[p] for p in position], np.int32),
        timestamps=text_column([timestamp()] * count),
        activations=generated.rows,
    )


def run(settings: ExtractionSettings, tasks: Sequence[Task]) -> None:
    """Run every sample of the tasks and write its activations and its output line.

    Args:
        settings: settings of the command.
        tasks: tasks of the run.

    Raises:
        InputError: a setting or an input is wrong; nothing was computed.
        ModelError: the model cannot be run here.
        StoreError: the folder or the bucket cannot be used.
        Interrupted: a signal stopped the run before all samples were done.
    """
    prepared = prepare(settings, tasks)
    settings, pretrained, samples = prepared.settings, prepared.pretrained, prepared.samples
    print_samples(samples, pretrained.tokenizer, settings.show_positions)
    units = list(plan_in_order(prepared.planned, settings.save_every_n_samples or SAVE_EVERY))
    unit_run = UnitRun(SIMPLE, prepared, units)
    choose_generated = prepared.positions.generated_chooser(pretrained.tokenizer)
    edits = prepared.interventions(pretrained.model.config)
    started = time.perf_counter()
    with stop_flag() as stop, contextlib.ExitStack() as stack:
        unit_run.begin(stack)
        committed = unit_run.committed()
        missing = [unit for unit in units if unit.number not in committed]
        total, done = sum(len(unit.samples) for unit in missing), 0
        params = None
        progress = stack.enter_context(ProgressLine())
        compiling = stack.enter_context(CompileTime())
        for unit in missing:
            blocks, lines = [], []
            for sample in (samples[number] for number in unit.samples):
                if stop.is_set():
                    break
                progress("samples", done, total)
                done += 1
                reason = prepared.reasons[sample.number]
                if reason:
                    lines.append(skipped_line(sample, reason))
                    continue
                # While the first sample loads and compiles, ending the process loses nothing.
                with ends_at_once() if params is None else contextlib.nullcontext():
                    if params is None:
                        log.info("loading %s in %s", settings.model_path, pretrained.dtype)
                        began = time.perf_counter()
                        params = load_params(pretrained.checkpoint, pretrained.dtype)
                        unit_run.work.loading = time.perf_counter() - began
                    generated = generate(
                        pretrained.model,
                        params,
                        sample,
                        pretrained.checkpoint.stop_token_ids,
                        settings,
                        choose_generated,
                        bucket_length(len(sample.token_ids)),
                        pretrained.repetition_penalty,
                        None if edits is None else edits.of_samples(np.array([sample.number])),
                    )
                if len(generated.positions):
                    blocks.append(row_block(sample, generated))
                no_rows = None if len(generated.positions) else NO_POSITION
                text = decode_text(pretrained.tokenizer, generated.token_ids)
                lines.append(
                    output_line(sample, generated.token_ids, text, generated.finish_reason, no_rows)
                )
            if stop.is_set():
                break
            unit_run.commit(unit, RowBlock.concatenate(blocks) if blocks else None, lines)
        unit_run.work.compiling = compiling.seconds
        stack.close()  # waits for the uploads
        totals = unit_run.finish(None, stop)
        unit_run.work.seconds = time.perf_counter() - started
    for line in unit_run.summary(totals).lines():
        print(line)
