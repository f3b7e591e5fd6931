"""The forms of a prompt in any input: a text, a chat, or token ids.

Tasks files, data sets and `capture` all read prompts here, so they accept the same chats and render
them alike.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from inference.errors import InputError

Message = dict[str, Any]
"""`{"role", "content"}` and other fields that the chat template reads: `name`, `tool_calls`, ..."""


def read_prompt(where: str, value: Any) -> dict[str, Any]:
    """Return a prompt under its form's name: `prompt`, `messages` or `token_ids`.

    Args:
        where: place of the prompt, such as "task 'a'", for messages.
        value: a text, a chat (list of messages) or token ids.

    Raises:
        InputError: the value is none of the three, or an invalid one.
    """
    if isinstance(value, str):
        return {"prompt": read_text(where, value)}
    if isinstance(value, Sequence) and any(isinstance(part, Mapping) for part in value):
        return {"messages": read_messages(where, value)}
    ids = token_ids_of(value)
    if ids is None:
        raise InputError(
            f"{where} must be a text, a chat (a list of messages) or token ids (whole numbers),"
            f" not {type(value).__name__} {value!r:.60}"
        )
    return {"token_ids": ids}


def read_text(where: str, value: Any) -> str:
    """Return a value that is a text.

    Raises:
        InputError: it is no text, or a text that no file can hold.
    """
    if not isinstance(value, str):
        raise InputError(f"{where} must be a text, not {value!r:.40}")
    refuse_surrogates(where, value)
    return str.__str__(value)  # the characters, also of a subclass with another __str__


def read_messages(where: str, value: Any) -> list[Message]:
    """Return the messages of a chat, with all fields that the template may read.

    A null field counts as missing, except `content`, which may be null in a message with
    `tool_calls`.

    Raises:
        InputError: the value is no chat.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise InputError(f'{where} must be a list of {{"role", "content"}}, not {value!r:.40}')
    return [_message(f"{where}: message {number}", each) for number, each in enumerate(value)]


def _message(where: str, value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise InputError(f'{where} must be an object {{"role", "content"}}, not {value!r:.40}')
    message = {name: part for name, part in value.items() if part is not None or name == "content"}
    if "content" not in message:  # Arrow's nulls are left out; a template may print fields in order
        message = {"role": message.get("role"), "content": None} | message
    if not isinstance(message.get("role"), str):
        raise InputError(f"{where}: role must be a text, not {message.get('role')!r:.40}")
    calls = message.get("tool_calls")
    if calls is not None and not _are_objects(calls):
        raise InputError(f"{where}: tool_calls must be a list of objects, not {calls!r:.40}")
    if not isinstance(message.get("name", ""), str):
        raise InputError(f"{where}: name must be a text, not {message['name']!r:.40}")
    content = message["content"]
    if not isinstance(content, str) and (content is not None or not calls):
        raise InputError(
            f"{where}: content must be a text, or null beside tool_calls, not {content!r:.40}"
        )
    _refuse_what_json_cannot_hold(where, message)
    return message


def read_tools(where: str, value: Any) -> list[dict[str, Any]] | None:
    """Return the tools of a chat, as JSON schemas; None if there are none.

    Raises:
        InputError: the value is no list of JSON schemas.
    """
    if value is None:
        return None
    if not _are_objects(value):
        raise InputError(f"{where} must be a list of JSON schemas (objects), not {value!r:.40}")
    _refuse_what_json_cannot_hold(where, value)
    return [dict(tool) for tool in value] or None


def _are_objects(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(part, Mapping) for part in value)


def _refuse_what_json_cannot_hold(where: str, value: Any) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} holds what JSON cannot: {error}") from None
    refuse_surrogates(where, text)


def refuse_surrogates(where: str, text: str) -> None:
    """Check that a file can hold a text.

    Raises:
        InputError: the text holds half of a surrogate pair.
    """
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise InputError(f"{where} holds half of a surrogate pair, which no file can store")


def token_ids_of(value: Any) -> tuple[int, ...] | None:
    """Return a value as token ids; None if it is not a list or array of whole numbers.

    Truth values do not count as numbers. Bytes and sets do not count as lists.
    """
    if hasattr(value, "__array__"):  # of numpy, jax or torch
        array = np.asarray(value)
        is_whole = array.dtype.kind in "iu" or not array.size
        return tuple(array.tolist()) if array.ndim == 1 and is_whole else None
    if not isinstance(value, Iterable) or isinstance(
        value, str | bytes | bytearray | memoryview | Mapping | Set
    ):
        return None
    parts = list(value)
    return tuple(map(int, parts)) if all(map(_is_whole_number, parts)) else None


def _is_whole_number(value: Any) -> bool:
    if type(value) is int:
        return True
    is_number = isinstance(value, int | np.number) or hasattr(value, "__array__")
    return is_number and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iu"


def without_arrow_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without the null fields that Arrow adds to objects.

    Arrow stores a list of objects as columns, so each object gets the fields of all of them, with
    null where it had no such field. A chat template would print these nulls. Nulls that were in the
    data are removed too.
    """
    return {name: _without_nulls(part) for name, part in record.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if _may_hold_objects(value) else value


def _may_hold_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping | list)
