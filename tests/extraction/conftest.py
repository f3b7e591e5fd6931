"""The fake bucket server as a fixture."""

from tests.fake_gcs.fixture import fake_gcs

__all__ = ["fake_gcs"]
