"""Inputs that somebody else wrote: memory and time follow their sizes, whatever they claim.

Each runs in a process of its own under limits. The marks name what is open (see SECURITY.md); one
that is mended fails here until its mark is gone.
"""

import dataclasses
import json

import pytest

from extraction.run.records import CommittedFile
from tests.bounded_child import run_bounded
from tests.extraction.hostile_runs import written
from tests.extraction.written_runs import edit_json

COMMANDS = """
import sys
from extraction.__main__ import main
import extraction.writing.upload, extraction.exports, numpy
"""

VERIFY = """
for command in (["export", sys.argv[5], sys.argv[5] + ".npz", "--to", "npz"],
                ["verify", sys.argv[5]], ["inspect", sys.argv[5]], ["repair", sys.argv[5]],
                ["report", sys.argv[5], "--output", sys.argv[5] + ".html"]):
    status = main(command)
    assert status in (0, 1, 2, 3, 4), (command, status)
"""


def assert_bounded(ended) -> None:
    assert ended.returncode == 0, ended.stderr[-2000:]


def many_rows(record: dict) -> None:
    record.update(n_rows=10**9)
    for statistics in record["statistics"].values():
        statistics.update(rows=10**9, norms={"0": 10**9})


def large_files(record: dict) -> None:
    for file in record["files"].values():
        file.update(bytes=10**15)


def listed_rows(document: dict) -> None:
    for batch in document["batches"]:
        batch.update(n_samples=10**9)


COUNTS = {
    "planned_batches": ("_run/run.json", lambda d: d.update(planned_batches=10**9)),
    "closed": ("_run/run.json", lambda d: d.update(planned_batches=None)),
    "rows": ("_run/commits/000001.json", lambda d: d.update(n_rows=10**9, n_sequences=10**9)),
    "rows and statistics": ("_run/commits/000001.json", many_rows),
    "a file's bytes": ("_run/commits/000001.json", large_files),
    "samples of a listed file": ("metadata.json", listed_rows),
}


@pytest.mark.parametrize("count", COUNTS)
def test_counts_cost_nothing(tmp_path, count):
    storage = written(tmp_path)
    if count == "closed":
        storage.put_new("_run/closed.json", b'{"batches": 1000000000}')
    edit_json(storage, *COUNTS[count])
    if count == "samples of a listed file":
        (storage.folder / "_run").rename(tmp_path / "gone")
    assert_bounded(
        run_bounded(COMMANDS, VERIFY, str(storage.folder), megabytes=256 + 1024, cpu_seconds=20)
    )


def shapes(megabytes: float) -> bytes:
    """A pickle that puts a tuple of 2,000 numbers into tuples of 2,000, as often as fits."""
    many = b"(" + b"K\x01" * 2000 + b"tq\x00"
    return b"\x80\x02" + many + b"0" + (b"(" + b"h\x00" * 2000 + b"t0") * int(megabytes * 250)


