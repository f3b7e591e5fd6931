"""Which tokens' activations are kept: the selectors of `--positions`.

A selector chooses among a sample's tokens; several together choose what any of them does, and
`not ...` takes away. Selectors that read the text know the prompt alone; the others go on over the
generated tokens. Choosing happens here, on the host; the devices are only told slots, so nothing
that is not wanted leaves them.

A generated token has a row when it has gone through the model. The last one never has: nothing
follows it.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from inference.errors import InputError

EXPRESSION = re.compile(
    r"(?P<name>[a-z]+)(\[(?P<options>[^\]]*)\])?(:(?P<argument>.*))?", re.DOTALL
)
OCCURRENCES = ("every", "first", "last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTokens:
    """A prompt, as far as selectors read it.

    Attributes:
        task_id: of its task, for messages.
        token_ids: as the model sees it.
        text: that was tokenised; None where there is no tokenizer.
        tokenizer: of the model, or None.
        special: ids of its special tokens.
        adds_special_tokens: whether the tokenizer put special tokens around the text.
        separators: how many tokens were put behind those of the text.
        messages: of a chat, or None.
        entity: text that the task names under `entity`, or None.
        seed: of random choices, this prompt's own.
        whole: the document that this is a piece of; None: it is whole.
        first: number of its first token in the document.
    """

    task_id: str
    token_ids: Sequence[int]
    text: str | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    special: frozenset[int] = frozenset()
    adds_special_tokens: bool = True
    separators: int = 0
    messages: Sequence[Mapping[str, str]] | None = None
    entity: str | None = None
    seed: tuple[int, ...] = (0,)
    whole: "PromptTokens | None" = None
    first: int = 0

    def piece(self, start: int, stop: int) -> "PromptTokens":
        """Some of its tokens, as a prompt of their own."""
        ids = self.token_ids[start:stop]
        return dataclasses.replace(self, token_ids=ids, whole=self, first=start)

    @functools.cached_property
    def spans(self) -> np.ndarray:
        """`[S, 2]` places of the tokens in `text`; those of a character's parts are the same.

        Raises:
            InputError: the tokens are not those that the tokenizer makes of the text, or it cannot
                tell their places.
        """
        if self.text is None or self.tokenizer is None or not self.tokenizer.is_fast:
            raise InputError(
                f"task {self.task_id!r}: --positions reads the text, which needs a checkpoint with"
                " a fast tokenizer"
            )
        found = self.tokenizer(
            self.text, add_special_tokens=self.adds_special_tokens, return_offsets_mapping=True
        )
        of_text = self.token_ids[: len(self.token_ids) - self.separators]
        if list(found["input_ids"]) != list(of_text):
            raise InputError(
                f"task {self.task_id!r}: its token ids are not those that the tokenizer makes of"
                " their text, so --positions cannot find text in them"
            )
        behind = [(len(self.text), len(self.text))] * self.separators
        return np.array([*found["offset_mapping"], *behind], np.int64).reshape(-1, 2)

    def within(self, start: int, stop: int) -> list[int]:
        """The tokens that have a part of `text[start:stop]`."""
        tokens, starts, ends = self._spans_with_text
        first, end = np.searchsorted(ends, start, "right"), np.searchsorted(starts, stop, "left")
        return tokens[first:end].tolist()

    @functools.cached_property
    def _spans_with_text(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the tokens that stand for text: their numbers, starts and ends, ascending."""
        starts, ends = self.spans.T
        tokens = np.flatnonzero(ends > starts)  # a tokenizer's own have no place in the text
        return tokens, starts[tokens], ends[tokens]

    @functools.cached_property
    def chosen_by_text(self) -> dict[Callable[..., Any], np.ndarray]:
        """What selectors that read the text chose in it, once for all pieces."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedToken:
    """A generated token: its number from 0, its place in the sequence, its id."""

    number: int
    position: int
    token_id: int
    is_special: bool


@dataclasses.dataclass(frozen=True)
class Selector:
    """What one expression chooses.

    Attributes:
        prompt: positions in the prompt.
        generated: whether a generated token is chosen; None: none ever is.
    """

    prompt: Callable[[PromptTokens], Iterable[int]]
    generated: Callable[[GeneratedToken], bool] | None = None


class Positions:
    """The selectors of a run.

    Args:
        expressions: as `--positions` takes them; none but `not ...`: of all tokens.

    Raises:
        InputError: one is none of `SELECTORS`, or its parts are wrong.
    """

    def __init__(self, expressions: Sequence[str]):
        if not expressions:
            raise InputError(f"--positions needs at least one of {KNOWN}")
        negated = [e.removeprefix("not ") for e in expressions if _is_negated(e)]
        chosen = [e for e in expressions if not _is_negated(e)] or ["all"]
        self._chosen = [_parse(expression) for expression in chosen]
        self._excluded = [_parse(expression) for expression in negated]

    @property
    def choose_generated(self) -> bool:
        """Whether any generated token may be chosen."""
        return any(selector.generated is not None for selector in self._chosen)

    def most_generated(self, max_new_tokens: int) -> int:
        """How many generated tokens may have a row: all but the last go through the model."""
        return max(0, max_new_tokens - 1) if self.choose_generated else 0

    def of_prompt(self, prompt: PromptTokens) -> tuple[int, ...]:
        """Positions in the prompt, ascending, each once.

        Raises:
            InputError: a selector needs what the prompt does not have.
        """
        if not prompt.token_ids:
            return ()
        chosen = {at for selector in self._chosen for at in selector.prompt(prompt)}
        excluded = {at for selector in self._excluded for at in selector.prompt(prompt)}
        return tuple(sorted(chosen - excluded))

    def of_generated(
        self, prompt_length: int, token_ids: Sequence[int], special_ids: frozenset[int]
    ) -> list[int]:
        """Numbers, from 0, of the chosen ones among the generated tokens.

        Args:
            prompt_length: tokens before the first.
            token_ids: those that went through the model.
            special_ids: of the tokenizer.
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


