"""No fault loses a row, doubles one, or leaves what a resume cannot go on from."""

import pytest

from tests.faults.conftest import EVERYTHING
from tests.faults.full_disk import SKIPPED


def test_sigkill_anywhere(run_campaign):
    tallies = run_campaign("kills")
    kinds = {tally["fault"].rpartition(": ")[2] for tally in tallies}
    assert {"batch file", "commit record", "metadata.json", "output lines"} <= kinds
    if EVERYTHING:
        assert {"run.json", "outputs.jsonl", "folders", "lock"} <= kinds


@pytest.mark.parametrize("file_format", ["safetensors"])
def test_sigkill_with_other_formats(run_campaign, file_format):
    run_campaign("kills", file_format=file_format, some=True)


def test_any_operation_may_fail(run_campaign):
    run_campaign("failing_operations")


def test_loss_of_power(run_campaign):
    run_campaign("power_loss")


def test_a_full_disk(run_campaign):
    tallies = run_campaign("full_disk")
    skipped = [note for tally in tallies for note in tally["notes"] if note == SKIPPED]
    if skipped:
        pytest.skip(SKIPPED)


def test_uploads(run_campaign):
    run_campaign("cloud")


def test_two_runs_sleeping_hosts_and_clocks(run_campaign):
    run_campaign("two_runs")


def test_planted_bugs_are_noticed(run_campaign):
    run_campaign("planted_bugs")
