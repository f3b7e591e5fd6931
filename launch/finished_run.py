"""The end of a run: what `verify` says of it, and how it compares with its plan."""

from collections.abc import Callable

from extraction.storage import open_storage
from extraction.verify import Report, verify
from inference.plan_comparison import compare_stored, read_plan
from launch.settings import RunSettings


def check_run(settings: RunSettings, say: Callable[[str], None]) -> Report:
    """Verifies at level 1 what a run has left, where its records are.

    Args:
        settings: of the run.
        say: told what was found.

    Raises:
        InputError: the plan that the settings name cannot be read.
        StorageUnavailableError: the place cannot be reached.
    """
    flags = settings.extraction
    storage = open_storage(flags.cloud() or flags.activations_dir)
    report = verify(storage, 1)
    for line in report.lines():
        say(line)
    if flags.plan is not None and report.exit_status == 0:
        say(f"against the plan of {flags.plan}:")
        for line in compare_stored(read_plan(flags.plan), storage):
            say(line)
    return report