def special_ids(tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Ids of the tokenizer's special tokens, such as those around a chat's messages."""
    if tokenizer is None:
        return frozenset()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = {token_id for token_id, token in added.items() if token.special}
    return frozenset(marked | set(tokenizer.all_special_ids))


def _is_negated(expression: str) -> bool:
    return expression.startswith("not ")


def _parse(expression: str) -> Selector:
    match = EXPRESSION.fullmatch(expression)
    if match is None or match["name"] not in SELECTORS:
        raise InputError(f"--positions {expression!r} is none of {KNOWN}")
    options = [option.strip() for option in (match["options"] or "").split(",") if option.strip()]
    try:
        return SELECTORS[match["name"]](match["argument"], options)
    except ValueError as error:
        raise InputError(f"--positions {expression!r}: {error}") from None


def _no_options(options: Sequence[str]) -> None:
    if options:
        raise ValueError(f"takes nothing in brackets, not {', '.join(options)}")


def _nothing(argument: str | None, options: Sequence[str]) -> None:
    _no_options(options)
    if argument is not None:
        raise ValueError("takes nothing behind a colon")


def _number(argument: str | None, what: str, least: int = 1) -> int:
    if argument is None or not argument.strip().isdecimal() or int(argument) < least:
        raise ValueError(f"{what} must be a whole number from {least} on, not {argument!r}")
    return int(argument)


def _last(argument: str | None, options: Sequence[str]) -> Selector:
    _no_options(options)
    count = 1 if argument is None else _number(argument, "the number of tokens")
    return Selector(
        lambda prompt: range(max(0, len(prompt.token_ids) - count), len(prompt.token_ids)),
        lambda token: True,
    )


def _first(argument: str | None, options: Sequence[str]) -> Selector:
    _nothing(argument, options)
    return Selector(lambda prompt: [0])


def _all(argument: str | None, options: Sequence[str]) -> Selector:
    _nothing(argument, options)
    return Selector(lambda prompt: range(len(prompt.token_ids)), lambda token: True)


def _prompt(argument: str | None, options: Sequence[str]) -> Selector:
    _nothing(argument, options)
    return Selector(lambda prompt: range(len(prompt.token_ids)))


def _generated(argument: str | None, options: Sequence[str]) -> Selector:
    _no_options(options)
    start, _, stop = (argument or "0:").partition(":")
    first = _number(start or "0", "the first token", least=0)
    end = _number(stop, "the end", least=0) if stop else None
    return Selector(
        lambda prompt: [],
        lambda token: token.number >= first and (end is None or token.number < end),
    )


def _every(argument: str | None, options: Sequence[str]) -> Selector:
    _no_options(options)
    step = _number(argument, "the distance")
    return Selector(
        lambda prompt: range(0, len(prompt.token_ids), step),
        lambda token: token.position % step == 0,
    )


def _tokens(argument: str | None, options: Sequence[str]) -> Selector:
    _no_options(options)
    wanted = {_number(part, "a token id", least=0) for part in (argument or "").split(",")}
    return Selector(
        lambda prompt: [at for at, token in enumerate(prompt.token_ids) if token in wanted],
        lambda token: token.token_id in wanted,
    )


def _special(argument: str | None, options: Sequence[str]) -> Selector:
    _nothing(argument, options)

    return Selector(
        lambda prompt: [at for at, token in enumerate(prompt.token_ids) if token in prompt.special],
        lambda token: token.is_special,
    )


def _random(argument: str | None, options: Sequence[str]) -> Selector:
    _no_options(options)
    count = _number(argument, "the number of tokens")

    def of_prompt(prompt: PromptTokens) -> list[int]:
        length = len(prompt.token_ids)
        random = np.random.default_rng(prompt.seed)
        return random.choice(length, size=min(count, length), replace=False).tolist()

    return Selector(of_prompt)


@dataclasses.dataclass(frozen=True)
class _Places:
    """Which occurrences count, and which of their tokens: `[first, last 2]`."""

    occurrence: str = "every"
    tokens: str = "all"
    count: int = 1

    @classmethod
    def parse(cls, options: Sequence[str]) -> "_Places":
        """Of up to two options; the first that is `every`, `first` or `last` is the occurrence."""
        occurrence, tokens = ([*options, "every", "all"] if not options else [*options, "all"])[:2]
        if len(options) > 2 or occurrence not in OCCURRENCES:
            raise ValueError(
                f"takes an occurrence ({', '.join(OCCURRENCES)}) and tokens (all, first, last,"
                f" last N) in brackets, not [{', '.join(options)}]"
            )
        which, _, count = tokens.partition(" ")
        if which not in ("all", "first", "last") or (count and which != "last"):
            raise ValueError(f"tokens are all, first, last or last N, not {tokens!r}")
        return cls(occurrence, which, _number(count, "N") if count else 1)

    def of(self, prompt: PromptTokens, spans: Sequence[tuple[int, int]]) -> list[int]:
        """The tokens of the chosen spans of the text."""
        if self.occurrence != "every":
            spans = spans[:1] if self.occurrence == "first" else spans[-1:]
        found: list[int] = []
        for start, stop in spans:
            tokens = prompt.within(start, stop)
            if self.tokens == "first":
                tokens = tokens[:1]
            elif self.tokens == "last":
                tokens = tokens[-self.count :]
            found += tokens
        return found


def _of_text(choose: Callable[[PromptTokens], list[int]]) -> Selector:
    """A selector that reads the text of the whole document, and keeps what lies in a piece."""

    def of_prompt(prompt: PromptTokens) -> list[int]:
        whole = prompt.whole or prompt
        if choose not in whole.chosen_by_text:
            whole.chosen_by_text[choose] = np.unique(np.array(choose(whole), np.int64))
        chosen = whole.chosen_by_text[choose]
        ends = np.searchsorted(chosen, [prompt.first, prompt.first + len(prompt.token_ids)])
        return (chosen[slice(*ends)] - prompt.first).tolist()

    return Selector(of_prompt)


def _occurrences(text: str, wanted: str) -> list[tuple[int, int]]:
    """Of a text in another, overlapping ones among them."""
    starts = (match.start() for match in re.finditer(f"(?={re.escape(wanted)})", text))
    return [(start, start + len(wanted)) for start in starts]


def _substring(argument: str | None, options: Sequence[str]) -> Selector:
    if not argument:
        raise ValueError("needs a text: substring:TEXT")
    places = _Places.parse(options)
    return _of_text(lambda prompt: places.of(prompt, _occurrences(_text_of(prompt), argument)))


def _entity(argument: str | None, options: Sequence[str]) -> Selector:
    if argument is not None:
        raise ValueError("takes its text from the field `entity` of each task")
    places = _Places.parse(options)

    def of_prompt(prompt: PromptTokens) -> list[int]:
        if not prompt.entity:
            raise InputError(
                f"task {prompt.task_id!r} has no field `entity` (a text), which --positions entity"
                " needs"
            )
        return places.of(prompt, _occurrences(_text_of(prompt), prompt.entity))

    return _of_text(of_prompt)


def _regex(argument: str | None, options: Sequence[str]) -> Selector:
    if not argument:
        raise ValueError("needs an expression: regex:[0-9]+")
    places = _Places.parse(options)
    try:
        expression = re.compile(argument)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return _of_text(
        lambda prompt: places.of(
            prompt, [m.span() for m in expression.finditer(_text_of(prompt)) if m.end() > m.start()]
        )
    )


def _role(argument: str | None, options: Sequence[str]) -> Selector:
    if not argument:
        raise ValueError("needs a role: role:assistant")
    places = _Places.parse(options)

    def of_prompt(prompt: PromptTokens) -> list[int]:
        if prompt.messages is None:
            raise InputError(
                f"task {prompt.task_id!r} is no chat, which --positions role:... needs"
            )
        text, at, spans = _text_of(prompt), 0, []
        for message in prompt.messages:
            content = message["content"].strip()  # as templates put it in
            start = text.find(content, at)
            if start < 0:
                raise InputError(
                    f"task {prompt.task_id!r}: the chat template changes the messages, so"
                    " --positions role:... cannot find them"
                )
            at = start + len(content)
            if message["role"] == argument and content:
                spans.append((start, at))
        return places.of(prompt, spans)

    return _of_text(of_prompt)


def _text_of(prompt: PromptTokens) -> str:
    prompt.spans  # noqa: B018  # says what is missing
    return cast(str, prompt.text)


SELECTORS: dict[str, Callable[[str | None, Sequence[str]], Selector]] = {
    "last": _last,
    "all": _all,
    "first": _first,
    "every": _every,
    "prompt": _prompt,
    "generated": _generated,
    "substring": _substring,
    "entity": _entity,
    "regex": _regex,
    "role": _role,
    "tokens": _tokens,
    "special": _special,
    "random": _random,
}
"""A further selector is a function here and a line in the table."""

KNOWN = (
    "last, last:K, all, first, every:N, prompt, generated, generated:A:B, substring:TEXT, entity,"
    " regex:EXPRESSION, role:ROLE, tokens:ID,ID, special, random:N, or 'not' before one of them"
)
