"""What all tests share: strictness, and small checkpoints that transformers and torch write."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Workers and the commands that tests start compile the same programs; each is compiled once.
    CACHE = tempfile.mkdtemp(prefix="compiled-for-tests-")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Compiling is most of the tests' time. `optimised` is for those that compute much, and
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 before `make test` for all of them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import pytest

from examples.make_demo import make_checkpoint, make_tasks

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A busy machine is no fault of the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def optimised(monkeypatch):
    """Programs are compiled as users have them: new ones here, and all in processes it starts."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


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
