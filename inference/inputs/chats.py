"""Chats rendered by the tokenizer's template, and the span of each message in the text.

The spans come from the template and not from a search for the content. The chat is rendered again
with a mark, a character that it does not hold, at each end of a content; the marks in the result
are the ends of the span. If a mark is missing or other text differs, the template trims the
content, drops the thinking in it, or rewrites it. So a content may be any text: empty, the name of
a role, the template's own markers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from extraction.setting_names import setting
from inference.errors import InputError
from inference.inputs.prompt_forms import Message
from inference.inputs.time_limit import time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RENDERING_SECONDS = 10.0
"""Most seconds for rendering a chat; a template is a program of the checkpoint's author."""

Span = tuple[int, int]

MARKS = range(0xF0000, 0x10FFFE)
"""Code points of private-use characters, used as marks."""

REACH = 256
"""Most characters that a template may change at either end of a content, such as spaces."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """The messages of a chat, and the tools that the template describes to the model."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderedChat:
    """A chat's text, and the spans of its messages' contents in it.

    Attributes:
        task_id: id of the task, for messages.
        chat: the chat.
        tokenizer: tokenizer with the template.
        add_generation_prompt: whether the text ends where an answer begins.
    """

    task_id: str
    chat: Chat
    tokenizer: PreTrainedTokenizerBase
    add_generation_prompt: bool = False

    @functools.cached_property
    def text(self) -> str:
        """The text that the template makes of the chat.

        Raises:
            InputError: the tokenizer has no template, or the template fails.
        """
        if not self.tokenizer.chat_template:
            raise InputError(
                f"task {self.task_id!r} is a chat, but the tokenizer has no chat template; use"
                f" another tokenizer, or for ARC tasks {setting('prompt_style', 'plain')}"
            )
        return self._render(self.chat.messages)

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            with time_limit(RENDERING_SECONDS):
                text = self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=self.chat.tools and list(self.chat.tools),  # pyright: ignore
                    tokenize=False,
                    add_generation_prompt=self.add_generation_prompt,
                )
        except Exception as error:  # a template is a program of the checkpoint's
            raise InputError(
                f"task {self.task_id!r}: the tokenizer's chat template fails: {error}"
            ) from None
        assert isinstance(text, str)
        return text

    @functools.cached_property
    def contents(self) -> Mapping[int, Span | None]:
        """The span in `text` of each message that has a content.

        A content that the template leaves out has the span `(n, n)`. A content that the template
        rewrites has None.
        """
        spans = self._locate([n for n, m in enumerate(self.chat.messages) if m.get("content")])
        unknown = [n for n, span in spans.items() if span is None]
        if any(self.role(n) == "assistant" for n in unknown):
            spans |= {n: span for n, span in self._generations().items() if n in unknown}
        return spans

    def role(self, number: int) -> str:
        """Return the role of a message."""
        return self.chat.messages[number]["role"]

    def message_at(self, start: int, stop: int) -> int | None:
        """Return the number of the message whose content overlaps `text[start:stop]`, if any."""
        for number, span in self.contents.items():
            if span is not None and span[0] < stop and start < span[1]:
                return number
        return None

    def _locate(self, numbers: Sequence[int]) -> dict[int, Span | None]:
        """Return the spans of some messages' contents: all in one rendering, else by halves."""
        if not numbers:
            return {}
        together = self._between_marks(numbers)
        if together is not None:
            return together
        if len(numbers) == 1:
            return {numbers[0]: self._changed_content(numbers[0])}
        half = len(numbers) // 2
        return self._locate(numbers[:half]) | self._locate(numbers[half:])

    def _between_marks(self, numbers: Sequence[int]) -> dict[int, Span | None] | None:
        """Return the spans of whole contents; None if the template changes a content."""
        marks = list(itertools.islice(self._marks(), 2 * len(numbers)))
        contents = {
            number: marks[2 * i] + self.chat.messages[number]["content"] + marks[2 * i + 1]
            for i, number in enumerate(numbers)
        }
        places = self._places(contents, marks)
        if places is None or len(places) < len(marks):
            return None
        spans = {n: (places[marks[2 * i]], places[marks[2 * i + 1]]) for i, n in enumerate(numbers)}
        if any(self.text[a:b] != self.chat.messages[n]["content"] for n, (a, b) in spans.items()):
            return None
        return dict(spans)

    def _marks(self) -> Iterator[str]:
        return (mark for mark in map(chr, MARKS) if mark not in self._characters)

    @functools.cached_property
    def _characters(self) -> frozenset[str]:
        """Return all characters of the text and the contents."""
        contents = (message.get("content") or "" for message in self.chat.messages)
        return frozenset(itertools.chain(self.text, *contents))

    def _places(self, contents: Mapping[int, str], marks: Sequence[str]) -> dict[str, int] | None:
        """Return the offset in `text` of each mark that is inserted into a content.

        A mark that the template leaves out is missing from the result. The result is None if a mark
        appears twice, or if the text without the marks differs from `text`.
        """
        messages = [
            message | {"content": contents[n]} if n in contents else message
            for n, message in enumerate(self.chat.messages)
        ]
        try:
            marked = self._render(messages)
        except InputError:  # a template that looks into contents
            return None
        parts = re.split(f"([{''.join(marks)}])", marked)  # text, mark, text, ..., text
        found, plain = parts[1::2], parts[::2]
        if "".join(plain) != self.text or len(set(found)) < len(found):
            return None
        return dict(zip(found, itertools.accumulate(map(len, plain)), strict=False))

    def _changed_content(self, number: int) -> Span | None:
        """Return the span of a content that the template changes."""
        content, mark = self.chat.messages[number]["content"], next(self._marks())

        @functools.cache
        def place(at: int) -> int | str | None:
            """Return the offset of the content's character `at`, LEFT_OUT, or None: not known."""
            places = self._places({number: content[:at] + mark + content[at:]}, [mark])
            return places if places is None else places.get(mark, LEFT_OUT)

        ends = range(len(content) + 1)
        first, last = _first_known(place, ends), _first_known(place, ends[::-1])
        if first is None or last is None:
            left_out = all(place(at) == LEFT_OUT for at in (0, len(content)))
            return (0, 0) if left_out else None
        (a, start), (b, stop) = first, last
        if start >= stop:  # the content is spaces, which are trimmed from either side
            return start, start
        if self.text[start:stop] != content[a:b]:
            return None
        # A mark before `<think>` is left out, even if the template keeps the thinking.
        if place(0) == LEFT_OUT and a <= start and self.text[start - a : start] == content[:a]:
            start -= a
        if place(len(content)) == LEFT_OUT and self.text.startswith(content[b:], stop):
            stop += len(content) - b
        return start, stop

    def _generations(self) -> dict[int, Span]:
        """Return the spans of answers within the template's `{% generation %}` markers, if any."""
        template = self.tokenizer.get_chat_template(tools=self.chat.tools)  # pyright: ignore
        if not GENERATION.search(template) or not self.tokenizer.is_fast:
            return {}
        answers = [n for n in range(len(self.chat.messages)) if self.role(n) == "assistant"]
        found: Any = self.tokenizer.apply_chat_template(
            list(self.chat.messages),
            tools=self.chat.tools and list(self.chat.tools),  # pyright: ignore[reportArgumentType]
            add_generation_prompt=self.add_generation_prompt,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        offsets = list(zip(found["assistant_masks"], found["offset_mapping"], strict=True))
        runs = [
            [span for _, span in run]
            for inside, run in itertools.groupby(offsets, key=lambda pair: pair[0])
            if inside
        ]
        if len(runs) != len(answers):
            return {}
        return {n: (run[0][0], run[-1][1]) for n, run in zip(answers, runs, strict=True)}


LEFT_OUT = "left out"


def _first_known(place: Any, ends: range) -> tuple[int, int] | None:
    """Return the first character from an end whose offset is known, and the offset."""
    skipped = 0
    if place(ends[0]) == LEFT_OUT:
        skipped = bisect_left(ends, True, key=lambda at: place(at) != LEFT_OUT)
    for at in ends[skipped : skipped + REACH]:
        found = place(at)
        if isinstance(found, int):
            return at, found
    return None