PICKLES = {
    "tuples of tuples": shapes(0.25),
    "marks": b"\x80\x02" + b"(" * (4 << 20),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_cost_what_their_bytes_do(tmp_path, name):
    (tmp_path / "file.pkl").write_bytes(PICKLES[name])
    ended = run_bounded(
        "import sys; from extraction.formats.safe_pickle import parse_pickle;"
        " from extraction.errors import CorruptBatchError;"
        " data = open(sys.argv[5], 'rb').read()",
        "try:\n    parse_pickle(data)\nexcept CorruptBatchError:\n    pass",
        str(tmp_path / "file.pkl"),
        megabytes=16,
        cpu_seconds=2,
    )
    assert_bounded(ended)


LEVELS = range(1, 30)
YAMLS = {
    "20,000 keys": "".join(f"key{n}: 1\n" for n in range(20_000)),
    "aliases": "extraction:\n  tasks_file:\n  - &a0 [x, x]\n"
    + "".join(f"  - &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in LEVELS),
    "merged keys": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in LEVELS),
    "nested": "[" * 50_000,
}


def test_settings_cost_what_their_bytes_do(tmp_path):
    for number, text in enumerate(YAMLS.values()):
        (tmp_path / f"{number}.yaml").write_text(text)
    ended = run_bounded(
        "import sys; from pathlib import Path;"
        " from inference.settings.yaml_file import build, read_yaml;"
        " from launch.settings import RunSettings; from inference.errors import InputError",
        "for path in sorted(Path(sys.argv[5]).iterdir()):\n"
        "    try:\n        build(RunSettings, read_yaml(path))\n"
        "    except InputError as error:\n        assert len(str(error)) < 2000",
        str(tmp_path),
        megabytes=256,
        cpu_seconds=7,
    )
    assert_bounded(ended)


def test_a_chat_template_without_end_is_refused():
    ended = run_bounded(
        "from types import SimpleNamespace as Made\n"
        "from transformers.utils.chat_template_utils import render_jinja_template\n"
        "from inference.errors import InputError\n"
        "from inference.inputs import chats\n"
        "chats.RENDERING_SECONDS = 0.5\n"
        "loop = '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}'\n"
        "def render(messages, **named):\n"
        "    return render_jinja_template([messages], chat_template=loop)\n"
        "tokenizer = Made(apply_chat_template=render, chat_template=loop)\n"
        "message = {'role': 'user', 'content': 'x'}\n"
        "chat = chats.Chat(messages=(message,))\n"
        "rendered = chats.RenderedChat(task_id='t', chat=chat, tokenizer=tokenizer)",
        "try:\n    rendered.text\nexcept InputError as error:\n"
        "    assert 'longer than 0.5 seconds' in str(error), error\n"
        "else:\n    raise AssertionError('rendered')",
        megabytes=512,
        cpu_seconds=5,
    )
    assert_bounded(ended)


def outputs_of(storage, data: bytes) -> None:
    """The first batch has these output lines, and its record says so."""
    name = "_run/outputs/000001.jsonl"
    storage.replace(name, data)
    edit_json(
        storage,
        "_run/commits/000001.json",
        lambda d: d.update(outputs=dataclasses.asdict(CommittedFile.of(name, data))),
    )


def test_a_file_larger_than_its_record_says_is_not_read(tmp_path):
    storage = written(tmp_path)
    with (storage.folder / "_run" / "outputs" / "000001.jsonl").open("r+b") as stream:
        stream.truncate(1 << 31)  # takes no room on the disk
    ended = run_bounded(
        COMMANDS,
        "assert main(['merge', sys.argv[5] + ' merged', sys.argv[5]]) == 2",
        str(storage.folder),
        megabytes=1024,
        cpu_seconds=10,
    )
    assert_bounded(ended)


@pytest.mark.parametrize("name", ["_run/run.json", "_run/commits/000001.json", "metadata.json"])
def test_documents_have_a_largest_size(tmp_path, name):
    storage = written(tmp_path)
    with (storage.folder / name).open("ab") as stream:
        stream.truncate(1 << 31)
    ended = run_bounded(
        COMMANDS,
        "assert main(['verify', sys.argv[5], '--level', '1']) in (1, 2)",
        str(storage.folder),
        megabytes=1024,
        cpu_seconds=10,
    )
    assert_bounded(ended)


def test_output_lines_cost_what_their_bytes_do(tmp_path):
    storage = written(tmp_path)
    line = json.loads(storage.get("_run/outputs/000001.jsonl").split(b"\n")[0])
    line["more"] = [{} for _ in range(4_000_000)]
    outputs_of(storage, json.dumps(line).encode() + b"\n")
    ended = run_bounded(
        COMMANDS,
        "main(['verify', sys.argv[5], '--level', '3'])",
        str(storage.folder),
        megabytes=160,
        cpu_seconds=15,
    )
    assert_bounded(ended)
