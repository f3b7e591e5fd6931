"""What the TPU compiler makes of the programs: memory, collectives, compile time. Needs no TPU.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu python -m benchmarks.tpu_compile \
        --topologies v5e:8x8 v6e:8x8 --shapes 0.5B 1.5B 3B 7B

`pip install "jax[tpu]"` brings the compiler; `make test-tpu` does that and runs the tests that
compile the same programs. Each is the distributed command's own (`generate_batch`), at the
default mesh of the slice, in bfloat16, at the batch size that the README
recommends for the chip: prefill of prompts of 1,024 tokens with one token predicted, and the same
with 128 generated.
"""

import argparse
import dataclasses
import datetime
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from benchmarks.shapes import SHAPES
from inference.engine.memory import estimate_memory
from inference.engine.programs import GenerationSettings
from inference.planner.compiled import compile_batch, topology_devices
from inference.planner.machines import GIB, machine
from qwen_hooks import QwenConfig, create_model_with_hooks
from qwen_hooks.hook_points import default_layers
from qwen_hooks.sharding import layout_for, make_mesh

BUCKET = 1024
NEW_TOKENS = {"prefill": 1, "decode": 128}
ITEMSIZE = 2  # bfloat16

HOST = "2x2"
"""Chips of one host of a slice."""

BATCH_SIZES = {
    ("v5e", "0.5B"): 128,
    ("v5e", "1.5B"): 64,
    ("v5e", "3B"): 32,
    ("v5e", "7B"): 32,
    ("v6e", "0.5B"): 256,
    ("v6e", "1.5B"): 128,
    ("v6e", "3B"): 64,
    ("v6e", "7B"): 32,
}
"""`--batch_size` that the README recommends for prompts of 1,024 tokens and 128 new ones."""

COLLECTIVE = re.compile(
    r"\s(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledProgram:
    """What the compiler said of a program.

    Attributes:
        mesh: data and model axis of the slice.
        batch_size: rows on one place of the data axis.
        bytes: that the program needs on a chip at its peak, arguments included.
        estimated: the same by `inference.engine.memory`.
        collectives: how many of each kind stand in the program.
        seconds: that the compiler took.
    """

    mesh: tuple[int, int]
    batch_size: int
    bytes: int
    estimated: int
    collectives: dict[str, int]
    seconds: float


def memory_of(chip: str) -> int:
    """Bytes of a chip, `v5e` or `v6e`, that a program may use."""
    return machine(f"{chip}-8").memory_bytes


def compile_program(
    config: QwenConfig,
    topology: str,
    *,
    batch_size: int,
    new_tokens: int,
    bucket: int = BUCKET,
    scan_layers: bool = False,
    mesh_shape: tuple[int, int] | None = None,
    stop_token_ids: tuple[int, ...] = (151_643, 151_645),
) -> CompiledProgram:
    """Compiles `generate_batch` as each process of a slice runs it.

    Args:
        config: of the model.
        topology: as JAX names it, `v5e:8x8`.
        batch_size: rows on one place of the data axis.
        new_tokens: generated at most.
        bucket: length of the prompts.
        scan_layers: as of the model.
        mesh_shape: data and model axis; None: the default for the model and the chip.
        stop_token_ids: that end a row, so that the loop can stop early.
    """
    devices = topology_devices(topology)
    chip = topology.partition(":")[0]
    layout = layout_for(config, mesh_shape, devices, memory_of(chip), ITEMSIZE)
    slice_mesh = layout.mesh.shape["data"], layout.mesh.shape["model"]
    data = slice_mesh[0]
    if slice_mesh[1] > 1:
        # Each host runs its own batches on its own chips (`hosts.plan_workers`); with a model
        # axis of 1 there is nothing between chips, and the slice's program is the host's.
        host = topology_devices(f"{chip}:{HOST}")
        data = len(host) // slice_mesh[1]
        layout = dataclasses.replace(layout, mesh=make_mesh((data, slice_mesh[1]), host))
    layers = default_layers(config.num_hidden_layers)
    model = create_model_with_hooks(
        layout.config(config), layers, jnp.bfloat16, scan_layers=scan_layers
    )

    settings = GenerationSettings(max_new_tokens=new_tokens, stop_token_ids=stop_token_ids)
    compiled = compile_batch(
        model, layout, settings, batch_size=batch_size, bucket=bucket, row_slots=1
    )
    found = COLLECTIVE.findall(compiled.text)
    estimate = estimate_memory(
        config,
        layout,
        batch_size=batch_size,
        bucket=bucket,
        max_new_tokens=new_tokens,
        row_slots=1,
        captured_width=len(layers) * config.hidden_size,
        itemsize=ITEMSIZE,
    )
    return CompiledProgram(
        mesh=slice_mesh,
        batch_size=batch_size,
        bytes=compiled.bytes,
        estimated=estimate.params + estimate.batch,
        collectives={kind: found.count(kind) for kind in sorted(set(found))},
        seconds=compiled.seconds,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topologies", nargs="+", default=["v5e:8x8", "v6e:8x8"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5B", "1.5B", "3B", "7B"])
    parser.add_argument("--layers", nargs="+", choices=["unrolled", "scanned"],
                        default=["unrolled", "scanned"])  # fmt: skip
    options = parser.parse_args(arguments)
    print(f"{datetime.date.today()}, jax {jax.__version__}, prompts of {BUCKET} tokens, bfloat16")
    print(f"{'slice':9}{'shape':6}{'program':9}{'layers':10}{'mesh':>7}{'batch':>6}{'GiB':>7}"
          f"{'of':>7}{'estimate':>10}{'compile s':>11}  collectives")  # fmt: skip
    for topology in options.topologies:
        chip = topology.partition(":")[0]
        for shape in options.shapes:
            for program, new_tokens in NEW_TOKENS.items():
                for kind in options.layers:
                    row = compile_program(
                        SHAPES[shape],
                        topology,
                        batch_size=BATCH_SIZES[chip, shape],
                        new_tokens=new_tokens,
                        scan_layers=kind == "scanned",
                    )
                    collectives = ", ".join(f"{n} {name}" for name, n in row.collectives.items())
                    print(
                        f"{topology:9}{shape:6}{program:9}{kind:10}"
                        f"{f'{row.mesh[0]},{row.mesh[1]}':>7}{row.batch_size:6}"
                        f"{row.bytes / GIB:7.2f}{memory_of(chip) / GIB:7.2f}"
                        f"{row.estimated / GIB:10.2f}{row.seconds:11.1f}  {collectives or 'none'}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
