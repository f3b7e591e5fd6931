"""The command that plans a run: the distributed command's flags, and a few of its own."""

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
    """The distributed command's flags, and what else a plan needs to know."""

    group = "the plan"

    machine: str | None = flag(
        "TPU slice to plan for. Default: this machine.",
        decides="nothing",
        default=None,
        example="v5e-64",
    )
    calibrate: int = flag(
        "Time batches of the plan so many times on the devices here; 0: do not. With --machine on a"
        " host of such a slice only.",
        decides="nothing",
        default=0,
        least=0,
        example=3,
    )
    compile_memory: bool = flag(
        "With --machine: let the TPU compiler say what memory the fullest batch needs, where libtpu"
        " is installed; takes a minute or more. False: estimate it.",
        decides="nothing",
        default=True,
    )
    prices: str | None = flag(
        "JSON file of prices in place of the table of inference/planner/prices.py.",
        decides="nothing",
        default=None,
        example="prices.json",
    )
    json: str | None = flag(
        "File to write the plan to as well.", decides="nothing", default=None, example="plan.json"
    )

    def _check(self) -> None:
        super()._check()
        if self.coordinator_address is not None:
            raise InputError(
                f"a plan is made by one process; leave {setting('coordinator_address')} out"
            )
        if self.plan is not None:
            raise InputError(
                f"{setting('plan')} is for the run; {setting('json')} is where this command writes"
                " the plan"
            )


def _run(flags: PlanFlags) -> None:
    """Plan, print, and write the file of `--json`."""
    prices = PRICES if flags.prices is None else read_prices(flags.prices)
    slice_ = None if flags.machine is None else machine(flags.machine)
    names = (entry.name for entry in dataclasses.fields(DistributedSettings))
    settings = DistributedSettings(**{name: getattr(flags, name) for name in names})
    settings, tasks = read_tasks_of(settings)
    from inference.planner.plan import make_plan  # and JAX, which takes seconds
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
        arguments: flags.
        description: for `--help`.
    """
    return run_command(_run, PlanFlags, description, arguments)
