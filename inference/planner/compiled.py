"""What a batch needs on a chip, as the TPU compiler says. It needs libtpu, but no TPU.

`pip install "jax[tpu]"` brings the compiler. It knows the chips of a topology by name, takes the
distributed command's own program for them, and tells the memory of the whole of it.
"""

import dataclasses
import importlib.util
import logging
import os
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from extraction.errors import first_line
from extraction.setting_names import setting
from inference.engine.job import Job
from inference.engine.programs import BatchInput, GenerationSettings, batch_sharding, generate_batch
from inference.errors import InputError
from inference.planner.machines import GIB, Machine
from qwen_hooks import QwenModelWithActivations
from qwen_hooks.sharding import Layout, make_mesh

log = logging.getLogger(__name__)

OUT_OF_MEMORY = "Ran out of memory in memory space hbm"
"""What the TPU compiler says of a program that does not fit a chip."""

HOST_TOPOLOGIES = {1: "1x1", 4: "2x2", 8: "2x4"}
"""Of the chips of one host, in generations whose chips lie flat; in the others it is 2x2x1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledBatch:
    """A program that has been compiled.

    Attributes:
        bytes: that it needs on a chip at its peak, arguments included.
        text: the program, as XLA writes it.
        seconds: that the compiler took.
    """

    bytes: int
    text: str
    seconds: float


def has_compiler() -> bool:
    """Whether the TPU compiler is installed here."""
    return importlib.util.find_spec("libtpu") is not None


def compile_job(job: Job, slice_: Machine, bucket: int) -> CompiledBatch | None:
    """Compiles a job's program for one bucket, as each process of a slice runs it.

    Args:
        job: planned for the slice.
        slice_: it.
        bucket: padded prompt length.

    Returns:
        None if the compiler fails, of which it is logged why.

    Raises:
        InputError: the compiler says that it does not fit a chip.
    """
    axes = job.workers.layout.mesh.shape
    topology = slice_.gke_topology
    if axes["data"] * axes["model"] == slice_.chips_per_host:
        is_flat = topology.count("x") == 1
        topology = HOST_TOPOLOGIES[slice_.chips_per_host] if is_flat else "2x2x1"
    size = job.plan.batch_size(bucket)
    try:
        devices = topology_devices(f"{slice_.generation}:{topology}")
        mesh = make_mesh((axes["data"], axes["model"]), devices)
        return compile_batch(
            job.model(job.attention),
            dataclasses.replace(job.workers.layout, mesh=mesh),
            job.generation,
            batch_size=size,
            bucket=bucket,
            row_slots=job.row_slots[bucket],
            packed=bucket == job.plan.pack_length,
        )
    except (RuntimeError, ValueError) as error:  # JAX's own errors are RuntimeErrors
        if OUT_OF_MEMORY not in str(error):
            log.warning("the TPU compiler says nothing of memory: %s", first_line(error))
            return None
        raise InputError(
            f"a batch of {size} prompts of up to {bucket} tokens does not fit a chip of"
            f" {slice_.name}, which has {slice_.memory_bytes / GIB:.2f} GiB, says the TPU compiler;"
            f" choose a smaller {setting('batch_size')} or a larger model axis in"
            f" {setting('mesh_shape')}"
        ) from None


def topology_devices(name: str) -> list[Any]:
    """Devices of a topology that need not be here.

    Args:
        name: as JAX has it, `v5e:8x8`.
    """
    # Else libtpu asks the metadata server of Google's machines, which is not there elsewhere.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    generation, _, shape = name.partition(":")
    options: dict[str, Any] = {}
    if generation == "v4":  # its two cores as one device, as JAX has them where there is a chip
        options["chip_config_name"] = "megacore"
    if shape == "1x1":  # libtpu takes hosts for 2x2
        options["chips_per_host_bounds"] = (1, 1, 1)
    return list(topologies.get_topology_desc(name, "tpu", **options).devices)


def compile_batch(
    model: QwenModelWithActivations,
    layout: Layout,
    settings: GenerationSettings,
    *,
    batch_size: int,
    bucket: int,
    row_slots: int,
    packed: bool = False,
) -> CompiledBatch:
    """Compiles `generate_batch`.

    Args:
        model: as the layout wants it.
        layout: with a mesh of a topology's devices.
        settings: of the program.
        batch_size: rows on one place of the data axis.
        bucket: padded prompt length.
        row_slots: slots of a row that are captured.
        packed: several samples share a row.
    """
    rows = batch_size * layout.mesh.shape["data"]

    def spread(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(layout.mesh))

    batch = {
        "input_ids": spread(rows, bucket),
        "lengths": spread(rows),
        "numbers": spread(rows),
        "rows": spread(rows, row_slots),
    }
    if packed:
        batch["starts"] = spread(rows, bucket)

    @jax.jit
    def program(params: Any, batch: dict[str, jax.Array]) -> Any:
        return generate_batch(
            model, params, BatchInput(**batch), settings=settings, mesh=layout.mesh
        )

    lowered = program.lower(abstract_params(model, layout), batch)
    started = time.perf_counter()
    with warnings.catch_warnings():
        # Where JAX keeps compiled programs, it cannot read those for devices that are not here.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
        compiled = lowered.compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    assert memory is not None  # the TPU compiler tells it
    return CompiledBatch(
        bytes=memory.peak_memory_in_bytes, text=compiled.as_text() or "", seconds=seconds
    )


def abstract_params(model: QwenModelWithActivations, layout: Layout) -> Any:
    """Shapes and shardings of the parameters, none of them made."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))

    def with_sharding(path: Any, leaf: Any) -> Any:
        names = tuple(key.key for key in path[1:])  # without `params`
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.param_sharding(names))

    return jax.tree_util.tree_map_with_path(with_sharding, shapes)
