"""ctrl-C and SIGTERM at random times: a share here, 50 tries of each command with FAULTS=all."""

import signal
from pathlib import Path

import pytest

from tests.faults.conftest import EVERYTHING
from tests.faults.interrupted import commands, prepare, tries

TRIES = 50 if EVERYTHING else 2


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    prepare(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, signal.SIGINT) for name in commands(Path())] + [("distributed", signal.SIGTERM)],
)
def test_one_line_at_any_time(name, number, demo):
    found = tries(demo, name, number, TRIES)
    assert len(found) == TRIES
    faults = [f"after {after:.2f} s: {fault}" for after, _, fault in found if fault]
    assert not faults, "\n".join(faults)
