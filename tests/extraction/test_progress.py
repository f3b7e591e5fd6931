import io
import sys
import types
from typing import ClassVar

import pytest

from extraction import progress as progress_module
from extraction.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_nothing_is_said_of_short_work(clock):
    stream = io.StringIO()
    with ProgressLine(stream) as progress:
        clock[0] += 1.9
        progress("files", 1, 2)
    assert stream.getvalue() == ""


def test_a_log_gets_a_line_now_and_then(clock):
    stream = io.StringIO()
    with ProgressLine(stream) as progress:
        for done in range(100):
            clock[0] += 1
            progress("files", done * 1000, 100_000)
    lines = stream.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "files: 1",
        "files: 31",
        "files: 61",
        "files: 91",
    ]
    assert lines[2].endswith("files: 61,000 of 100,000, 0:00:39 left")


def test_work_of_unknown_size_is_counted(clock):
    stream = io.StringIO()
    with ProgressLine(stream) as progress:
        clock[0] += 3
        progress("documents", 1234, 0)
    assert stream.getvalue() == "documents: 1,234\n"


def test_a_notebook_writes_one_line_over(clock, monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    stream = io.StringIO()
    with ProgressLine(stream) as progress:
        for done in range(1, 4):
            clock[0] += 3
            progress("files", done, 9)
    assert stream.getvalue().count("\rfiles: ") == 3
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r")


class Bar:
    """A bar such as tqdm's."""

    made: ClassVar[list["Bar"]] = []

    def __init__(self, desc: str, total: int | None):
        self.desc, self.total, self.n, self.closed = desc, total, 0, False
        Bar.made.append(self)

    def update(self, more: int) -> None:
        self.n += more

    def close(self) -> None:
        self.closed = True


def test_a_notebook_has_a_bar_of_tqdm_for_each_work(clock, monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))
    Bar.made.clear()
    with ProgressLine() as progress:
        for what, total in (("files", 9), ("documents", 0)):
            for done in range(1, 4):
                clock[0] += 3
                progress(what, done, total)
    assert [(bar.desc, bar.total, bar.n, bar.closed) for bar in Bar.made] == [
        ("files", 9, 3, True),
        ("documents", None, 3, True),
    ]


def test_a_terminal_is_left_as_it_was(clock):
    stream = Terminal()
    with ProgressLine(stream) as progress:
        clock[0] += 3
        progress("files", 10_000, 10_000)
        clock[0] += 1
        progress("files", 1, 2)
    lines = stream.getvalue().split("\r")
    assert lines[1:3] == ["files: 10,000 of 10,000", "files: 1 of 2          "]
    assert lines[3].strip() == lines[4] == ""
