"""Names of the files of a run: what is made is read back, and nothing else is."""

import pytest

from extraction import run_layout

NUMBERS = (0, 1, 999_999, 1_000_000, 123_456_789)


@pytest.mark.parametrize("number", NUMBERS)
def test_names_read_back(number):
    name = run_layout.batch_file("layer_6.normalized", number, "pkl")
    assert run_layout.parse_batch_file(name) == ("layer_6.normalized", number, "pkl")
    assert run_layout.parse_record_name(run_layout.record_name(number)) == number
    assert run_layout.parse_outputs_name(run_layout.outputs_name(number)) == number
    assert run_layout.parse_lock_name(run_layout.lock_name(number)) == number


@pytest.mark.parametrize(
    "name",
    [
        *("", "_run/commits/1.json", "_run/commits/0000001.json", "_run/commits/-00001.json", "x"),
        *("_run/outputs/1.jsonl", "x_run/outputs/000001.jsonl", "_batch_000001.pkl", "_run/lock."),
    ],
)
def test_other_names_are_none(name):
    assert run_layout.parse_batch_file(name) is None
    assert run_layout.parse_record_name(name) is None
    assert run_layout.parse_outputs_name(name) is None
    assert run_layout.parse_lock_name(name) is None


def test_the_names_are_those_of_earlier_versions():
    assert run_layout.batch_file("layer_6", 1, "pkl") == "layer_6_batch_000001.pkl"
    assert run_layout.record_name(1) == "_run/commits/000001.json"
    assert run_layout.outputs_name(1) == "_run/outputs/000001.jsonl"
    assert run_layout.self_check_name(0) == "_run/self_check/00000.json"
    assert run_layout.lock_name(0) == "_run/lock.00000"
