"""Activations in memory, for notebooks: texts or token ids in, arrays out.

    model = load_model("Qwen/Qwen2.5-0.5B")
    captured = capture(model, ["The Eiffel Tower"], ["layers.12.mlp"], ["all"])
    captured["layers.12.mlp"]      # [rows, width]

Plan, programs and selectors are those of the commands, so the rows are the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np

from extraction.hook_point_names import MOST_NAMED
from extraction.interruption import stop_flag
from extraction.progress import ProgressLine
from inference.engine.batches import SampleResult, row_slots
from inference.engine.engine import Engine
from inference.engine.generation_config import followed_penalty
from inference.engine.hosts import device_memory
from inference.engine.language_model import LanguageModel
from inference.engine.memory import check_memory
from inference.engine.plan import PlannedSample, PlanSettings, pack_batches, plan_units
from inference.engine.programs import GenerationSettings
from inference.errors import InputError
from inference.inputs.positions import Positions
from inference.inputs.prompt_forms import read_prompt
from inference.inputs.samples import make_samples, reason_to_skip
from inference.inputs.tasks import PromptTask, read_entry
from inference.settings.commands import SampleSettings
from inference.settings.devices import DeviceSettings
from qwen_hooks.activations import NamedActivations
from qwen_hooks.hook_points import hook_widths
from qwen_hooks.interventions import Operation, intervene

Inputs = Sequence[Any] | np.ndarray
"""Texts, token ids (any sequence or array of whole numbers), chats (sequences of messages), or
objects as in a tasks file: `{"messages": ..., "tools": ...}`, `{"prompt": ..., "entity": ...}`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Captured:
    """Rows of the chosen tokens, in the order of the inputs and of their tokens.

    Attributes:
        activations: `[rows, width]` of each hook point, in the dtype of the computation; keys may
            be any name of a hook point.
        sample: int32 `[rows]`, number of the input.
        position: int32 `[rows]`, position of the token in its input, without padding.
        slot: int32 `[rows]`, slot of the token: its position, or with an attention mask its column
            in the inputs. The slots of generated tokens follow those of the longest input.
        token_id: int32 `[rows]`, id of the token.
        token_ids: token ids of each input, without padding.
        generated: generated token ids of each input.
        width: number of slots, those of generated tokens included.
    """

    activations: NamedActivations[np.ndarray]
    sample: np.ndarray
    position: np.ndarray
    slot: np.ndarray
    token_id: np.ndarray
    token_ids: tuple[tuple[int, ...], ...]
    generated: tuple[tuple[int, ...], ...]
    width: int

    def __len__(self) -> int:
        return len(self.sample)

    def __repr__(self) -> str:
        return f"Captured({len(self)} rows of {len(self.token_ids)} inputs, {self.activations!r})"

    def _repr_html_(self) -> str:
        from extraction.notebook_html import ROWS_SHOWN, table

        columns = (self.sample, self.position, self.token_id)
        hooks = list(self.activations)[:MOST_NAMED]
        first = [np.asarray(self.activations[hook][:ROWS_SHOWN], np.float32) for hook in hooks]
        norms = [np.linalg.norm(values, axis=1) for values in first]
        rows = (
            [*map(str, keys), *(f"{float(norm):.4g}" for norm in of_row)]
            for *keys, of_row in zip(*columns, zip(*norms, strict=True), strict=False)
        )
        names = ["input", "position", "token id", *(f"norm of {hook}" for hook in hooks)]
        return table(repr(self), names, rows, len(self))

    def __getitem__(self, hook_point: str) -> np.ndarray:
        """Return the rows of a hook point, `[rows, width]`, by any of its names.

        Raises:
            NotCapturedError: the hook point was not captured; the message lists the nearest names.
        """
        return self.activations[hook_point]

    def dense(self, hook_point: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows as `[inputs, slots, width]`, and a mask `[inputs, slots]` of the rows.

        Slots without a row are zero.
        """
        rows = self.activations[hook_point]
        shape = len(self.token_ids), self.width
        values, mask = np.zeros((*shape, rows.shape[1]), rows.dtype), np.zeros(shape, bool)
        values[self.sample, self.slot], mask[self.sample, self.slot] = rows, True
        return values, mask


def capture(
    model: LanguageModel,
    inputs: Inputs,
    hook_points: str | Sequence[object],
    positions: str | Sequence[str] = ("last",),
    *,
    attention_mask: np.ndarray | None = None,
    max_new_tokens: int = 0,
    repetition_penalty: float | str = 1.0,
    interventions: Mapping[str, Operation | Sequence[Operation]] | None = None,
    add_special_tokens: bool = True,
    batch_size: int = 32,
    tokens_per_batch: int = 4096,
    random_seed: int = 0,
) -> Captured:
    """Run inputs and return the activations of chosen tokens.

    Args:
        model: the loaded model.
        inputs: texts, token ids, chats (lists of `{"role", "content"}`), objects with a chat and
            its `tools`, or with a text and its `entity`; or an array `[inputs, slots]` of token
            ids.
        hook_points: names, aliases or patterns of hook points; see docs/hook_points.md.
        positions: selectors of tokens; see docs/positions.md.
        attention_mask: `[inputs, slots]`, for an array of inputs: 1 for tokens, 0 for padding on
            either side.
        max_new_tokens: most tokens to generate for each input, each the likeliest; 0: none.
        repetition_penalty: penalty for tokens that occur in the input or the generated text:
            positive logits are divided by it, negative ones multiplied. `auto`: the penalty in the
            checkpoint's generation_config.json.
        interventions: operations by hook point; an array may have a first axis of inputs. See
            docs/interventions.md.
        add_special_tokens: whether the tokenizer adds its special tokens around a text.
        batch_size: most inputs that a device runs at a time.
        tokens_per_batch: most padded tokens that a device runs at a time.
        random_seed: seed of the selector `random`.

    Raises:
        ModelError: there is no such hook point.
        InputError: a selector or an input is wrong, empty, or too long for the model, or a batch
            does not fit on the devices.
        KeyboardInterrupt: ctrl-C was pressed; raised between two batches.
    """
    settings = SampleSettings(
        positions=[positions] if isinstance(positions, str) else list(positions),
        max_new_tokens=max_new_tokens,
        random_seed=random_seed,
        repetition_penalty=str(repetition_penalty),
        add_special_tokens=add_special_tokens,
    )
    devices = DeviceSettings(batch_size=batch_size, tokens_per_batch=tokens_per_batch)
    if not hook_points:
        raise InputError("hook_points must name at least one hook point")
    module, chosen = model.for_rows(hook_points), Positions(settings.positions)
    tasks, columns = _tasks(inputs, attention_mask)
    with ProgressLine() as progress:
        samples = list(
            make_samples(
                tasks, model.tokenizer, model.config.vocab_size, settings, progress=progress
            )
        )
    for sample in samples:
        reason = reason_to_skip(sample, model.config.context_length, max_new_tokens)
        if reason is not None:
            raise InputError(f"{sample.task_id}: {reason}")

    plan = PlanSettings(
        tokens_per_batch=devices.tokens_per_batch,
        max_batch_size=devices.batch_size,
        rows_per_unit=1,
    )
    planned = (PlannedSample(number=s.number, tokens=len(s.token_ids), rows=1) for s in samples)
    units = list(plan_units(planned, plan))
    engine = Engine(
        model=module,
        params=model.params,
        mesh=model.layout.mesh,
        plan=plan,
        generation=GenerationSettings(
            max_new_tokens=max_new_tokens,
            capture_generated=chosen.any_generated,
            stop_token_ids=model.checkpoint.stop_token_ids,
            repetition_penalty=followed_penalty(
                model.checkpoint.folder, settings.repetition_penalty, predicts=max_new_tokens > 0
            ),
        ),
        row_slots=row_slots(units, samples, predicts=max_new_tokens > 0),
        choose_generated=chosen.generated_chooser(model.tokenizer),
    )
    widths = hook_widths(module.hook_points, model.config)
    check_memory(
        model.config,
        model.layout,
        plan,
        buckets=sorted(engine.row_slots),
        max_new_tokens=max_new_tokens,
        row_slots=engine.row_slots,
        captured_width=sum(widths.values()),
        itemsize=model.dtype.itemsize,
        device_memory=device_memory(jax.local_devices()[0]),
    )
    edits = None
    if interventions:
        lengths = np.array([len(sample.token_ids) for sample in samples], np.int32)
        edits = intervene(interventions, module.config, lengths)

    batches = pack_batches(units, plan, model.layout.mesh.shape["data"])
    results: list[SampleResult] = []
    with stop_flag() as stop, ProgressLine() as progress:
        for result in engine.run(batches, samples, interventions=edits):
            stop.check()
            results.append(result)
            progress("inputs run", len(results), len(samples))
    results.sort(key=lambda result: result.sample.number)
    width = max((len(sample.token_ids) for sample in samples), default=0)
    if attention_mask is not None:
        width = np.shape(attention_mask)[1]
    return _captured(results, widths, columns, width)


def _tasks(
    inputs: Inputs, attention_mask: np.ndarray | None
) -> tuple[list[PromptTask], list[np.ndarray] | None]:
    """Return the inputs as tasks and, with a mask, the columns of each input's tokens."""
    if isinstance(inputs, str | bytes | Mapping | Set):
        raise InputError(
            f"inputs must be a list of texts, chats or token ids, not one {type(inputs).__name__}"
        )
    if attention_mask is not None:
        ids, mask = np.asarray(inputs), np.asarray(attention_mask)
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.shape != mask.shape:
            raise InputError(
                "with an attention mask the inputs are whole numbers [inputs, slots] of the same"
                f" shape, not {ids.dtype} {list(ids.shape)} and {list(mask.shape)}"
            )
        columns = [np.flatnonzero(row) for row in mask]
        rows = [row[at] for row, at in zip(ids, columns, strict=True)]
        return [_task(number, row) for number, row in enumerate(rows)], columns
    return [_task(number, content) for number, content in enumerate(inputs)], None


def _task(number: int, content: Any) -> PromptTask:
    where = f"inputs[{number}]"
    if isinstance(content, Mapping):
        return read_entry(where, where, content)
    return PromptTask(task_id=where, **read_prompt(where, content))


def _captured(
    results: Sequence[SampleResult],
    widths: Mapping[str, int],
    columns: Sequence[np.ndarray] | None,
    longest: int,
) -> Captured:
    slots, tokens = [], []
    for number, result in enumerate(results):
        sequence = np.array([*result.sample.token_ids, *result.token_ids], np.int32)
        length = len(result.sample.token_ids)
        place = np.arange(length) if columns is None else columns[number]
        place = np.concatenate([place, longest + np.arange(len(result.token_ids))])
        slots.append(place[result.positions].astype(np.int32))
        tokens.append(sequence[result.positions])
    counts = [len(result.positions) for result in results]
    empty = np.zeros(0, np.int32)
    return Captured(
        activations=NamedActivations(
            (
                hook,
                np.concatenate([result.rows[hook] for result in results])
                if results
                else np.empty((0, width), np.float32),
            )
            for hook, width in widths.items()
        ),
        sample=np.repeat(np.arange(len(results), dtype=np.int32), counts),
        position=np.concatenate([empty, *(result.positions for result in results)]),
        slot=np.concatenate([empty, *slots]),
        token_id=np.concatenate([empty, *tokens]),
        token_ids=tuple(result.sample.token_ids for result in results),
        generated=tuple(tuple(result.token_ids) for result in results),
        width=longest + max((len(result.token_ids[:-1]) for result in results), default=0),
    )
