"""ctrl-C and SIGTERM at random times, in commands as a user runs them on the demo's model.

    python -m tests.faults.interrupted --tries 50
    python -m tests.faults.interrupted --tries 50 --commands simple verify --signal SIGTERM

Each try starts a command, waits until its own code has begun and then for a random time of what it
takes, sends the signal, and looks at what comes: the exit status, what is said besides log lines,
and whether what is on the disk is whole. Prints a line for each kind of outcome.
"""

import argparse
import collections
import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

PATIENCE = 120.0
"""Seconds after which a command that was asked to stop counts as hanging."""

LOG_LINE = re.compile(r"\d\d:\d\d:\d\d (INFO|WARNING) |[a-z ]+: [\d,]+( of |$)")
"""Also the lines that tell of progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stopped:
    """How a command ended.

    Attributes:
        status: as `subprocess` has it.
        told: lines on standard error that are no log lines.
        out: standard output.
        seconds: from the signal to the end; None: it had ended before.
    """

    status: int
    told: list[str]
    out: str
    seconds: float | None

    def fault(self, number: signal.Signals) -> str | None:
        """What is wrong with it, or None."""
        if self.status == 0 and not self.told:
            return None  # it had done all it was to do
        if self.status != 128 + number:
            return f"exit status {self.status}: {self.told[-1:]}"
        if len(self.told) != 1 or not self.told[0].startswith("stopped"):
            return f"{len(self.told)} lines: {self.told[:2]} ... {self.told[-1:]}"
        return None


def wait_for_command(process: subprocess.Popen) -> float:
    """Waits until a command's own code has begun; seconds that Python took before.

    Python itself does not catch SIGTERM, so when it is caught a command does.
    """
    started, mask = time.monotonic(), 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(re.search(r"SigCgt:\s*([0-9a-f]+)", status)[1], 16) & mask:
            break
        time.sleep(0.001)
    return time.monotonic() - started


def stop(command: Sequence[str], number: signal.Signals, after: float) -> Stopped:
    """Starts a command and sends it a signal.

    Args:
        command: to run, in the repository's root.
        number: of the signal.
        after: seconds from when its own code began.
    """
    process = start(command)
    wait_for_command(process)
    try:
        process.wait(after)
        sent = None
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        sent = time.monotonic()
    try:
        out, error = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
    return Stopped(
        status=process.returncode,
        told=[line for line in error.splitlines() if not LOG_LINE.match(line)],
        out=out,
        seconds=None if sent is None else time.monotonic() - sent,
    )


def start(command: Sequence[str]) -> subprocess.Popen:
    """Starts a command in the repository's root."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def commands(folder: Path) -> dict[str, Callable[[Path], list[str]]]:
    """The commands, each a function of the folder that it may write to.

    Args:
        folder: with the demo in `demo/` and a run of it in `run/`.
    """
    model, run = folder / "demo" / "checkpoint", folder / "run" / "activations"

    def extraction(name: str) -> Callable[[Path], list[str]]:
        def command(place: Path) -> list[str]:
            return [
                f"inference.{name}",
                f"--model_path={model}",
                f"--tasks_file={folder / 'demo' / 'tasks.json'}",
                f"--output_dir={place / 'outputs'}",
                f"--activations_dir={place / 'activations'}",
                "--max_new_tokens=16",
                "--predictions_per_task=8",
                "--save_every_n_samples=16",
            ]

        return command

    def launch(place: Path) -> list[str]:
        settings = place / "run.yaml"
        settings.write_text(
            f"name: run\nextraction:\n  model_path: {model}\n"
            f"  tasks_file: {folder / 'demo' / 'tasks.json'}\n"
            f"  output_dir: {place / 'outputs'}\n  activations_dir: {place / 'activations'}\n"
        )
        return ["launch", "local", str(settings), "--processes", "2"]

    return {
        "simple": extraction("simple_extraction_inference"),
        "distributed": extraction("distributed_inference_with_activations"),
        "verify": lambda _: ["extraction", "verify", str(run)],
        "export": lambda place: [
            "extraction",
            "export",
            str(run),
            str(place / "a.npz"),
            "--to=npz",
        ],
        "merge": lambda place: ["extraction", "merge", str(place / "out"), str(run)],
        "launch": launch,
    }


def prepare(folder: Path) -> None:
    """Makes the demo, and a run of it for the commands that read one."""
    from examples.make_demo import main as make_demo

    make_demo([str(folder / "demo")])
    whole = commands(folder)["distributed"](folder / "run")
    subprocess.run([sys.executable, "-m", *whole], cwd=ROOT, check=True, capture_output=True)


def left_whole(place: Path) -> str | None:
    """What is wrong with what a command left, or None."""
    from extraction.maintenance.verify import verify
    from extraction.run_layout import METADATA_FILE
    from extraction.storage import open_storage

    for name in ("activations", "out"):
        if (place / name).exists():
            report = verify(open_storage(str(place / name)), 3)
            # What is derived from the records may be missing; the command repeated derives it.
            if any(problem.file != METADATA_FILE for problem in report.problems):
                return "\n".join(report.lines())
    return None


def tries(
    folder: Path, name: str, number: signal.Signals, count: int, seed: int = 0
) -> list[tuple[float, Stopped, str | None]]:
    """Stops a command so often; the time, how it ended, and what is wrong with that.

    Args:
        folder: that `prepare` filled.
        name: of the command.
        number: of the signal.
        count: of tries.
        seed: for the times.
    """
    make, generator, place = commands(folder)[name], random.Random(seed), folder / "place"
    found = []
    for attempt in range(-1, count):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        command = make(place)
        if attempt < 0:
            process = start(command)
            wait_for_command(process)
            started = time.monotonic()
            _, error = process.communicate()
            assert process.returncode == 0, error
            whole = time.monotonic() - started
            continue
        after = generator.uniform(0, whole)
        stopped = stop(command, number, after)
        found.append((after, stopped, stopped.fault(number) or left_whole(place)))
    return found


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--commands", nargs="+")
    parser.add_argument("--signal", choices=("SIGINT", "SIGTERM"), default="SIGINT")
    flags = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        prepare(folder)
        for name in flags.commands or commands(folder):
            found = tries(folder, name, signal.Signals[flags.signal], flags.tries)
            outcomes = collections.Counter(
                fault or f"exit status {stopped.status}, {stopped.told or 'done'}"
                for _, stopped, fault in found
            )
            times = sorted(stopped.seconds for _, stopped, _ in found if stopped.seconds)
            right = sum(fault is None for _, _, fault in found)
            print(f"{name}: {right} of {len(found)} right; slowest stop {times[-1]:.1f} s")
            for outcome, tried in outcomes.most_common():
                print(f"  {tried:3} {outcome}", flush=True)


if __name__ == "__main__":
    main()
