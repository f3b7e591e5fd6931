"""The selection of tokens whose activations are kept, by the selectors of `--positions`.

A selector chooses tokens of a sample. A token is kept if any selector chooses it and no `not ...`
selector does. Selectors that read the text see the prompt only; the others also see the generated
tokens. The selection happens on the host, and the devices receive slots, so only wanted rows are
copied from the devices.

A generated token has a row if it went through the model. The last one never does, since no token
follows it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from extraction.setting_names import setting
from inference.errors import InputError
from inference.inputs.position_selectors import KNOWN, GeneratedToken, parse_selector
from inference.inputs.prompt_tokens import PromptTokens, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ChooseGenerated = Callable[[int, Sequence[int]], Sequence[int]]
"""Function of the length of a prompt and of the generated tokens that ran. It returns the numbers,
from 0, of the generated tokens whose rows are kept."""


def choose_all(prompt_length: int, token_ids: Sequence[int]) -> Sequence[int]:
    """Choose all generated tokens that ran; a `ChooseGenerated`."""
    return range(len(token_ids))


class Positions:
    """The selectors of a run.

    Args:
        expressions: selectors as for `--positions`. If all are `not ...`, they choose among all
            tokens.

    Raises:
        InputError: an expression is none of `SELECTORS`, or its parts are wrong.
    """

    def __init__(self, expressions: Sequence[str]):
        if not expressions:
            raise InputError(f"{setting('positions')} needs at least one of {KNOWN}")
        negated = [e.removeprefix("not ") for e in expressions if _is_negated(e)]
        chosen = [e for e in expressions if not _is_negated(e)] or ["all"]
        self._names = chosen
        self._chosen = [parse_selector(expression) for expression in chosen]
        self._excluded = [parse_selector(expression) for expression in negated]

    @property
    def any_generated(self) -> bool:
        """Whether a selector can choose a generated token."""
        return any(selector.generated is not None for selector in self._chosen)

    def most_generated(self, max_new_tokens: int) -> int:
        """Return how many generated tokens can have a row: all but the last, or none."""
        return max(0, max_new_tokens - 1) if self.any_generated else 0

    def of_prompt(self, prompt: PromptTokens) -> tuple[int, ...]:
        """Return the chosen positions in the prompt, ascending, each once.

        Raises:
            InputError: a selector needs what the prompt does not have.
        """
        if not prompt.token_ids:
            return ()
        chosen = {at for selector in self._chosen for at in selector.prompt(prompt)}
        excluded = {at for selector in self._excluded for at in selector.prompt(prompt)}
        return tuple(sorted(chosen - excluded))

    def found_in_messages(self, prompt: PromptTokens) -> list[dict[str, Any]] | None:
        """Return the message that holds each text that a selector found in a chat.

        Returns:
            For each occurrence with chosen tokens in the prompt: `selector`, `text`, the number of
            the `message`, its `role`, and `positions`. Message and role are None if the text is in
            no content, but in the template's own text or in a content that it rewrites. The result
            is None if the prompt is no chat, or if no selector looks for a text.
        """
        selectors = [
            (name, selector.chosen)
            for name, selector in zip(self._names, self._chosen, strict=True)
            if selector.chosen is not None
        ]
        whole = prompt.whole or prompt
        if whole.chat is None or not selectors or not prompt.token_ids:
            return None
        found = []
        for name, chosen in selectors:
            occurrences = chosen(prompt)
            for (start, stop), tokens in zip(occurrences.places, occurrences.tokens, strict=True):
                here = [at - prompt.first for at in tokens]
                here = [at for at in here if 0 <= at < len(prompt.token_ids)]
                if here:
                    message = whole.chat.message_at(start, stop)
                    found.append(
                        {
                            "selector": name,
                            "text": whole.chat.text[start:stop],
                            "message": message,
                            "role": None if message is None else whole.chat.role(message),
                            "positions": here,
                        }
                    )
        return found

    def generated_chooser(self, tokenizer: PreTrainedTokenizerBase | None) -> ChooseGenerated:
        """Return `of_generated` with the special tokens of a tokenizer."""
        return functools.partial(self.of_generated, special_ids=special_ids(tokenizer))

    def of_generated(
        self, prompt_length: int, token_ids: Sequence[int], special_ids: frozenset[int]
    ) -> list[int]:
        """Return the numbers, from 0, of the chosen generated tokens.

        Args:
            prompt_length: number of tokens of the prompt.
            token_ids: generated token ids that went through the model.
            special_ids: ids of the tokenizer's special tokens.
        """
        tokens = (
            GeneratedToken(
                number=number,
                position=prompt_length + number,
                token_id=token_id,
                is_special=token_id in special_ids,
            )
            for number, token_id in enumerate(token_ids)
        )
        return [
            token.number
            for token in tokens
            if any(s.generated is not None and s.generated(token) for s in self._chosen)
            and not any(s.generated is not None and s.generated(token) for s in self._excluded)
        ]


def _is_negated(expression: str) -> bool:
    return expression.startswith("not ")
