"""Several processes as one run: start `jax.distributed`, and decide who runs which units.

A process whose devices hold the whole model axis works alone: it runs its own units on its own
devices and waits for nobody. Only if the model axis is longer than a host's devices do all
processes run every batch together.
"""

import dataclasses
import glob
import importlib.util
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from extraction.run_layout import RUN_FOLDER, SHARED_FILE
from extraction.setting_names import setting
from extraction.storage import Storage
from inference.errors import InputError
from qwen_hooks.attention_backends import choose_attention
from qwen_hooks.config import QwenConfig
from qwen_hooks.errors import ModelError
from qwen_hooks.sharding import Layout, layout_for, make_mesh

log = logging.getLogger(__name__)


SHUTDOWN_TIMEOUT = 7 * 24 * 3600
"""Seconds that a process that has run its units waits for the others to finish."""


def start_distributed(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: int,
) -> None:
    """Join the processes of a run, if there are several, before any device is used.

    The first three arguments are those of `jax.distributed.initialize`. If they are None, JAX finds
    the processes itself on a TPU host, on GKE and under SLURM. The wait is logged before it begins,
    because JAX ends the process without an exception after `timeout` seconds.

    Raises:
        InputError: only some of the three values are given, or they do not fit together.
    """
    told = (coordinator_address, num_processes, process_id)
    if any(value is not None for value in told):
        if coordinator_address is None or num_processes is None or process_id is None:
            raise InputError(
                f"{setting('coordinator_address')}, {setting('num_processes')} and"
                f" {setting('process_id')} go together; give all three or none"
            )
        if not 0 <= process_id < num_processes:
            raise InputError(
                f"{setting('process_id')} must be 0 to {num_processes - 1}, not {process_id}"
            )
        waiting_for = f"{num_processes} processes at {coordinator_address}"
    else:
        cluster = _cluster()
        if cluster is None:
            return
        waiting_for = f"the processes of {cluster}"
    log.info("waiting up to %d s for %s", timeout, waiting_for)
    for handler in logging.getLogger().handlers:
        handler.flush()
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        initialization_timeout=timeout,
        shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
    )
    log.info("process %d of %d", jax.process_index(), jax.process_count())


def _cluster() -> str | None:
    """Return what started several processes here, in words, or None."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return f"SLURM step {os.environ.get('SLURM_STEP_NODELIST', '')}"
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        return f"the TPU slice {os.environ['TPU_WORKER_HOSTNAMES']}"
    has_chips = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    if has_chips and importlib.util.find_spec("libtpu"):
        return "this TPU slice"
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """The worker of this process, and the mesh it runs batches on.

    Attributes:
        layout: layout of the model on the mesh of this process's batches.
        device_memory: bytes of one device.
        number: number of the worker that this process is, or belongs to, from 0.
        count: number of workers, each of which runs its own units.
        writes: whether this process commits the units of its worker.
    """

    layout: Layout
    device_memory: int
    number: int
    count: int
    writes: bool


def plan_workers(config: QwenConfig, mesh_shape: tuple[int, int] | None, itemsize: int) -> Workers:
    """Lay the model out over all devices of all processes, and return this process's worker.

    Args:
        config: configuration of the model.
        mesh_shape: data and model axis of all devices; None: the default.
        itemsize: bytes of a number of the parameters.

    Raises:
        ModelError: the mesh does not match the number of devices, or the model does not fit them.
    """
    local = jax.local_devices()
    memory = device_memory(local[0])
    try:
        layout = layout_for(config, mesh_shape, jax.devices(), memory, itemsize)
    except ModelError as error:
        if mesh_shape is None:
            raise
        raise ModelError(f"{setting('mesh_shape')}: {error}") from None
    model = layout.mesh.shape["model"]
    if len(local) % model == 0:
        return Workers(
            layout=dataclasses.replace(layout, mesh=make_mesh((len(local) // model, model), local)),
            device_memory=memory,
            number=jax.process_index(),
            count=jax.process_count(),
            writes=True,
        )
    log.info("the model axis %d spans hosts of %d devices; they run together", model, len(local))
    return Workers(
        layout=layout,
        device_memory=memory,
        number=0,
        count=1,
        writes=jax.process_index() == 0,
    )


def prompt_attention(requested: str, layout: Layout, config: QwenConfig, dtype: jnp.dtype) -> str:
    """Return the name in `attention_backends.ATTENTION` for a model on a mesh.

    Raises:
        ModelError: the requested attention cannot run there.
        InputError: a kernel is requested on a model axis above 1, where XLA partitions the program
            and cannot partition a kernel.
    """
    if layout.mesh.shape["model"] > 1:
        if requested not in ("auto", "xla"):
            raise InputError(
                f"{setting('attention', requested)} needs a model axis of 1 in"
                f" {setting('mesh_shape')}"
            )
        return "xla"
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", None)
    name = choose_attention(
        requested, device.platform, dtype, config, compute_capability=capability
    )
    log.info("attention of prompts: %s", name)
    return name


def device_memory(device: Any) -> int:
    """Return the bytes of a device; for a CPU device its share of the host's memory."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host // len(jax.local_devices())


def peak_memory() -> int | None:
    """Return the peak bytes of the fullest device here; None if the devices do not say."""
    peaks = [
        stats["peak_bytes_in_use"]
        for stats in (device.memory_stats() for device in jax.local_devices())
        if stats and "peak_bytes_in_use" in stats
    ]
    return max(peaks, default=None)


def check_shared(storage: Storage) -> None:
    """Check that all processes see the same folder or bucket, with a number that process 0 writes.

    All processes wait for each other here.

    Raises:
        InputError: this process does not see the number that process 0 wrote.
    """
    if jax.process_count() == 1:
        return
    nonce = int.from_bytes(os.urandom(3), "big")
    if jax.process_index() == 0:
        storage.replace(SHARED_FILE, str(nonce).encode())
    nonce = int(multihost_utils.broadcast_one_to_all(np.int32(nonce)))
    seen = storage.get(SHARED_FILE) if SHARED_FILE in storage.names(RUN_FOLDER) else b""
    if seen != str(nonce).encode():
        raise InputError(
            f"{storage.address} is not the same folder for process {jax.process_index()} as for"
            f" process 0; use a folder that all processes share, or {setting('gcs_bucket')}"
        )


def wait_for_all(what: str) -> None:
    """Wait until every process of the run has reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
