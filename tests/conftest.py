"""What all tests share: strictness, and small checkpoints that transformers and torch write."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from tests.compiled_programs import cache_settings

os.environ.update(cache_settings(os.environ))

# Compiling is most of the tests' time. `optimised` is for those that compute much, and
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 before `make test` for all of them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import pytest

import tests.older_formats  # noqa: F401
from examples.make_demo import make_checkpoint, make_tasks
from tests.moto_s3 import MotoS3, running
from tests.our_warnings import OUR_MODULES
from tests.tiers import TIERS

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A busy machine is no fault of the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_configure(config):
    """A warning about our code fails the test; one about another package is only shown."""
    config.addinivalue_line("filterwarnings", f"error:::{OUR_MODULES}")
    for tier in TIERS:
        config.addinivalue_line("markers", f"{tier}: see tests/tiers.py")


def pytest_collection_modifyitems(items):
    for item in items:
        for tier, beginnings in TIERS.items():
            if item.nodeid.startswith(beginnings):
                item.add_marker(tier)


MAPPINGS = Path("/proc/self/maps")
MOST_MAPPINGS = 15_000
"""Of memory, before programs are dropped; Linux ends a process that needs more than 65,530."""


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Drop loaded programs when there are many: each maps several pieces of memory until then.

    XLA crashes, without a message, where it cannot map the next one.
    """
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def no_progress_on_a_busy_machine(monkeypatch):
    """Work that takes long here only because of other work prints no progress among messages."""
    monkeypatch.setattr("extraction.progress.FIRST_SECONDS", 600.0)


@pytest.fixture
def optimised(monkeypatch):
    """Programs are compiled as users have them: new ones here, and all in processes it starts."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def moto_server():
    with running() as server:
        yield server


@pytest.fixture
def moto_s3(moto_server, monkeypatch) -> MotoS3:
    """An empty bucket; clients that are made from the environment use it."""
    for name, value in moto_server.environment.items():
        monkeypatch.setenv(name, value)
    moto_server.empty()
    return moto_server


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory):
    """Folder of the demo checkpoint: 4 layers, hidden size 112, vocabulary 512, 14/2 heads."""
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    make_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def demo_tasks():
    """The demo's ARC-style tasks, as parsed JSON."""
    return make_tasks()
