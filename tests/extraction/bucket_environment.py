"""The fixture `bucket`: a fake bucket that commands find by their environment.

Google's client leaves the connection of a download that was refused to the garbage collector. Tests
of refusals take `REFUSED_DOWNLOADS` as their mark and the fixture `collected`.
"""

import gc
from collections.abc import Iterator

import pytest
from google.cloud import storage as google_storage

import extraction.storage.gcs  # noqa: F401 - its annotations need the real class
from tests.fake_gcs.server import FakeGcs

REFUSED_DOWNLOADS = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """No connection of a refused download is left to a later test."""
    yield
    gc.collect()


@pytest.fixture
def bucket(fake_gcs: FakeGcs, monkeypatch) -> Iterator[FakeGcs]:
    """Clients that are made meanwhile are closed at the end."""
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    clients, make = [], google_storage.Client

    def client(*args, **kwargs) -> google_storage.Client:
        clients.append(make(*args, **kwargs))
        return clients[-1]

    monkeypatch.setattr(google_storage, "Client", client)
    yield fake_gcs
    for made in clients:
        made.close()
