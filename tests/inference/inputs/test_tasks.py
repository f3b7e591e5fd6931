"""Each form of a tasks file is read, and everything else is refused with a reason and a place."""

import json

import pytest

from inference.errors import InputError
from inference.inputs.arc import ArcTask
from inference.inputs.tasks import PromptTask, read_tasks

PAIR = {"input": [[0, 1], [2, 3]], "output": [[9]]}
ARC = {"train": [PAIR], "test": [PAIR, {"input": [[4, 5]]}]}
ENTRIES = [
    {"task_id": "a", "prompt": "zwölf\n🙂", "label": {"city": [1, None]}, "type": "LOC"},
    {"task_id": 7, "messages": [{"role": "user", "content": "hi"}]},
    {"task_id": "b", "token_ids": [1, 2, 2]},
]
TASKS = [
    PromptTask(
        task_id="a", prompt="zwölf\n🙂", extra={"label": {"city": [1, None]}, "type": "LOC"}
    ),
    PromptTask(task_id="7", messages=[{"role": "user", "content": "hi"}]),
    PromptTask(task_id="b", token_ids=(1, 2, 2)),
]


def lines(entries, end="\n"):
    return "".join(json.dumps(entry, ensure_ascii=False) + end for entry in entries)


def entry(**fields):
    return {"task_id": "a", **fields}


def refusal(path, *words):
    """The message of the refusal: one line of bearable length that holds the words."""
    with pytest.raises(InputError) as refused:
        read_tasks(path)
    message = str(refused.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert len(message.replace(path, "")) < 300
    return message


def arc_task(task_id):
    pair = (((0, 1), (2, 3)), ((9,),))
    return ArcTask(
        task_id=task_id,
        train=(pair,),
        test_inputs=(pair[0], ((4, 5),)),
        test_outputs=(((9,),), None),
    )


def test_arc_file_keeps_its_order(write_tasks):
    assert read_tasks(write_tasks({"z": ARC, "a": ARC})) == [arc_task("z"), arc_task("a")]


def test_file_with_one_arc_task_is_named_after_it(write_tasks):
    assert read_tasks(write_tasks(ARC, "007bbfb7.json")) == [arc_task("007bbfb7")]


def test_folder_goes_by_file_name(write_tasks, tmp_path):
    write_tasks(ARC, "folder/c.json")
    write_tasks({"x": ARC, "w": ARC}, "folder/b.json")
    write_tasks("not a tasks file", "folder/README.md")
    assert [task.task_id for task in read_tasks(str(tmp_path / "folder"))] == ["x", "w", "c"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (json.dumps(ENTRIES), "list.json"),
        (json.dumps(ENTRIES, indent=2), "indented.json"),
        (lines(ENTRIES), "lines.jsonl"),
        (lines(ENTRIES), "lines.json"),
        (lines(ENTRIES).rstrip(), "no_final_line_break.jsonl"),
        (lines(ENTRIES, "\r\n"), "windows.json"),
        ("\n \n" + lines(ENTRIES, "\n\n"), "blank_lines.json"),
        ("\ufeff" + lines(ENTRIES), "byte_order_mark.jsonl"),
        ("\ufeff" + json.dumps(ENTRIES), "byte_order_mark.json"),
    ],
)
def test_list_and_lines_give_the_same_tasks(write_tasks, content, name):
    assert read_tasks(write_tasks(content, name)) == TASKS


@pytest.mark.parametrize("name", ["one.json", "one.jsonl"])
def test_a_single_line_is_enough(write_tasks, name):
    assert read_tasks(write_tasks(lines(ENTRIES[:1]), name)) == TASKS[:1]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_line_feeds_end_a_line(write_tasks, separator):
    entries = [entry(prompt=f"x{separator}y"), {"task_id": "b", "prompt": "z"}]
    wanted = [PromptTask(**fields) for fields in entries]
    assert read_tasks(write_tasks(lines(entries))) == wanted


@pytest.mark.parametrize(
    "task_id",
    ["gsm8k/train/17", "🙂", "%2F", "a..b", "...", "with space", "zwölf", "-1", "x" * 512],
)
def test_ids_are_free_text(write_tasks, task_id):
    for content in ([entry(prompt="") | {"task_id": task_id}], {task_id: ARC}):
        assert [task.task_id for task in read_tasks(write_tasks(content))] == [task_id]


