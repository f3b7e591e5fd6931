"""The distributed command's programs compile for TPU slices and fit them; no TPU is needed.

`make test-tpu` runs these: the TPU compiler comes with `jax[tpu]`, without which they are skipped.
"""

import importlib.util

import pytest

from benchmarks.shapes import SHAPES
from benchmarks.tpu_compile import BATCH_SIZES, NEW_TOKENS, compile_program, memory_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: make test-tpu"
)


@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
@pytest.mark.parametrize("program", NEW_TOKENS)
@pytest.mark.parametrize("shape", ["0.5B", "1.5B", "3B", "7B"])
@pytest.mark.parametrize("topology", ["v5e:8x8", "v6e:8x8"])
def test_program_compiles_and_fits(topology, shape, program, layers):
    chip = topology.partition(":")[0]
    compiled = compile_program(
        SHAPES[shape],
        topology,
        batch_size=BATCH_SIZES[chip, shape],
        new_tokens=NEW_TOKENS[program],
        scan_layers=layers == "scanned",
    )
    assert compiled.bytes < memory_of(chip)
    # What refuses a batch before it is compiled must not let through what does not fit.
    assert compiled.bytes < 1.1 * compiled.estimated
    data, model = compiled.mesh
    assert data * model == 64
    if model == 1:
        assert not compiled.collectives
    else:  # the sums of Megatron's layout are really there
        assert "all-reduce" in compiled.collectives


def test_collectives_are_counted():
    """A program that is partitioned has some, so that finding none means something."""
    compiled = compile_program(
        SHAPES["tiny"], "v5e:2x2", batch_size=2, new_tokens=4, bucket=16, mesh_shape=(2, 2)
    )
    assert compiled.mesh == (2, 2)
    assert sum(compiled.collectives.values()) > 0
