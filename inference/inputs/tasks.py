"""Tasks files: their forms, and the checks that they pass.

    ARC         {task_id: {"train": [...], "test": [...]}}; or one such task, whose id is the name
                of the file; or a folder of such files
    JSON list   [{"task_id": ..., "prompt": ...}, ...]
    JSON Lines  the same objects, one in each line

A prompt is a text (`prompt`), a chat (`messages` and perhaps `tools`, rendered by the tokenizer's
template) or token ids (`token_ids`). Other fields of a task are copied to its output line.
"""

import dataclasses
import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from inference.errors import InputError
from inference.inputs.arc import ArcTask
from inference.inputs.arc_grids import Grid, is_grid
from inference.inputs.files import InputFile, read_input_files
from inference.inputs.prompt_forms import (
    Message,
    read_messages,
    read_text,
    read_tools,
    refuse_surrogates,
    token_ids_of,
)
from inference.outputs import OUTPUT_FIELDS

MAX_TASK_ID_BYTES = 512
MAX_DIGITS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTask:
    """A task with one prompt; exactly one of the three forms is given.

    Attributes:
        task_id: id of the task.
        prompt: a text.
        messages: a chat, `[{"role": ..., "content": ...}, ...]`.
        tools: JSON schemas of the chat's tools.
        token_ids: a prompt that is tokenised already.
        extra: other fields of the task.
    """

    task_id: str
    prompt: str | None = None
    messages: Sequence[Message] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    token_ids: tuple[int, ...] | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Task = ArcTask | PromptTask


def read_tasks(tasks_file: str) -> list[Task]:
    """Return the tasks of a file or folder, local or in a bucket; a folder's files by name.

    Raises:
        InputError: there is no such file, it has no task, or a task is wrong; the message names the
            place.
        StoreError: the bucket cannot be used.
    """
    tasks: list[Task] = []
    sources: dict[str, InputFile] = {}
    for file in read_input_files("tasks_file", tasks_file, ".json"):
        for task in _read_file(file):
            check_task_id(file, task.task_id)
            if task.task_id in sources:
                places = " and ".join(sorted({str(sources[task.task_id]), str(file)}))
                raise InputError(f"{places}: task id {task.task_id!r} appears twice")
            sources[task.task_id] = file
            tasks.append(task)
    if not tasks:
        raise InputError(f"{tasks_file} holds no task")
    return tasks


def tasks_digest(tasks_file: str) -> str:
    """Return the sha256 over names and contents of the files that the tasks are read from."""
    digest = hashlib.sha256()
    for file in read_input_files("tasks_file", tasks_file, ".json"):
        content = hashlib.sha256(file.data).hexdigest()
        digest.update(json.dumps([file.name, content]).encode())
    return digest.hexdigest()


def _read_file(file: InputFile) -> Iterator[Task]:
    try:
        text = file.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise InputError(f"{file} is empty")
    document = None if _is_json_lines(file, text) else parse_json(file, text)
    if document is None:
        yield from _read_json_lines(file, text)
    elif isinstance(document, list):
        for number, entry in enumerate(document, start=1):
            yield _prompt_task(f"{file}, entry {number}", entry)
    elif isinstance(document, dict) and {"train", "test"} & document.keys():
        yield _arc_task(file, file.stem, document)
    elif isinstance(document, dict):
        for task_id, content in document.items():
            yield _arc_task(file, task_id, content)
    else:
        raise InputError(f"{file} must hold a JSON object or list, not {document!r:.40}")


def _is_json_lines(file: InputFile, text: str) -> bool:
    """Return whether a file is JSON Lines: by name, or if its first line alone is a task."""
    if file.suffix == ".jsonl":
        return True
    if not text.lstrip().startswith("{"):
        return False
    try:
        first = json.loads(text.strip().split("\n", 1)[0])  # splitlines cuts inside of texts
    except (ValueError, RecursionError):
        return False
    return isinstance(first.get("task_id"), str | int)


def _read_json_lines(file: InputFile, text: str) -> Iterator[Task]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            entry = parse_json(file, line, line_number=number)
            yield _prompt_task(f"{file}, line {number}", entry)


def parse_json(file: InputFile, text: str, line_number: int | None = None) -> Any:
    """Parse a file, or one line of it, strictly.

    Raises:
        InputError: the text is no JSON, or JSON that parsers read differently: NaN, huge numbers,
            repeated keys.
    """
    where = str(file) if line_number is None else f"{file}, line {line_number}"

    def refuse_constant(name: str) -> None:
        raise InputError(f"{where} holds {name}, which is not JSON")

    def finite(text: str) -> float:
        if not math.isfinite(float(text)):
            raise InputError(f"{where} holds {text:.40}, which is beyond JSON's usual numbers")
        return float(text)

    def whole(text: str) -> int:
        if len(text) > MAX_DIGITS:
            raise InputError(
                f"{where} holds a number of {len(text)} digits; at most {MAX_DIGITS} are allowed"
            )
        return int(text)

    def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{where}: key {twice!r} appears twice in one object")
        return result

    try:
        return json.loads(
            text,
            parse_constant=refuse_constant,
            parse_float=finite,
            parse_int=whole,
            object_pairs_hook=refuse_repeated_keys,
        )
    except json.JSONDecodeError as error:
        at = f"line {error.lineno + (line_number or 1) - 1}, column {error.colno}"
        raise InputError(f"{file} is not JSON: {error.msg} at {at}") from None
    except RecursionError:
        raise InputError(f"{where} is nested too deeply") from None