@pytest.mark.parametrize(
    ("task_id", "reason"),
    [
        ("", "is empty"),
        ("../../etc/passwd", "path"),
        ("a/../b", "path"),
        ("..", "path"),
        ("a\\..\\b", "path"),
        ("/abs", "path"),
        ("\\\\server\\share", "path"),
        ("~x", "path"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("\u202egpj.exe", "control characters"),
        ("\ud800", "surrogate"),
        ("x" * 513, "512 bytes"),
        ("ü" * 300, "512 bytes"),
        ("x" * 10_000, "512 bytes"),
    ],
)
def test_hostile_ids_are_refused(write_tasks, task_id, reason):
    refusal(write_tasks([{"task_id": task_id, "prompt": "x"}]), "tasks.json", reason)
    refusal(write_tasks({task_id: ARC}), "tasks.json", reason)


@pytest.mark.parametrize("path", ["missing.json", "x" * 300, "~nosuchuser/tasks.json"])
def test_no_such_file(path):
    refusal(path, "tasks_file=", path)


def test_folder_without_tasks(tmp_path):
    refusal(str(tmp_path), "no .json file")


@pytest.mark.parametrize(
    ("content", "word"),
    [("", "empty"), (" \n\n", "empty"), ("\ufeff", "empty"), ("[]", "no task"), ("{}", "no task")],
)
@pytest.mark.parametrize("name", ["tasks.json", "tasks.jsonl"])
def test_nothing_in_it(write_tasks, content, word, name):
    if name == "tasks.jsonl" and word == "no task":
        word = "line 1"  # where it is an entry of its own, and a wrong one
    refusal(write_tasks(content, name), name, word)


@pytest.mark.parametrize("content", ["7", '"text"', "null", "true"])
def test_neither_object_nor_list(write_tasks, content):
    refusal(write_tasks(content), "tasks.json", "object")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("list.json", "", "oops"),
        ("list.json", "\ufeff[", "oops]"),
        ("list.json", '[\n  {"task_id": "a" ', '"prompt": "x"}]'),
        ("arc.json", '{"a": {"train": [],\n\n "test": ', "oops}}"),
        ("lines.json", lines(ENTRIES) + '{"task_id": "c", "prompt": ', "oops}\n" + lines(ENTRIES)),
        ("lines.jsonl", "\n\n" + lines(ENTRIES[:1]) + "\n", "oops\n"),
        ("lines.jsonl", "\ufeff", "oops"),
    ],
)
def test_not_json_is_refused_with_its_place(write_tasks, name, good, bad):
    before = good.removeprefix("\ufeff")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    refusal(write_tasks(good + bad, name), name, "not JSON", f"line {line}, column {column}")


def test_not_utf_8(write_tasks):
    content = b'[{"task_id": "a", "prompt": "\xff"}]'
    refusal(write_tasks(content), "UTF-8", f"byte {content.index(0xFF)}")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have(write_tasks, number):
    # outputs.jsonl, which takes over such a field, could not be read by other languages.
    text = f'{{"task_id": "b", "prompt": "x", "weight": {number}}}'
    refusal(write_tasks(f"[{text}]"), "tasks.json", "JSON")


def test_line_of_what_parses_but_is_no_json(write_tasks):
    first = lines(ENTRIES[:1])
    refusal(write_tasks(first + '{"task_id": "b", "prompt": NaN}'), "NaN", "line 2")
    text = '{"task_id": "b", "prompt": "x", "prompt": "y"}'
    refusal(write_tasks(first + text), "'prompt'", "twice", "line 2")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000])
@pytest.mark.parametrize("name", ["tasks.json", "tasks.jsonl"])
def test_endless_nesting(write_tasks, text, name):
    refusal(write_tasks(text, name), name, "nested")


@pytest.mark.parametrize("name", ["tasks.json", "tasks.jsonl"])
def test_endless_number(write_tasks, name):
    refusal(write_tasks(f'{{"task_id": "a", "token_ids": [{"1" * 5000}]}}', name), name)


@pytest.mark.parametrize("ids", [("a", "a"), (1, "1")])
def test_id_twice_in_a_file(write_tasks, ids):
    refusal(write_tasks([{"task_id": i, "prompt": "x"} for i in ids]), repr(str(ids[0])), "twice")


def test_id_twice_in_a_folder(write_tasks, tmp_path):
    write_tasks(ARC, "folder/a.json")
    write_tasks({"b": ARC, "a": ARC}, "folder/b.json")
    refusal(str(tmp_path / "folder"), "a.json", "b.json", "'a'", "twice")


def test_key_twice_in_an_object(write_tasks):
    task = json.dumps(ARC)
    refusal(write_tasks(f'{{"a": {task}, "b": {task}, "a": {task}}}'), "'a'", "twice")
    refusal(write_tasks('[{"task_id": "b", "prompt": "x", "prompt": "y"}]'), "'prompt'", "twice")


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, "none"),
        ({"prompt": "x", "token_ids": [1]}, "prompt and token_ids"),
        ({"messages": [{"role": "user", "content": "x"}], "prompt": None}, "prompt and messages"),
    ],
)
def test_exactly_one_prompt(write_tasks, fields, found):
    refusal(write_tasks([ENTRIES[0] | {"task_id": "z"}, entry(**fields)]), "entry 2", "'a'", found)


