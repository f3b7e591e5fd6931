"""A prompt's tokens and their spans in its text, for the selectors of positions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from extraction.setting_names import setting
from inference.errors import InputError
from inference.inputs.chats import RenderedChat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """A prompt, as selectors read it.

    Attributes:
        task_id: id of the task, for messages.
        token_ids: token ids that the model reads.
        text: the text that was tokenised; None without a tokenizer.
        tokenizer: tokenizer of the model, or None.
        special: ids of the tokenizer's special tokens.
        adds_special_tokens: whether the tokenizer added special tokens around the text.
        separators: number of tokens that were appended after those of the text.
        chat: the chat that was rendered as the text; None if there is none.
        entity: text in the task's field `entity`, or None.
        seed: seed of this prompt's random choices.
        whole: the document that this prompt is a piece of; None if it is not a piece.
        first: number of the prompt's first token in the document.
    """

    task_id: str
    token_ids: Sequence[int]
    text: str | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    special: frozenset[int] = frozenset()
    adds_special_tokens: bool = True
    separators: int = 0
    chat: RenderedChat | None = None
    entity: str | None = None
    seed: tuple[int, ...] = (0,)
    whole: "PromptTokens | None" = None
    first: int = 0

    def piece(self, start: int, stop: int) -> "PromptTokens":
        """Return the tokens from `start` to before `stop` as a piece of this document."""
        ids = self.token_ids[start:stop]
        return dataclasses.replace(self, token_ids=ids, whole=self, first=start)

    @functools.cached_property
    def spans(self) -> np.ndarray:
        """`[S, 2]` spans of the tokens in `text`; tokens that share a character all have its span.

        Raises:
            InputError: the tokens are not those that the tokenizer makes of the text, or the
                tokenizer does not return offsets.
        """
        if self.text is None or self.tokenizer is None or not self.tokenizer.is_fast:
            raise InputError(
                f"task {self.task_id!r}: {setting('positions')} reads the text, which needs a"
                " checkpoint with a fast tokenizer"
            )
        found = self.tokenizer(
            self.text, add_special_tokens=self.adds_special_tokens, return_offsets_mapping=True
        )
        of_text = self.token_ids[: len(self.token_ids) - self.separators]
        if list(found["input_ids"]) != list(of_text):
            raise InputError(
                f"task {self.task_id!r}: its token ids are not those that the tokenizer makes of"
                f" their text, so {setting('positions')} cannot find text in them"
            )
        behind = [(len(self.text), len(self.text))] * self.separators
        return np.array([*found["offset_mapping"], *behind], np.int64).reshape(-1, 2)

    def within(self, start: int, stop: int) -> list[int]:
        """Return the tokens that overlap `text[start:stop]`."""
        tokens, starts, ends = self._spans_with_text
        first, end = np.searchsorted(ends, start, "right"), np.searchsorted(starts, stop, "left")
        return tokens[first:end].tolist()

    @functools.cached_property
    def _spans_with_text(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers, starts and ends of the tokens with text, ascending."""
        starts, ends = self.spans.T
        tokens = np.flatnonzero(ends > starts)  # special tokens have no text
        return tokens, starts[tokens], ends[tokens]

    @functools.cached_property
    def chosen_by_text(self) -> dict[Callable[..., Any], "ChosenText"]:
        """Spans chosen by selectors of text, computed once for all pieces."""
        return {}


@dataclasses.dataclass(frozen=True, eq=False)
class ChosenText:
    """The spans of a document that a selector of text chose.

    Attributes:
        places: span of each occurrence in the text.
        tokens: positions of the chosen tokens of each occurrence.
    """

    places: Sequence[tuple[int, int]]
    tokens: Sequence[Sequence[int]]

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """Positions of the chosen tokens of all occurrences, ascending, each once."""
        return np.unique(np.array([at for tokens in self.tokens for at in tokens], np.int64))


def special_ids(tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Return the ids of the tokenizer's special tokens, such as those around a chat's messages."""
    if tokenizer is None:
        return frozenset()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = {token_id for token_id, token in added.items() if token.special}
    return frozenset(marked | set(tokenizer.all_special_ids))
