"""Make samples of tasks: render, tokenise and number prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from extraction.progress import Progress, ProgressLine, counted, silent
from extraction.setting_names import setting
from inference.engine.pretrained import Pretrained
from inference.errors import InputError
from inference.inputs.arc import ArcTask, arc_prompt, augmentation
from inference.inputs.arc_grids import GRID_ENCODERS
from inference.inputs.chats import Chat, RenderedChat
from inference.inputs.positions import Positions
from inference.inputs.prompt_tokens import PromptTokens, special_ids
from inference.inputs.steering import Steering
from inference.inputs.tasks import PromptTask, Task
from inference.outputs import FOUND_FIELD
from inference.settings.commands import ExtractionSettings, SampleSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt that the model runs on.

    Attributes:
        number: number in the run, from 0; part of the sampling key.
        task_id: id of the task.
        sample_idx: number within the task, from 0.
        prompt: text of the prompt; None if it was given as token ids and there is no tokenizer.
        token_ids: token ids that the model reads.
        positions: positions in the prompt whose activations are kept, ascending.
        extra: further fields of the output line.
        changed: for each intervention of the run, positions in the prompt that it changes; none
            where it has no selectors.
    """

    number: int
    task_id: str
    sample_idx: int
    prompt: str | None
    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    extra: Mapping[str, Any]
    changed: tuple[tuple[int, ...], ...] = ()


def read_samples(
    tasks: Sequence[Task],
    pretrained: Pretrained,
    settings: ExtractionSettings,
    steering: Steering | None = None,
) -> list[Sample]:
    """Return every sample of a run, showing progress; see `make_samples`."""
    config = pretrained.checkpoint.config
    with ProgressLine() as progress:
        return list(
            make_samples(
                tasks,
                pretrained.tokenizer,
                config.vocab_size,
                settings,
                config.context_length,
                progress,
                steering,
            )
        )


def make_samples(
    tasks: Sequence[Task],
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
    settings: SampleSettings,
    context_length: int | None = None,
    progress: Progress = silent,
    steering: Steering | None = None,
) -> Iterator[Sample]:
    """Yield every sample of the tasks, in their order.

    Args:
        tasks: tasks or documents.
        tokenizer: tokenizer of the model; None if the checkpoint has none.
        vocab_size: size of the model's vocabulary.
        settings: settings of the command.
        context_length: context of the model; documents are cut into pieces that fit it, or shorter
            ones if the settings say so.
        progress: called with the number of tokenised inputs.
        steering: the run's interventions; None: none.

    Raises:
        InputError: a text without a tokenizer, a chat without a template, or a token id outside the
            vocabulary.
    """
    number, positions = 0, Positions(settings.positions)
    special = special_ids(tokenizer)
    is_document = settings.dataset is not None
    length = _piece_length(settings, context_length) if is_document else None
    behind = separator_ids(settings, tokenizer)
    _check_token_ids(setting("separator", settings.separator), behind, vocab_size)
    for task in counted(tasks, "inputs tokenised", progress, len(tasks)):
        prompts = _arc_prompts(task, settings) if isinstance(task, ArcTask) else [_own_prompt(task)]
        for sample_idx, (content, extra) in enumerate(prompts):
            where = f"task {task.task_id!r}, sample_idx {sample_idx}"
            if isinstance(content, tuple):  # before the tokenizer, which cannot take them all
                _check_token_ids(where, content, vocab_size)
            prompt, token_ids, chat = _tokenise(task.task_id, content, tokenizer, settings)
            _check_token_ids(where, token_ids, vocab_size, tokenizer)
            entity = task.extra.get("entity") if isinstance(task, PromptTask) else None
            tokens = PromptTokens(
                task_id=task.task_id,
                token_ids=token_ids + behind,
                text=prompt,
                tokenizer=tokenizer,
                special=special,
                adds_special_tokens=isinstance(content, str) and settings.add_special_tokens,
                separators=len(behind),
                chat=chat,
                entity=entity if isinstance(entity, str) else None,
            )
            for piece, part in enumerate(_pieces(tokens, length, settings.truncate)):
                part = dataclasses.replace(part, seed=(settings.random_seed, number))
                is_whole, found = part.whole is None, positions.found_in_messages(part)
                yield Sample(
                    number=number,
                    task_id=task.task_id,
                    sample_idx=piece if is_document else sample_idx,
                    prompt=prompt if is_whole else _decode_piece(tokenizer, part),
                    token_ids=tuple(part.token_ids),
                    positions=positions.of_prompt(part),
                    extra={
                        **extra,
                        **({} if is_whole else _place_in_document(part, tokens)),
                        **({} if found is None else {FOUND_FIELD: found}),
                    },
                    changed=() if steering is None else steering.positions_of(part),
                )
                number += 1


