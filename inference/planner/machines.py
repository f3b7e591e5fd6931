"""TPU slices that can be rented: chips, hosts, memory, rates.

From Google's public documentation:

    https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e              chips, topologies
    https://cloud.google.com/tpu/docs/runtimes                          `runtime_version`
    https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus  `gke_*`

A host here is a virtual machine, which runs one process. A v5e or v6e slice of up to eight chips is
one virtual machine; in larger slices, and in all v4 and v5p slices, each virtual machine has four
chips. (Google's v5e page counts physical hosts, of eight chips, so its numbers are half of these.)

v4 and v5p slices are named after TensorCores, two of which make a chip and one JAX device: `v4-8`
has four chips and four devices.

Google states memory rounded, as 16, 32 or 95 GB. `memory_bytes` is the exact limit that the TPU
compiler of libtpu 0.0.42 names when a program does not fit.
"""

import dataclasses
import difflib
import math

from inference.errors import InputError

GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """A TPU slice.

    Attributes:
        name: accelerator type, as `gcloud compute tpus` takes it.
        generation: v4, v5e, v5p or v6e.
        chips: number of chips of the slice; each is one JAX device.
        hosts: number of virtual machines, each with one process.
        chips_per_host: `chips / hosts`.
        memory_bytes: bytes of a chip that a program may use.
        peak_flops: peak bfloat16 operations per second of a chip.
        hbm_bandwidth: bytes per second of a chip's memory.
        runtime_version: TPU software version, as `gcloud` takes it.
        gke_accelerator: value of the label `cloud.google.com/gke-tpu-accelerator`.
        gke_topology: value of the label `cloud.google.com/gke-tpu-topology`.
    """

    name: str
    generation: str
    chips: int
    hosts: int
    chips_per_host: int
    memory_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    runtime_version: str
    gke_accelerator: str
    gke_topology: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Generation:
    """Properties that all slices of a generation share; slice names count `cores` for each chip."""

    name: str
    prefix: str
    cores: int
    largest_host: int
    memory_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    runtime_version: str
    gke_accelerator: str
    topologies: tuple[str, ...]

    def machines(self) -> list[Machine]:
        """Return the slices of the generation."""
        found = []
        for topology in self.topologies:
            chips = math.prod(map(int, topology.split("x")))
            chips_per_host = chips if chips <= self.largest_host else 4
            machine = Machine(
                name=f"{self.prefix}-{chips * self.cores}",
                generation=self.name,
                chips=chips,
                hosts=chips // chips_per_host,
                chips_per_host=chips_per_host,
                memory_bytes=self.memory_bytes,
                peak_flops=self.peak_flops,
                hbm_bandwidth=self.hbm_bandwidth,
                runtime_version=self.runtime_version,
                gke_accelerator=self.gke_accelerator,
                gke_topology=topology,
            )
            found.append(machine)
        return found


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
)  # fmt: skip

_GENERATIONS = (
    _Generation(
        name="v4",
        prefix="v4",
        cores=2,
        largest_host=4,
        memory_bytes=int(30.75 * GIB),
        peak_flops=275e12,
        hbm_bandwidth=1228e9,
        runtime_version="tpu-ubuntu2204-base",
        gke_accelerator="tpu-v4-podslice",
        topologies=_CUBES,
    ),
    _Generation(
        name="v5e",
        prefix="v5litepod",
        cores=1,
        largest_host=8,
        memory_bytes=int(15.75 * GIB),
        peak_flops=197e12,
        hbm_bandwidth=819e9,
        runtime_version="v2-alpha-tpuv5-lite",
        gke_accelerator="tpu-v5-lite-podslice",
        topologies=_FLAT,
    ),
    _Generation(
        name="v5p",
        prefix="v5p",
        cores=2,
        largest_host=4,
        memory_bytes=int(95.74 * GIB),
        peak_flops=459e12,
        hbm_bandwidth=2765e9,
        runtime_version="v2-alpha-tpuv5",
        gke_accelerator="tpu-v5p-slice",
        topologies=_CUBES,
    ),
    _Generation(
        name="v6e",
        prefix="v6e",
        cores=1,
        largest_host=8,
        memory_bytes=int(31.25 * GIB),
        peak_flops=918e12,
        hbm_bandwidth=1640e9,
        runtime_version="v2-alpha-tpuv6e",
        gke_accelerator="tpu-v6e-slice",
        topologies=_FLAT,
    ),
)

MACHINES: dict[str, Machine] = {
    machine.name: machine for generation in _GENERATIONS for machine in generation.machines()
}
"""Slices by accelerator type; v4 and v5p exist in further shapes."""


def machine(name: str) -> Machine:
    """Return the slice with a name; `v5e-64` means `v5litepod-64`.

    Raises:
        InputError: no such slice is known; the message names similar ones.
    """
    wanted = name.strip().lower()
    if wanted.startswith("v5e-"):
        wanted = "v5litepod-" + wanted.removeprefix("v5e-")
    if wanted in MACHINES:
        return MACHINES[wanted]
    near = difflib.get_close_matches(wanted, MACHINES, n=4, cutoff=0.5) or sorted(MACHINES)
    raise InputError(f"{name!r} is not a known TPU slice; did you mean {', '.join(near)}?")
