"""The selectors of `--positions`: one function for each, in the table `SELECTORS`.

A function takes the argument after the colon of an expression and the options in its brackets. It
returns a `Selector`, which chooses tokens of a prompt and generated tokens. A selector of text
reads a document once, also if the document is cut into pieces.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import numpy as np

from extraction.setting_names import setting
from inference.errors import InputError
from inference.inputs.prompt_tokens import ChosenText, PromptTokens

EXPRESSION = re.compile(
    r"(?P<name>[a-z]+)(\[(?P<options>[^\]]*)\])?(:(?P<argument>.*))?", re.DOTALL
)
OCCURRENCES = ("every", "first", "last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedToken:
    """A generated token: its number from 0, its position in the sample, its id."""

    number: int
    position: int
    token_id: int
    is_special: bool


@dataclasses.dataclass(frozen=True)
class Selector:
    """The tokens that one expression chooses.

    Attributes:
        prompt: returns the chosen positions in a prompt.
        generated: returns whether a generated token is chosen; None: no generated token is.
        chosen: returns the occurrences of a text in the whole document; None: the selector does not
            look for a text.
    """

    prompt: Callable[[PromptTokens], Iterable[int]]
    generated: Callable[[GeneratedToken], bool] | None = None
    chosen: Callable[[PromptTokens], ChosenText] | None = None


def parse_selector(expression: str) -> Selector:
    """Return the selector of an expression such as `last:3` or `substring[first]:Paris`.

    Raises:
        InputError: the expression is none of `SELECTORS`, or its parts are wrong.
    """
    match = EXPRESSION.fullmatch(expression)
    if match is None or match["name"] not in SELECTORS:
        raise InputError(f"{setting('positions', expression)} is none of {KNOWN}")
    options = [option.strip() for option in (match["options"] or "").split(",") if option.strip()]
    try:
        return SELECTORS[match["name"]](match["argument"], options)
    except ValueError as error:
        raise InputError(f"{setting('positions', expression)}: {error}") from None


def _no_options(options: Sequence[str]) -> None:
    if options:
        raise ValueError(f"takes nothing in brackets, not {', '.join(options)}")


def _nothing(argument: str | None, options: Sequence[str]) -> None:
    _no_options(options)
    if argument is not None:
        raise ValueError("takes nothing after a colon")


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
    """The occurrences that a selector chooses, and the tokens of each: `[first, last 2]`."""

    occurrence: str = "every"
    tokens: str = "all"
    count: int = 1

    @classmethod
    def parse(cls, options: Sequence[str]) -> "_Places":
        """Parse up to two options; the first `every`, `first` or `last` selects occurrences."""
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

    def of(self, prompt: PromptTokens, spans: Sequence[tuple[int, int]]) -> ChosenText:
        """Return the chosen spans of the text, and their tokens."""
        if self.occurrence != "every":
            spans = spans[:1] if self.occurrence == "first" else spans[-1:]
        found = []
        for start, stop in spans:
            tokens = prompt.within(start, stop)
            if self.tokens == "first":
                tokens = tokens[:1]
            elif self.tokens == "last":
                tokens = tokens[-self.count :]
            found.append(tokens)
        return ChosenText(spans, found)


def _of_text(
    spans_of: Callable[[PromptTokens], Sequence[tuple[int, int]]],
    places: _Places,
    *,
    is_found: bool = True,
) -> Selector:
    """Return a selector that reads the text of the whole document, once for all its pieces.

    Args:
        spans_of: returns the spans of all occurrences in the text of a document.
        places: the occurrences and tokens to choose.
        is_found: whether the selector looks for a text; False: the spans are messages of a chat.
    """

    def chosen(prompt: PromptTokens) -> ChosenText:
        whole = prompt.whole or prompt
        if spans_of not in whole.chosen_by_text:
            whole.chosen_by_text[spans_of] = places.of(whole, spans_of(whole))
        return whole.chosen_by_text[spans_of]

    def of_prompt(prompt: PromptTokens) -> list[int]:
        positions = chosen(prompt).positions
        ends = np.searchsorted(positions, [prompt.first, prompt.first + len(prompt.token_ids)])
        return (positions[slice(*ends)] - prompt.first).tolist()

    return Selector(of_prompt, chosen=chosen if is_found else None)


def _occurrences(text: str, wanted: str) -> list[tuple[int, int]]:
    """Return the spans of a text in another, including overlapping ones."""
    starts = (match.start() for match in re.finditer(f"(?={re.escape(wanted)})", text))
    return [(start, start + len(wanted)) for start in starts]


def _substring(argument: str | None, options: Sequence[str]) -> Selector:
    if not argument:
        raise ValueError("needs a text: substring:TEXT")
    places = _Places.parse(options)
    return _of_text(lambda prompt: _occurrences(_text_of(prompt), argument), places)


def _entity(argument: str | None, options: Sequence[str]) -> Selector:
    if argument is not None:
        raise ValueError("takes no text after a colon: its text is the field `entity` of each task")
    places = _Places.parse(options)

    def spans(prompt: PromptTokens) -> list[tuple[int, int]]:
        if not prompt.entity:
            raise InputError(
                f"task {prompt.task_id!r} has no field `entity` (a text), which"
                f" {setting('positions', 'entity')} needs"
            )
        return _occurrences(_text_of(prompt), prompt.entity)

    return _of_text(spans, places)


def _regex(argument: str | None, options: Sequence[str]) -> Selector:
    if not argument:
        raise ValueError("needs an expression: regex:[0-9]+")
    places = _Places.parse(options)
    try:
        expression = re.compile(argument)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return _of_text(
        lambda prompt: [
            match.span() for match in expression.finditer(_text_of(prompt)) if match.group()
        ],
        places,
    )


def _role(argument: str | None, options: Sequence[str]) -> Selector:
    if not argument:
        raise ValueError("needs a role: role:assistant")
    places = _Places.parse(options)

    def spans(prompt: PromptTokens) -> list[tuple[int, int]]:
        if prompt.chat is None:
            raise InputError(
                f"task {prompt.task_id!r} is no chat, which"
                f" {setting('positions', f'role:{argument}')} needs"
            )
        found = []
        for number, span in prompt.chat.contents.items():
            if prompt.chat.role(number) != argument:
                continue
            if span is None:
                raise InputError(
                    f"task {prompt.task_id!r}: the chat template rewrites the content of message"
                    f" {number} ({argument}), so {setting('positions', f'role:{argument}')} cannot"
                    " find its tokens"
                )
            if span[0] < span[1]:
                found.append(span)
        return sorted(found)

    return _of_text(spans, places, is_found=False)


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
"""Function of each selector; a new selector is a function and a line in this table."""

KNOWN = (
    "last, last:K, all, first, every:N, prompt, generated, generated:A:B, substring:TEXT, entity,"
    " regex:EXPRESSION, role:ROLE, tokens:ID,ID, special, random:N, or 'not' before one of them"
)
