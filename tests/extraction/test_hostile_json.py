"""JSON of a run that somebody tampered with: every command ends with a status, never a traceback.

Each value of each document is put in the place of by others: of another type, too large for a
number of 64 bits, nested without end, half of a surrogate pair.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from extraction.__main__ import main
from extraction.errors import StoreError
from tests.extraction.hostile_runs import READ, read_all, written

DOCUMENTS = [
    "_run/run.json",
    "_run/commits/000001.json",
    "_run/outputs/000001.jsonl",
    "_run/self_check/0.json",
    "metadata.json",
]
VALUES = {
    "null": "null",
    "true": "true",
    "a list": "[1]",
    "an object": '{"a": 1}',
    "a text": '"text"',
    "a number": "7",
    "below zero": "-3",
    "a fraction": "0.5",
    "10**400": "1" + "0" * 400,
    "2**63": str(2**63),
    "1e400": "1e400",
    "NaN": "NaN",
    "nested": "[" * 900 + "]" * 900,
    "nested without end": "[" * 200_000,
    "surrogate": '"\\ud800"',
    "control": '"\\u001b[2J\\n"',
}
MARK = "a value to be replaced"


def places(document: Any, most: int = 2) -> Iterator[tuple[Any, Any]]:
    """Container and key of every value; of lists and of tables by hook point only a few."""
    if not isinstance(document, dict | list):
        return
    entries = list(document.items() if isinstance(document, dict) else enumerate(document))
    for key, value in entries if isinstance(document, dict) else entries[:1]:
        yield document, key
        if key != "fingerprint":
            yield from places(value, most)


def tampered(text: str, value: str) -> Iterator[str]:
    """The document with the value in each place, and with the value alone."""
    document = json.loads(text)
    for container, key in list(places(document)):
        before, container[key] = container[key], MARK
        yield json.dumps(document).replace(f'"{MARK}"', value)
        container[key] = before
    yield value


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_tampering_ends_in_a_traceback(tmp_path, capsys, name, value):
    storage = written(tmp_path)
    path = tmp_path / "run" / name
    whole = path.read_text(encoding="utf-8")
    lines = whole.split("\n")
    first = lines[0] if name.endswith("jsonl") else whole
    for text in tampered(first, VALUES[value]):
        changed = "\n".join([text, *lines[1:]]) if name.endswith("jsonl") else text
        _put(path, changed, name, storage)
        for command in ("verify", "inspect"):
            status = main([str(word) for word in READ[command](tmp_path / "run", "")])
            found = capsys.readouterr()
            assert status in (0, 1, 2, 3, 4)
            assert found.err.count("\n") == (status == 2)
            assert "\x1b" not in found.out + found.err
        with contextlib.suppress(StoreError):
            read_all(tmp_path / "run")


def _put(path: Path, text: str, name: str, storage) -> None:
    path.write_text(text, encoding="utf-8")
    if name.startswith("_run/outputs/"):
        _vouch(storage, name)


def _vouch(storage, name: str) -> None:
    """The record names what the file is now."""
    from dataclasses import asdict

    from extraction.run.records import CommittedFile

    record_name = "_run/commits/000001.json"
    record = json.loads(storage.get(record_name))
    record["outputs"] = asdict(CommittedFile.of(name, storage.get(name)))
    (storage.folder / record_name).write_text(json.dumps(record))
