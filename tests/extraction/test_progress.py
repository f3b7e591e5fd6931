import io

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
    assert lines[0] == "files: 1,000 of 100,000"
    assert len(lines) == 4


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
