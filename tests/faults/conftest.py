"""How the tests run campaigns, and the table at the end.

FAULTS=all pytest tests/faults        every fault; minutes
pytest tests/faults                   a share of each; seconds
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVERYTHING = os.environ.get("FAULTS") == "all"
COLUMNS = ("tried", "rows_expected", "rows_lost", "rows_twice", "verify_bad", "failures")


def in_namespace() -> list[str]:
    """The command that permits mounting, where the system does."""
    command = ["unshare", "--map-root-user", "--mount"]
    try:
        done = subprocess.run([*command, "true"], capture_output=True)
    except FileNotFoundError:
        return []
    return command if done.returncode == 0 else []


@pytest.fixture
def run_campaign(record_property):
    """Runs a campaign in a process of its own, and fails if it found anything.

    It gives the table's lines. With `some` it runs a share of the share.
    """

    def run(campaign: str, *, file_format: str = "pickle", some: bool = False) -> list[dict]:
        share = f"quick{' some' * some}" if not EVERYTHING else "some" if some else "full"
        command = [sys.executable, "-m", "tests.faults.campaign", campaign]
        command += ["--format", file_format, "--share", share]
        prefix = in_namespace() if campaign == "full_disk" else []
        done = subprocess.run([*prefix, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0
        tallies = json.loads(done.stdout)
        record_property("faults", tallies)
        failures = [failure for tally in tallies for failure in tally["failures"]]
        assert not failures, "\n".join([f"{len(failures)} failures", *failures[:20]])
        for tally in tallies:
            assert tally["tried"]
            assert tally["rows_lost"] == tally["rows_twice"] == tally["verify_bad"] == 0
        return tallies

    return run


def pytest_terminal_summary(terminalreporter):
    """The table of all campaigns."""
    tallies = [
        tally
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.getreports(outcome)
        for name, value in getattr(report, "user_properties", ())
        if name == "faults"
        for tally in value
    ]
    if not tallies:
        return
    width = max(len(tally["fault"]) for tally in tallies)
    titles = [column.replace("_", " ") for column in COLUMNS]
    terminalreporter.section("faults")
    terminalreporter.line("  ".join([f"{'fault':{width}}", *titles]))
    total = dict.fromkeys(COLUMNS, 0)
    for tally in tallies:
        counts = tally | {"failures": len(tally["failures"])}
        total = {column: total[column] + counts[column] for column in COLUMNS}
        if EVERYTHING or tally["failures"]:
            _line(terminalreporter, tally["fault"], width, counts)
            for note, count in tally["notes"].items():
                terminalreporter.line(f"    {note[:150]}: {count}")
    _line(terminalreporter, "all", width, total)


def _line(reporter, fault: str, width: int, counts: dict[str, int]) -> None:
    cells = [f"{counts[column]:>{len(column)},}" for column in COLUMNS]
    reporter.line("  ".join([f"{fault:{width}}", *cells]))
