"""The fixture of these tests, which is also what they test."""

from tests.fake_gcs.fixture import fake_gcs

__all__ = ["fake_gcs"]
