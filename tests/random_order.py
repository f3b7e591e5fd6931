"""A plugin that shuffles the tests: files, and the tests within each file.

    pytest -p tests.random_order --random-order-seed 7

A test that passes alone and fails after another depends on what that one left behind.
"""

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says which order."""
    parser.addoption(
        "--random-order-seed", type=int, default=0, help="the same seed, the same order"
    )


def pytest_report_header(config: pytest.Config) -> str:
    """Tell how to repeat this order."""
    seed = config.getoption("random_order_seed")
    return f"random order: make test-random SEED={seed} repeats it"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle; tests of a file stay together, since they share what is slow to make."""
    generator = random.Random(config.getoption("random_order_seed"))
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.location[0], []).append(item)
    shuffled = list(files.values())
    generator.shuffle(shuffled)
    for tests in shuffled:
        generator.shuffle(tests)
    items[:] = [item for tests in shuffled for item in tests]