@pytest.mark.parametrize("task_id", [None, True, 1.5, ["a"], {}])
def test_id_of_wrong_type(write_tasks, task_id):
    refusal(write_tasks([{"task_id": task_id, "prompt": "x"}]), "entry 1", "task_id", repr(task_id))


def test_entry_of_wrong_type(write_tasks):
    refusal(write_tasks([ENTRIES[0], "text"]), "entry 2", "object", "'text'")
    refusal(write_tasks(lines(ENTRIES) + "[]", "tasks.jsonl"), "line 4", "object")
    refusal(write_tasks([{"prompt": "x"}]), "entry 1", "task_id")


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("prompt", 5),
        ("prompt", None),
        ("messages", "text"),
        ("messages", []),
        ("messages", ["text"]),
        ("messages", [{"content": "x"}]),
        ("messages", [{"role": 1, "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "assistant", "content": None}]),
        ("messages", [{"role": "assistant", "content": None, "tool_calls": []}]),
        ("messages", [{"role": "assistant", "content": None, "tool_calls": "call"}]),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "x"}]}]),
        ("messages", [{"role": "tool", "content": "x", "name": ["a"]}]),
        ("token_ids", "12"),
        ("token_ids", [1.0]),
        ("token_ids", [True]),
        ("token_ids", ["1"]),
    ],
)
def test_prompt_of_wrong_type(write_tasks, form, value):
    refusal(write_tasks([entry(**{form: value})]), "entry 1", "'a'", form, "must be")


def test_tools_are_part_of_a_chat(write_tasks):
    messages = [
        {"role": "user", "content": "x", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
    ]
    (task,) = read_tasks(write_tasks([entry(messages=messages, tools=[{"a": None}], label=1)]))
    assert task.messages == [{"role": "user", "content": "x"}, messages[1], messages[1]]
    assert (task.tools, task.extra) == ([{"a": None}], {"label": 1})
    (task,) = read_tasks(write_tasks([entry(prompt="x", tools=["of the user"])]))
    assert (task.tools, task.extra) == (None, {"tools": ["of the user"]})
    refusal(write_tasks([entry(messages=messages, tools=["f"])]), "'a'", "tools must be")


@pytest.mark.parametrize(
    "name",
    ["sample_idx", "prompt_token_ids", "generated_token_ids", "text", "finish_reason", "reason"],
)
def test_extra_field_must_not_hide_an_output_field(write_tasks, name):
    refusal(write_tasks([entry(prompt="x", **{name: 1})]), "entry 1", "'a'", repr(name), "rename")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "\ud800"},
        {"messages": [{"role": "user", "content": "\udfff"}]},
        {"prompt": "x", "label": ["\ud800"]},
        {"prompt": "x", "\ud800": 1},
    ],
)
def test_text_that_no_file_can_store(write_tasks, fields):
    refusal(write_tasks([entry(**fields)]), "entry 1", "'a'", "surrogate")


@pytest.mark.parametrize(
    ("task", "place"),
    [
        (5, '"train" and "test"'),
        ({"test": [PAIR]}, '"train" and "test"'),
        ({"train": [PAIR]}, '"train" and "test"'),
        ({"train": [PAIR], "test": []}, "no test input"),
        ({"train": [PAIR], "test": {}}, "test must be a list"),
        ({"train": "x", "test": [PAIR]}, "train must be a list"),
        ({"train": [PAIR], "test": [PAIR, {"output": [[1]]}]}, "test 1: there is no input grid"),
        ({"train": [PAIR], "test": [7]}, "test 0: there is no input grid"),
        ({"train": [PAIR, {"input": [[1]]}], "test": [PAIR]}, "train pair 1: there is no output"),
        ({"train": [PAIR], "test": [{"input": [[1]], "output": [[1], []]}]}, "test 0: output must"),
    ],
)
def test_arc_task_with_a_fault(write_tasks, task, place):
    refusal(write_tasks({"good": ARC, "bad": task}), "tasks.json", "'bad'", place)


@pytest.mark.parametrize(
    "grid",
    [[[1, 2], [3]], [[10]], [[-1]], [[True]], [[1.0]], [["1"]], [], [[]], [1, 2], "12", {"0": [1]}],
)
def test_what_is_no_grid(write_tasks, grid):
    task = {"train": [PAIR, {"input": grid, "output": [[1]]}], "test": [PAIR]}
    refusal(write_tasks({"bad": task}), "'bad'", "train pair 1", "rectangle", "0 to 9")
