"""What all tests share: strictness, and small checkpoints that transformers and torch write."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest

from examples.make_demo import make_checkpoint, make_tasks

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


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