def separator_ids(
    settings: SampleSettings, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[int, ...]:
    """Return the tokens to append to each document: one, or none.

    Raises:
        InputError: the tokenizer has no such token.
    """
    if settings.separator == "none":
        return ()
    if settings.separator != "eos":
        return (int(settings.separator),)
    if tokenizer is None or tokenizer.eos_token_id is None:
        raise InputError(
            f"{setting('separator', 'eos')}: the checkpoint's tokenizer has none; give a token id"
        )
    return (int(cast(int, tokenizer.eos_token_id)),)


def _piece_length(settings: SampleSettings, context_length: int | None) -> int | None:
    """Return the most tokens of a piece of a document, so that generated ones still fit."""
    if context_length is None:
        return settings.context_length
    room = context_length - max(settings.max_new_tokens, 1) + 1
    if room < 1 or (settings.context_length or 0) > room:
        raise InputError(
            f"{setting('context_length', settings.context_length or context_length)} with"
            f" {setting('max_new_tokens', settings.max_new_tokens)} does not fit into the model's"
            f" context of {context_length}"
        )
    return settings.context_length or room


def _pieces(tokens: PromptTokens, length: int | None, truncate: bool) -> Iterator[PromptTokens]:
    """Yield the pieces of a document; an empty document is one piece."""
    count = len(tokens.token_ids)
    if length is None or count <= length:
        yield tokens
        return
    for start in range(0, count, length):
        yield tokens.piece(start, min(start + length, count))
        if truncate:
            return


def _decode_piece(tokenizer: PreTrainedTokenizerBase | None, piece: PromptTokens) -> str | None:
    return decode_text(tokenizer, piece.token_ids, skip_special_tokens=False)


def _place_in_document(piece: PromptTokens, whole: PromptTokens) -> dict[str, int]:
    return {"first_document_token": piece.first, "document_tokens": len(whole.token_ids)}


def _check_token_ids(
    where: str,
    token_ids: Sequence[int],
    vocab_size: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Check that the model has an embedding of every token.

    Args:
        where: sample or flag with the tokens, for messages.
        token_ids: the token ids.
        vocab_size: number of rows of the embedding.
        tokenizer: tokenizer that made the tokens; None: the user gave them as numbers.

    Raises:
        InputError: it has none of one of them.
    """
    unknown = [token for token in token_ids if not 0 <= token < vocab_size]
    if unknown:
        name = "" if tokenizer is None else f" ({tokenizer.convert_ids_to_tokens(unknown[0])!r})"
        raise InputError(
            f"{where}: token id {unknown[0]}{name} is not in the model's vocabulary of {vocab_size}"
        )


Content = str | Chat | tuple[int, ...]
"""A text, a chat, or token ids."""


def _own_prompt(task: PromptTask) -> tuple[Content, Mapping[str, Any]]:
    if task.messages is not None:
        return Chat(messages=task.messages, tools=task.tools), task.extra
    for content in (task.prompt, task.token_ids):
        if content is not None:
            return content, task.extra
    raise AssertionError("read_tasks lets no task pass without a prompt")


def _arc_prompts(
    task: ArcTask, settings: SampleSettings
) -> Iterator[tuple[Content, Mapping[str, Any]]]:
    encoder = GRID_ENCODERS[settings.grid_encoder]
    for test_index in range(len(task.test_inputs)):
        for prediction in range(settings.predictions_per_task):
            change = augmentation(settings.random_seed, task.task_id, test_index, prediction)
            text = arc_prompt(task, test_index, encoder, change)
            extra = {
                "test_index": test_index,
                "prediction": prediction,
                "augmentation": dataclasses.asdict(change),
            }
            if settings.prompt_style == "chat":
                yield Chat(messages=[{"role": "user", "content": text}]), extra
            else:
                yield text, extra


def decode_text(
    tokenizer: PreTrainedTokenizerBase | None,
    token_ids: Sequence[int],
    skip_special_tokens: bool = True,
) -> str | None:
    """Return the tokens as text; None without a tokenizer."""
    if tokenizer is None:
        return None
    return cast(str, tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))


def _tokenise(
    task_id: str,
    content: Content,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: SampleSettings,
) -> tuple[str | None, tuple[int, ...], RenderedChat | None]:
    """Return the text (if any), its tokens, and the chat it comes from (if any)."""
    if isinstance(content, tuple):
        return decode_text(tokenizer, content, skip_special_tokens=False), content, None
    if tokenizer is None:
        raise InputError(
            f"task {task_id!r} has a text, but the checkpoint has no tokenizer; give token_ids"
        )
    if isinstance(content, str):
        ids = tokenizer(content, add_special_tokens=settings.add_special_tokens)["input_ids"]
        return content, tuple(ids), None
    chat = RenderedChat(
        task_id=task_id,
        chat=content,
        tokenizer=tokenizer,
        add_generation_prompt=settings.dataset is None,
    )
    return chat.text, tuple(tokenizer(chat.text, add_special_tokens=False)["input_ids"]), chat


def reason_to_skip(sample: Sample, context: int, max_new_tokens: int) -> str | None:
    """Return why a sample cannot run, or None if it can."""
    if not sample.token_ids:
        return "the prompt is empty"
    needed = len(sample.token_ids) + max(max_new_tokens, 1) - 1
    if needed > context:
        return (
            f"{len(sample.token_ids)} prompt tokens with"
            f" {setting('max_new_tokens', max_new_tokens)} need"
            f" a context of {needed}, the model has {context}"
        )
    return None
