"""Activations of one sample at a time: short, plain, and what faster paths are tested against.

    python -m inference.simple_extraction_inference \
        --model_path Qwen/Qwen2.5-0.5B --tasks_file arc_tasks.json \
        --output_dir ./outputs --activations_dir ./activations --layers_to_extract 6 12 18 23

`inference/engine/simple_run.py` does the work and is short enough to check by reading. In a file of
`--config`, settings of the distributed command alone are left out.
"""

if __name__ == "__main__" and not __package__:
    # Run as a script: packages are found beside this folder, and nothing in it hides them.
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    from extraction.interruption import end_on_signals, leave

    # Before the imports below, which take seconds.
    end_on_signals("the same command with --resume True goes on")

import dataclasses
from collections.abc import Sequence

from inference.inputs.datasets import read_tasks_of
from inference.settings.command_line import run_command
from inference.settings.commands import DistributedSettings, ExtractionSettings


def _run(settings: ExtractionSettings) -> None:
    settings, tasks = read_tasks_of(settings)
    from inference.engine.simple_run import run  # and JAX, which takes seconds

    run(settings, tasks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    own = {entry.name for entry in dataclasses.fields(ExtractionSettings)}
    others = {entry.name for entry in dataclasses.fields(DistributedSettings)} - own
    return run_command(_run, ExtractionSettings, __doc__ or "", arguments, ignored=others)


if __name__ == "__main__":
    leave(main())
