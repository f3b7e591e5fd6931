"""Run several processes on this machine, as on a pod, to try a run without one.

Each process has its own virtual CPU devices and a log. A JAX job cannot go on without one of its
processes, so when one dies the others are stopped, and all start again and resume.
"""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from extraction.command_parser import FINAL
from extraction.errors import StoreError
from extraction.interruption import stop_flag
from extraction.progress import Progress, ProgressLine
from extraction.run.identity import read_identity
from extraction.run.records import CommitLog
from extraction.writing.finalise import planned_batches
from launch.commands import Command
from launch.finished_run import check_run, run_storage
from launch.settings import RunSettings, extraction_flags
from launch.worker_script import MODULE

LOOK = 5.0
"""Least seconds between two counts of the committed units."""

GRACE = 20.0
"""Seconds that processes have to stop, before they are killed."""

Say = Callable[[str], None]


def process_command(settings: RunSettings, number: int, processes: int, port: int) -> Command:
    """Return the command of one of the processes."""
    command = [sys.executable, "-m", MODULE, *extraction_flags(settings.extraction)]
    if processes == 1:
        return command
    return [
        *command,
        f"--coordinator_address=127.0.0.1:{port}",
        f"--num_processes={processes}",
        f"--process_id={number}",
    ]


def environment(devices: int) -> dict[str, str]:
    """Return the environment variables that a process gets besides this one's."""
    flags = os.environ.get("XLA_FLAGS", "")
    count = f"--xla_force_host_platform_device_count={devices}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags} {count}".strip()}


def run_here(settings: RunSettings, processes: int, devices: int, say: Say) -> int:
    """Run a run to its end, and return its exit status.

    Args:
        settings: settings of the run.
        processes: number of processes to start.
        devices: number of devices of each.
        say: called with a line about each event.

    Raises:
        Interrupted: ctrl-C or SIGTERM came; the processes were stopped and have ended.
    """
    folder = Path(settings.extraction.output_dir) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    say(f"logs: {folder}/process-0.log to process-{processes - 1}.log")
    for restarts in range(settings.limits.restarts + 1):
        code = _run_once(settings, processes, devices, folder, say)
        if code in FINAL:
            return code
        if code == 0:
            return check_run(settings, say).exit_status
        if restarts < settings.limits.restarts:
            say("all start again and resume")
    say(f"restarted {settings.limits.restarts} times, as often as allowed")
    return code


def _run_once(settings: RunSettings, processes: int, devices: int, folder: Path, say: Say) -> int:
    """Start all processes, wait for them, and return the first exit status that is not 0, or 0."""
    port = free_port()
    started: list[subprocess.Popen] = []
    kill_all = functools.partial(stop_all, started, signal.SIGKILL, 0.0)
    with stop_flag(at_second=kill_all) as asked, contextlib.ExitStack() as stack:
        stack.callback(kill_all)
        for number in range(processes):
            log = stack.enter_context(open(folder / f"process-{number}.log", "ab"))
            process = subprocess.Popen(
                process_command(settings, number, processes, port),
                env=os.environ | environment(devices),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # only this process gets ctrl-C, and stops the others
            )
            started.append(process)
            say(f"process {number} is {process.pid}")
        progress = stack.enter_context(ProgressLine())
        next_look = time.monotonic() + LOOK
        while None in [process.poll() for process in started]:
            if time.monotonic() > next_look:
                began = time.monotonic()
                _tell_progress(settings, progress)
                next_look = time.monotonic() + max(LOOK, 20 * (time.monotonic() - began))
            if asked.is_set():
                stop_all(started, signal.SIGTERM, GRACE)
                asked.check("stopped; it can be run again and goes on from there")
            if any(process.returncode for process in started):
                break
            time.sleep(0.1)
        failed = next((n for n, process in enumerate(started) if process.returncode), None)
        if failed is None:
            return 0
        code = _status(started[failed])
        say(f"process {failed} ended with {code}; stopping the others")
        stop_all(started, signal.SIGTERM, GRACE)
        return code


def _tell_progress(settings: RunSettings, progress: Progress) -> None:
    """Report how many units of a run are committed."""
    with contextlib.suppress(StoreError):  # the processes report it, if it lasts
        storage = run_storage(settings)
        identity = read_identity(storage)
        if identity is not None:
            planned = planned_batches(storage, identity) or 0
            progress("units committed", len(CommitLog(storage).batch_ids()), planned)


def stop_all(processes: Sequence[subprocess.Popen], number: signal.Signals, grace: float) -> None:
    """Send a signal to all running processes; kill those that still run after `grace` seconds."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(number)
    end = time.monotonic() + grace
    while time.monotonic() < end and any(process.poll() is None for process in running):
        time.sleep(0.05)
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


def _status(process: subprocess.Popen) -> int:
    """Return the exit status as a shell reports it."""
    code = process.returncode
    return 128 - code if code < 0 else code


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
