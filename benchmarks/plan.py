"""Planned against actual: files, bytes and seconds, for a model of a published shape on this CPU.

    python -m benchmarks.plan [--shapes demo 0.5B] [--samples 48] [--rounds 3] [--repeats 3]

Each round plans a run with its own calibration, runs the distributed command, and compares. Both
are processes of their own that find nothing compiled: the persistent compilation cache is off. The
seconds are those of the command's own `time` line; on a machine that has other work too, the median
of the rounds is what counts. Prompts are the demo's ARC-style tasks.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks.shapes import SHAPES, write_random_checkpoint
from examples.make_demo import make_checkpoint, make_tasks, make_tokenizer

COMMAND = "inference.distributed_inference_with_activations"
WITHIN = 0.3
"""Share by which the seconds may differ."""


def write_model(folder: Path, shape: str) -> None:
    """A random checkpoint in a shape, with the demo's tokenizer."""
    if shape == "demo":
        make_checkpoint(folder)
        return
    import torch

    write_random_checkpoint(folder, SHAPES[shape], torch.float32)
    make_tokenizer().save_pretrained(folder)


def in_a_process(module: str, arguments: Sequence[str]) -> str:
    """What a module prints that is run with nothing compiled before."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def one_round(folder: Path, flags: Sequence[str], repeats: int) -> tuple[list[str], float, bool]:
    """The lines of the comparison, found over planned seconds, and whether the files are exact."""
    activations = folder / "activations"
    flags = [*flags, "--activations_dir", str(activations), "--output_dir", str(folder / "out")]
    plan_file = folder / "plan.json"
    in_a_process("launch.plan", [*flags, "--calibrate", str(repeats), "--json", str(plan_file)])
    planned = json.loads(plan_file.read_text())
    shown = in_a_process(COMMAND, [*flags, "--plan", str(plan_file)])
    seconds = float(re.findall(r"^time +([0-9.]+) s", shown, re.MULTILINE)[0])
    files = [path for path in activations.iterdir() if "_batch_" in path.name]
    size = sum(path.stat().st_size for path in files)
    exact = (planned["activation_bytes"], planned["activation_files"]) == (size, len(files))
    lines = shown[shown.index("against the plan") :].splitlines()[1:]
    parts = {name: round(s, 1) for name, s in planned["seconds"].items() if name != "source"}
    return [*lines, f"planned      {parts}"], seconds / planned["seconds"]["total"], exact


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring. 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=["demo", *SHAPES], default=["demo", "0.5B"])
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="--calibrate of the plan")
    parser.add_argument("--max_new_tokens", type=int, default=1)
    options = parser.parse_args(arguments)
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, jax"
          f" {jax.__version__}, {options.samples} prompts")  # fmt: skip
    wrong = 0
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_model(folder / "checkpoint", shape)
            tasks = folder / "tasks.json"
            tasks.write_text(json.dumps(make_tasks(options.samples)), encoding="utf-8")
            flags = ["--model_path", str(folder / "checkpoint"), "--tasks_file", str(tasks),
                     "--max_new_tokens", str(options.max_new_tokens)]  # fmt: skip
            ratios = []
            for number in range(1, options.rounds + 1):
                place = folder / str(number)
                place.mkdir()
                lines, ratio, exact = one_round(place, flags, options.repeats)
                ratios.append(ratio)
                wrong += not exact
                print(f"\n{shape}, round {number}: files {'exact' if exact else 'NOT exact'}")
                print("\n".join(lines), flush=True)
            median = statistics.median(ratios)
            wrong += abs(median - 1) > WITHIN
            print(f"\n{shape}: {median:.2f} of the planned seconds, median of {len(ratios)} rounds")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
