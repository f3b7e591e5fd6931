"""The fake bucket server as fixtures."""

import pytest

from tests.fake_gcs.fixture import fake_gcs

__all__ = ["environment", "fake_gcs"]


@pytest.fixture
def environment(fake_gcs, monkeypatch):
    """The server; clients that are made from the environment use it."""
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    return fake_gcs
