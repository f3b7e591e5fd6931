"""Activations on all devices: the fast path, from one CPU to a TPU pod.

    python -m inference.distributed_inference_with_activations \
        --model_path /path/to/model --tasks_file arc_tasks.json \
        --output_dir ./outputs --activations_dir ./activations \
        --batch_size 8 --mesh_shape 8,8 --layers_to_extract 6 12 18 23

Gives the same rows as `simple_extraction_inference`. `inference/engine/distributed_run.py` does the
work; all its settings are flags here.
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

from collections.abc import Sequence

from inference.inputs.datasets import read_tasks_of
from inference.settings.command_line import run_command
from inference.settings.commands import DistributedSettings


def _run(settings: DistributedSettings) -> None:
    settings, tasks = read_tasks_of(settings)
    from inference.engine.distributed_run import run  # and JAX, which takes seconds

    run(settings, tasks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_run, DistributedSettings, __doc__ or "", arguments)


if __name__ == "__main__":
    leave(main())
