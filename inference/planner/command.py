"""The command that plans a run: the distributed command's flags, and some of its own."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from extraction.setting_names import setting
from extraction.storage import file_operations
from inference.errors import InputError
from inference.inputs.datasets import read_tasks_of
from inference.planner.machines import machine
from inference.planner.prices import PRICES, read_prices
from inference.settings.command_line import run_command
from inference.settings.commands import DistributedSettings
from inference.settings.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanFlags(DistributedSettings):
    """The distributed command's flags, and those of the plan."""

    group = "the plan"

    machine: str | None = flag(
        "TPU slice to plan for, such as v5e-64 or v4-8. Default: this machine.",
        decides="nothing",
        default=None,
        example="v5e-64",
    )
    calibrate: int = flag(
        "Time each of a few batches N times on the devices here; 0: do not. With --machine it works"
        " only on a host of such a slice.",
        decides="nothing",
        default=0,
        least=0,
        example=3,
    )
    compile_memory: bool = flag(
        "With --machine, if libtpu is installed: ask the TPU compiler how much memory the fullest"
        " batch needs, which takes a minute or more. False: estimate it.",
        decides="nothing",
        default=True,
    )
    prices: str | None = flag(
        "JSON file with your prices. Default: the table in inference/planner/prices.py, which also"
        " shows the form of the file.",
        decides="nothing",
        default=None,
        example="prices.json",
    )
    json: str | None = flag(
        "Also write the plan to this file, as JSON.",
        decides="nothing",
        default=None,
        example="plan.json",
    )

    def _check(self) -> None:
        super()._check()
        if self.coordinator_address is not None:
            raise InputError(
                f"a plan is made by one process; omit {setting('coordinator_address')}"
            )
        if self.plan is not None:
            raise InputError(
                f"{setting('plan')} is a flag of the run; use {setting('json')} to write the plan"
                " to a file"
            )


def _run(flags: PlanFlags) -> None:
    """Make the plan, print it, and write it to the file of `--json`."""
    prices = PRICES if flags.prices is None else read_prices(flags.prices)
    slice_ = None if flags.machine is None else machine(flags.machine)
    names = (entry.name for entry in dataclasses.fields(DistributedSettings))
    settings = DistributedSettings(**{name: getattr(flags, name) for name in names})
    settings, tasks = read_tasks_of(settings)
    from inference.planner.plan import make_plan  # imports JAX, which takes seconds
    from inference.planner.report import lines

    planned = make_plan(
        settings,
        tasks,
        slice_,
        repeats=flags.calibrate,
        compile_memory=flags.compile_memory,
        prices=prices,
    )
    for line in lines(planned):
        print(line)
    if flags.json is not None:
        document = json.dumps(planned.document(), indent=1) + "\n"
        file_operations.publish_over(Path(flags.json).expanduser(), document.encode())


def plan(arguments: Sequence[str], description: str) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: words of the command line.
        description: text for `--help`.
    """
    return run_command(_run, PlanFlags, description, arguments)
