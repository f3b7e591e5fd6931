"""Plan a run before it runs: rows, bytes, files, programs, memory, hours, dollars.

    python -m launch plan --model_path /path/to/model --tasks_file arc_tasks.json \
        --gcs_bucket gs://bucket/run [any other flag of the distributed command] \
        [--machine v5e-64] [--calibrate 3] [--prices prices.json] [--json plan.json]
    python -m launch plan run.yaml [any of these flags]

With a settings file the flags come from its `extraction`, and the machine from its `machine`. Tasks
are read and tokenised, and whatever the command would refuse is refused here, with exit status 2.
Only the file of `--json` is written.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from extraction.command_parser import BAD_INPUT
from extraction.setting_names import flags_named
from inference.errors import InputError
from inference.planner.command import plan
from launch.settings import extraction_flags, on_machine, read_settings


def _flags_of_file(path: Path) -> list[str]:
    """Return the settings of a file as flags."""
    settings = read_settings(path)
    flags = extraction_flags(dataclasses.replace(settings.extraction, plan=None))
    if settings.machine is not None:
        on_machine(settings)  # refuses what `launch run` would refuse
        flags.append(f"--machine={settings.machine.slice}")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-"):
        try:
            with flags_named():
                given[:1] = _flags_of_file(Path(given[0]))
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return BAD_INPUT
    return plan(given, __doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())
