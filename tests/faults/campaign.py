"""Runs one campaign of faults in a process without threads, from which it can fork.

    python -m tests.faults.campaign kills --share quick --format safetensors

prints the tallies as JSON. The tests run it so, as pytest's own process has JAX's threads. Read in
this order: `planned_run` (what is run), `independent_reading` and `judge` (what must hold),
`faulty_os`, `children`, then the campaigns.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import warnings

from tests.faults.judge import FULL, QUICK, QUICK_SOME, SOME, Campaign, quick_folder
from tests.our_warnings import OUR_MODULES

CAMPAIGNS = (
    "kills",
    "failing_operations",
    "power_loss",
    "full_disk",
    "cloud",
    "two_runs",
    "planted_bugs",
)
"""Modules beside this one, with a function `run`."""

SHARES = {"full": FULL, "some": SOME, "quick": QUICK, "quick some": QUICK_SOME}


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--share", choices=SHARES, default="quick")
    parser.add_argument("--format", default="pickle")
    arguments = parser.parse_args()
    warnings.filterwarnings("error", module=OUR_MODULES)
    module = importlib.import_module(f"tests.faults.{arguments.campaign}")
    with quick_folder() as folder:
        campaign = Campaign(folder, SHARES[arguments.share], arguments.format)
        module.run(campaign)
        assert "jax" not in sys.modules  # its threads would make forks unsafe
        print(json.dumps([dataclasses.asdict(t) for t in campaign.tallies.values()]))


if __name__ == "__main__":
    main()
