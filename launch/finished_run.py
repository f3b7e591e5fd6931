"""The end of a run: verify it, and compare it with its plan."""

from collections.abc import Callable

from extraction.errors import StoreError
from extraction.maintenance.verify import Report, verify
from extraction.progress import ProgressLine
from extraction.storage import Storage, open_storage
from inference.engine.plan_comparison import compare, read_plan, stored
from inference.errors import InputError
from launch.settings import RunSettings


def is_whole(settings: RunSettings) -> bool:
    """Return whether a run is complete and whole already.

    Raises:
        StorageUnavailableError: the place cannot be reached.
    """
    return verify(run_storage(settings), 1).verdict == "good"


def check_run(settings: RunSettings, say: Callable[[str], None]) -> Report:
    """Verify a run, and compare it with its plan.

    Args:
        settings: settings of the run.
        say: called with each line of the report and of the comparison.

    Raises:
        StorageUnavailableError: the place cannot be reached.
    """
    storage = run_storage(settings)
    with ProgressLine() as progress:
        report = verify(storage, progress=progress)
    plan = settings.extraction.plan
    if plan is not None and report.exit_status == 0:
        say(f"against the plan of {plan}:")
        try:
            lines = compare(read_plan(plan), stored(report.totals))
        except (InputError, StoreError) as error:  # a plan that cannot be read does not matter
            lines = [str(error)]
        for line in lines:
            say(line)
    for line in report.lines():
        say(line)
    return report


def run_storage(settings: RunSettings) -> Storage:
    """Return the storage of a run's commit records: its bucket, or its folder."""
    return open_storage(settings.extraction.cloud() or settings.extraction.activations_dir)
