"""Training steps of autoencoders compile for TPU slices; no TPU is needed (`make test-tpu`)."""

import importlib.util

import pytest

from benchmarks.sae_tpu_compile import BATCH, D_IN, LATENTS, TOPOLOGIES, compile_step
from inference.planner.machines import GIB
from sae.architectures import ARCHITECTURES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: make test-tpu"
)

MEMORY = {"v5e:2x4": 16 * GIB, "v5e:8x8": 16 * GIB}
ROWS_BYTES = BATCH * D_IN * 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_rows_are_all_that_is_gathered(topology, architecture):
    step = compile_step(topology, architecture)
    state = 3 * 2 * D_IN * LATENTS * 4 // step.chips  # encoder and decoder, with two moments each
    assert state < step.bytes < state + 2.5 * GIB < MEMORY[topology]
    assert step.collectives.keys() == {"all-gather", "all-reduce"}
    gathers, largest = step.collectives["all-gather"]
    assert (gathers, largest) == (1, ROWS_BYTES)
    # Of the sums none is longer than a reconstruction: thresholds are found by adding up counts.
    assert step.collectives["all-reduce"][1] <= ROWS_BYTES * (5 if "matry" in architecture else 1)
