"""The memory that a batch needs on a chip, from the TPU compiler. Needs libtpu, but no TPU.

`pip install "jax[tpu]"` installs the compiler. It compiles the distributed command's own program
for the chips of a named topology, and reports the program's memory.
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
"""Part of the TPU compiler's error for a program that does not fit a chip."""

HOST_TOPOLOGIES = {1: "1x1", 4: "2x2", 8: "2x4"}
"""Topology of one host's chips in 2D generations; in 3D ones it is 2x2x1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledBatch:
    """A compiled program.

    Attributes:
        bytes: peak bytes on a chip, including the arguments.
        text: the program as text of XLA.
        seconds: seconds that the compiler took.
    """

    bytes: int
    text: str
    seconds: float


def has_compiler() -> bool:
    """Return whether the TPU compiler is installed here."""
    return importlib.util.find_spec("libtpu") is not None


def compile_job(job: Job, slice_: Machine, bucket: int) -> CompiledBatch | None:
    """Compile a job's program for one bucket, as each process of a slice runs it.

    Args:
        job: job planned for the slice.
        slice_: the slice.
        bucket: padded prompt length.

    Returns:
        None if the compiler fails; the reason is logged.

    Raises:
        InputError: the program does not fit a chip.
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
            log.warning("the TPU compiler failed, so memory is estimated: %s", first_line(error))
            return None
        raise InputError(
            f"a batch of {size} prompts of up to {bucket} tokens does not fit a chip of"
            f" {slice_.name}, which has {slice_.memory_bytes / GIB:.2f} GiB, says the TPU compiler;"
            f" choose a smaller {setting('batch_size')} or a larger model axis in"
            f" {setting('mesh_shape')}"
        ) from None


def topology_devices(name: str) -> list[Any]:
    """Return the devices of a topology, none of which need be here.

    Args:
        name: JAX's name of the topology, such as `v5e:8x8`.
    """
    # Otherwise libtpu queries the metadata server, which exists only on Google's machines.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    generation, _, shape = name.partition(":")
    options: dict[str, Any] = {}
    if generation == "v4":  # two cores as one device, as JAX shows a real chip
        options["chip_config_name"] = "megacore"
    if shape == "1x1":  # libtpu assumes hosts of 2x2
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
    """Compile `generate_batch`.

    Args:
        model: model for the layout.
        layout: layout with a mesh of a topology's devices.
        settings: settings of the program.
        batch_size: sequences for one index of the data axis.
        bucket: padded prompt length.
        row_slots: captured slots of a sequence.
        packed: whether several samples share a sequence.
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
        # JAX cannot read programs for absent devices from its compilation cache, and warns.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
        compiled = lowered.compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    assert memory is not None  # the TPU compiler always reports it
    return CompiledBatch(
        bytes=memory.peak_memory_in_bytes, text=compiled.as_text() or "", seconds=seconds
    )


def abstract_params(model: QwenModelWithActivations, layout: Layout) -> Any:
    """Return shapes and shardings of the parameters, without allocating any."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))

    def with_sharding(path: Any, leaf: Any) -> Any:
        names = tuple(key.key for key in path[1:])  # without `params`
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.param_sharding(names))

    return jax.tree_util.tree_map_with_path(with_sharding, shapes)
