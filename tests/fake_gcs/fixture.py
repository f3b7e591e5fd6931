"""The fixture `fake_gcs`. A folder's tests get it by an import into that folder's conftest.py."""

from collections.abc import Iterator

import pytest

from tests.fake_gcs.server import FakeGcs


@pytest.fixture
def fake_gcs() -> Iterator[FakeGcs]:
    """A running server with an empty bucket named "bucket"."""
    with FakeGcs() as server:
        server.create_bucket("bucket")
        yield server
