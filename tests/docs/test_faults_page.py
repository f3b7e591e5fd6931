"""The tests that docs/faults.md names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_is_named_exists():
    page = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named) > 40
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
    lines = [line for line in page.splitlines() if line.startswith("|")]
    for line in lines:
        assert "tests/" in line or "results/" in line or line.endswith(("| test |", "---|")), line


def test_results_that_are_named_exist():
    page = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    for file in re.findall(r"`(benchmarks/results/[\w.]+)`", page):
        assert (ROOT / file).exists(), file
