import io
import re
import sys
import types

import pytest

from extraction import progress as progress_module
from extraction.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def no_progress_on_a_busy_machine():
    """Progress is shown here as users see it; the clock is the test's own."""


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


@pytest.fixture
def notebook(clock, monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    return clock


def test_a_notebook_has_a_bar_of_tqdm_for_each_work(notebook, capsys):
    with ProgressLine() as progress:
        for what, total in (("files", 3), ("documents", 0)):
            for done in range(1, 4):
                notebook[0] += 3
                progress(what, done, total)
    lines = re.split(r"[\r\n]+", capsys.readouterr().err.strip())
    (files,) = [line for line in lines if line.startswith("files: 100%")]
    assert "| 3/3 [" in files
    assert lines[-1].startswith("documents: 3it")


def test_a_bar_is_full_when_the_work_is_done_between_two_updates(notebook, capsys):
    with ProgressLine() as progress:
        notebook[0] += 3
        progress("files", 1, 9)
        for done in range(2, 10):
            progress("files", done, 9)
    assert "| 9/9 [" in capsys.readouterr().err.split("\r")[-1]


def test_a_bar_of_work_that_failed_is_not_full(notebook, capsys):
    def work() -> None:
        with ProgressLine() as progress:
            notebook[0] += 3
            progress("files", 4, 9)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert "| 4/9 [" in capsys.readouterr().err.split("\r")[-1]


def test_a_notebook_without_tqdm_writes_one_line_over(notebook, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with ProgressLine() as progress:
        for done in range(1, 4):
            notebook[0] += 3
            progress("files", done, 9)
    said = capsys.readouterr().err
    assert said.count("\rfiles: ") == 3
    assert "\n" not in said


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
