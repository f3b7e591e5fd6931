"""What the TPU compiler makes of a training step: memory, collectives, FLOPs. Needs no TPU.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python -m benchmarks.sae_tpu_compile

Latents are split over all chips of a slice; rows are read in parts and gathered. `make test-tpu`
installs the compiler and runs the test that compiles the same steps.
"""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from inference.planner.compiled import topology_devices
from inference.planner.machines import GIB
from sae.training.autoencoder_training import AutoencoderTraining
from sae.training.settings import SaeSettings

TOPOLOGIES = ("v5e:2x4", "v5e:8x8")
D_IN, LATENTS, BATCH = 3584, 131_072, 4096

COLLECTIVE = re.compile(
    r"= (\(?[^=]*?)\s(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)
_ARRAY = re.compile(r"(f32|bf16|s32|u32|pred|s64|f64)\[([\d,]*)\]")
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "s64": 8, "f64": 8}


class CompiledStep(NamedTuple):
    """What the compiler said of a step.

    Attributes:
        chips: number of chips.
        bytes: bytes that the step needs on a chip at its peak, arguments included.
        flops: floating-point operations of one chip.
        collectives: number of each kind, and bytes of the largest result of that kind.
    """

    chips: int
    bytes: int
    flops: float
    collectives: dict[str, tuple[int, int]]


def compile_step(
    topology: str,
    architecture: str,
    *,
    d_in: int = D_IN,
    latents: int = LATENTS,
    batch_size: int = BATCH,
) -> CompiledStep:
    """Compile a training step for a slice.

    Args:
        topology: JAX's name of the slice.
        architecture: a name in `ARCHITECTURES`.
        d_in: width of the rows.
        latents: number of latents.
        batch_size: rows of a step.
    """
    devices = topology_devices(topology)
    mesh = jax.sharding.Mesh(np.array(devices).reshape(1, -1), ("data", "latent"))
    settings = SaeSettings(architecture=architecture, d_sae=str(latents)).resolved(d_in)
    training = AutoencoderTraining(settings, d_in, None, batch_size, 1000, mesh=mesh)
    compiled = training.lowered().compile()
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    found: Counter[str] = Counter()
    largest: Counter[str] = Counter()
    for shapes, kind in COLLECTIVE.findall(text):
        found[kind] += 1
        for dtype, dimensions in _ARRAY.findall(shapes):
            count = int(np.prod([int(n) for n in dimensions.split(",") if n], dtype=np.int64))
            largest[kind] = max(largest[kind], count * _BYTES[dtype])
    return CompiledStep(
        chips=len(devices),
        bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
        flops=float((compiled.cost_analysis() or {}).get("flops", float("nan"))),
        collectives={kind: (count, largest[kind]) for kind, count in found.items()},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, and print a line for each slice and architecture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--architectures", nargs="+", default=["batch_topk", "topk", "jumprelu"])
    options = parser.parse_args(arguments)
    print(f"width {D_IN}, {LATENTS} latents, batches of {BATCH}, float32")
    for topology in options.topologies:
        for architecture in options.architectures:
            step = compile_step(topology, architecture)
            told = ", ".join(
                f"{count} {kind} (largest {size / 2**20:.1f} MiB)"
                for kind, (count, size) in sorted(step.collectives.items())
            )
            print(
                f"{topology:9}{architecture:12}{step.bytes / GIB:6.2f} GiB a chip,"
                f" {step.flops / 1e12:5.2f} TFLOP a chip; {told}",
                flush=True,
            )


if __name__ == "__main__":
    main()
