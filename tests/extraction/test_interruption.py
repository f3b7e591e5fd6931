"""Signals end a command in one line, whatever the main thread is doing."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import extraction
from extraction.interruption import Interrupted, exit_status, raised_in_main, stop_flag

ROOT = Path(extraction.__file__).parents[1]


@pytest.fixture(autouse=True)
def _interruptible():
    """As at a terminal: what is started in the background is often told to ignore ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def command(body: str) -> subprocess.Popen:
    """Starts a command, which says "ready" where it is to be stopped."""
    code = (
        "from extraction.interruption import *\n"
        "from extraction.interruption import end_on_signals, stop_flag, raised_in_main\n"
        "end_on_signals('advice')\n"
        "import contextlib, gc, os, sys, time\n"
        "def ready(): print('ready', flush=True)\n" + textwrap.dedent(body)
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped(body: str, *numbers: signal.Signals) -> tuple[int, str, str]:
    """Status, output and messages of a command that gets these signals when it is ready."""
    with command(body) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.2)
        out, error = process.stdout.read(), process.stderr.read()
    return process.returncode, out, error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "work",
    [
        "time.sleep(60)",
        "import numpy as np; a = np.ones((3000, 3000))\nfor _ in range(1000): a = a @ a * 0",
        "try:\n    time.sleep(60)\nexcept BaseException:\n    time.sleep(60)",
    ],
)
def test_a_command_ends_at_once(work, number):
    assert stopped(f"ready()\n{work}", number) == (128 + number, "", "stopped; advice\n")


LOOP = """
with stop_flag() as stop:
    for number in range(2000):
        print(number, flush=True) if number == 1 else None
        if number == 0: ready()
        if stop.is_set(): print('committed'); break
        time.sleep(0.05)
print('not reached')
"""


def test_a_loop_is_left_between_two_steps():
    status, out, error = stopped(LOOP, signal.SIGINT)
    assert (status, out.splitlines()[-1]) == (1, "committed")  # Interrupted, which nobody caught
    assert "Interrupted" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(number):
    body = "with stop_flag():\n    ready()\n    time.sleep(60)"
    assert stopped(body, number, number) == (128 + number, "", "stopped; advice\n")


def test_a_second_signal_lets_the_block_clean_up_others():
    body = "with stop_flag(lambda: os.write(1, b'killed')):\n    ready()\n    time.sleep(60)"
    assert stopped(body, signal.SIGINT, signal.SIGINT) == (130, "killed", "stopped; advice\n")


IN_A_CALLBACK = {
    "a callback of the garbage collector": """
        def busy(phase, info):
            if phase == 'start' and not gc.isenabled():
                ready(); end = time.monotonic() + 1
                while time.monotonic() < end: pass
        gc.callbacks.append(busy)
        gc.disable()
        """,
    "a destructor": """
        class Busy:
            def __del__(self):
                ready(); end = time.monotonic() + 1
                while time.monotonic() < end: pass
        """,
}


@pytest.mark.parametrize("place", IN_A_CALLBACK)
def test_an_exception_that_python_would_drop_is_raised(place):
    begin = "gc.collect()" if "collector" in place else "Busy()"
    body = textwrap.dedent(IN_A_CALLBACK[place]) + textwrap.dedent(f"""
        try:
            with raised_in_main():
                {begin}
                time.sleep(60)
        except KeyboardInterrupt:
            print('cleaned up')
            sys.exit(130)
        """)
    assert stopped(body, signal.SIGINT) == (130, "cleaned up\n", "")


def test_a_signal_that_is_ignored_stays_so():
    body = "ready()\ntime.sleep(1)\nprint('went on')"
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code + "from extraction.interruption import end_on_signals\n"
         "end_on_signals()\nimport time\ndef ready(): print('ready', flush=True)\n" + body],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "went on\n"
    assert process.returncode == 0


def test_a_command_that_ends_by_itself_runs_what_is_registered_and_keeps_its_output():
    body = """
        import atexit
        from extraction.interruption import leave
        atexit.register(print, 'registered')
        ready()
        leave(7)
        """
    assert stopped(body) == (7, "registered\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_a_notebook_a_flag_is_set_and_handlers_come_back(number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def told_by_a_flag():
        with stop_flag() as stop:
            os.kill(os.getpid(), number)
            assert stop.wait(5)

    def told_by_an_exception():
        with raised_in_main():
            os.kill(os.getpid(), number)
            time.sleep(5)

    for work in told_by_a_flag, told_by_an_exception:
        with pytest.raises(Interrupted) as raised:
            work()
        assert exit_status(raised.value) == 128 + number
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_error_is_not_hidden_by_a_flag():
    def fail():
        with stop_flag() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wait(5)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()


def test_other_threads_have_a_flag_that_nobody_sets():
    found = []

    def work():
        with stop_flag() as stop, raised_in_main():
            found.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