def check_task_id(where: object, task_id: str) -> None:
    """Refuse a task id that would be harmful as part of a path; our own paths hold no task ids.

    Args:
        where: place of the task, for the message.
        task_id: the task id.

    Raises:
        InputError: the id is empty, too long, looks like a path, or holds control characters.
    """
    reason = None
    if not task_id:
        reason = "is empty"
    elif any(0xD800 <= ord(c) <= 0xDFFF for c in task_id):
        reason = "holds half of a surrogate pair, which no file can store"
    elif any(_is_control(c) for c in task_id):
        reason = "holds control characters, line breaks or direction marks"
    elif len(task_id.encode()) > MAX_TASK_ID_BYTES:
        reason = f"is longer than {MAX_TASK_ID_BYTES} bytes"
    elif task_id.startswith(("/", "~", "\\")) or ".." in task_id.replace("\\", "/").split("/"):
        reason = "looks like a path out of the folder"
    if reason:
        raise InputError(f"{where}: task id {task_id!r:.80} {reason}")


def _is_control(character: str) -> bool:
    direction_marks = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return (
        unicodedata.category(character) in ("Cc", "Zl", "Zp")
        or unicodedata.bidirectional(character) in direction_marks
    )


def _prompt_task(where: str, entry: Any) -> PromptTask:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: a task is an object, not {entry!r:.40}")
    task_id = entry.get("task_id")
    if isinstance(task_id, bool) or not isinstance(task_id, str | int):
        raise InputError(f"{where}: task_id must be a text or a whole number, not {task_id!r:.40}")
    where, task_id = f"{where}, task {task_id!r}", str(task_id)
    return read_entry(where, task_id, {n: v for n, v in entry.items() if n != "task_id"})


def read_entry(where: str, task_id: str, entry: Mapping[str, Any]) -> PromptTask:
    """Return the task of an object with one of `PROMPT_FIELDS`.

    Args:
        where: place of the task, for messages.
        task_id: id of the task.
        entry: the task's other fields.

    Raises:
        InputError: there is no prompt, it is wrong, or a field has the name of an output field.
    """
    given = [name for name in PROMPT_FIELDS if name in entry]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise InputError(
            f"{where}: exactly one of {', '.join(PROMPT_FIELDS)} is needed, found {found}"
        )
    (form,) = given
    prompt = {form: READERS[form](f"{where}: {form}", entry[form])}
    if form == "messages":
        prompt["tools"] = read_tools(f"{where}: tools", entry.get("tools"))
    extra = {name: value for name, value in entry.items() if name not in prompt}
    taken = sorted(extra.keys() & OUTPUT_FIELDS)
    if taken:
        raise InputError(
            f"{where}: the field {taken[0]!r} would collide with the same field of outputs.jsonl;"
            " rename it"
        )
    for name, content in extra.items():
        refuse_surrogates(
            f"{where}: the field {name!r}", json.dumps([name, content], ensure_ascii=False)
        )
    return PromptTask(task_id=task_id, extra=extra, **prompt)


def _token_ids(where: str, value: Any) -> tuple[int, ...]:
    ids = token_ids_of(value)
    if ids is None:
        raise InputError(f"{where} must be a list of whole numbers, not {value!r:.40}")
    return ids


READERS: dict[str, Callable[[str, Any], Any]] = {
    "prompt": read_text,
    "messages": read_messages,
    "token_ids": _token_ids,
}
"""Function that reads each form of a prompt."""

PROMPT_FIELDS = tuple(READERS)


def _arc_task(file: InputFile, task_id: str, content: Any) -> ArcTask:
    where = f"{file}, task {task_id!r}"
    if not isinstance(content, dict) or not {"train", "test"} <= content.keys():
        raise InputError(f'{where}: an ARC task is an object with "train" and "test"')
    train = []
    for i, pair in enumerate(_list(content["train"], f"{where}: train")):
        at = f"{where}, train pair {i}"
        train.append((_grid(pair, "input", at), _grid(pair, "output", at)))
    test = _list(content["test"], f"{where}: test")
    if not test:
        raise InputError(f"{where}: there is no test input")
    return ArcTask(
        task_id=task_id,
        train=tuple(train),
        test_inputs=tuple(_grid(t, "input", f"{where}, test {i}") for i, t in enumerate(test)),
        test_outputs=tuple(
            _grid(t, "output", f"{where}, test {i}") if "output" in t else None
            for i, t in enumerate(test)
        ),
    )


def _list(value: Any, where: str) -> list:
    if not isinstance(value, list):
        raise InputError(f"{where} must be a list, not {value!r:.40}")
    return value


def _grid(pair: Any, key: str, where: str) -> Grid:
    grid = pair.get(key) if isinstance(pair, dict) else None
    if grid is None:
        raise InputError(f"{where}: there is no {key} grid")
    if not is_grid(grid):
        raise InputError(f"{where}: {key} must be a rectangle of colours 0 to 9")
    return tuple(tuple(row) for row in grid)
