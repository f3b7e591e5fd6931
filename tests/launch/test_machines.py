"""The table of slices, and that a plan lays models out as the engine does."""

import math

import jax
import pytest

from benchmarks.shapes import SHAPES
from inference.engine.hosts import plan_workers
from inference.errors import InputError
from inference.planner.machines import MACHINES, Machine, machine
from inference.planner.slices import default_mesh, slice_layout, slice_workers
from qwen_hooks.errors import ModelError
from qwen_hooks.sharding import layout_for

GIB = 1 << 30
QWEN = {name: config for name, config in SHAPES.items() if name != "tiny"}


@pytest.mark.parametrize("slice_", MACHINES.values(), ids=MACHINES)
def test_chips_hosts_and_topology_agree(slice_):
    chips = math.prod(map(int, slice_.gke_topology.split("x")))
    assert slice_.hosts * slice_.chips_per_host == slice_.chips == chips
    counted = int(slice_.name.partition("-")[2])
    assert counted == (2 * chips if slice_.generation in ("v4", "v5p") else chips)
    assert slice_.gke_topology.count("x") == (2 if slice_.generation in ("v4", "v5p") else 1)
    assert slice_.chips_per_host in (1, 4, 8)
    assert slice_.hosts == 1 or slice_.chips_per_host == 4


def test_slices_that_everybody_knows():
    assert {name for name in MACHINES if name.startswith("v5l")} == {
        f"v5litepod-{chips}" for chips in (1, 4, 8, 16, 32, 64, 128, 256)
    }
    assert {name for name in MACHINES if name.startswith("v6e")} == {
        f"v6e-{chips}" for chips in (1, 4, 8, 16, 32, 64, 128, 256)
    }
    pod = machine("v5e-64")
    assert (pod.name, pod.hosts, pod.gke_topology) == ("v5litepod-64", 16, "8x8")
    assert (machine("v6e-8").hosts, machine("v6e-16").hosts) == (1, 4)
    assert (machine("v4-8").chips, machine("v5p-32").gke_topology) == (4, "2x2x4")


def test_memory_is_what_a_program_may_use_of_what_is_advertised():
    advertised = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
    for slice_ in MACHINES.values():
        told = advertised[slice_.generation]
        assert 0.95 * told * 1e9 < slice_.memory_bytes < 1.01 * told * GIB


@pytest.mark.parametrize(
    ("name", "nearest"), [("v5e-63", "v5litepod-64"), ("v6e-512", "v6e-"), ("tpu", "v4-")]
)
def test_an_unknown_slice_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(InputError, match=nearest):
        machine(name)


@pytest.mark.parametrize(
    ("shape", "name", "mesh"),
    [
        ("0.5B", "v5e-64", (64, 1)),
        ("3B", "v5e-64", (64, 1)),
        ("7B", "v5e-64", (32, 2)),
        ("7B", "v6e-64", (64, 1)),
        ("7B", "v4-8", (4, 1)),
        ("7B", "v5p-128", (64, 1)),
    ],
)
def test_default_meshes_in_bfloat16(shape, name, mesh):
    """Those of v5e-64 and v6e-64 stand in benchmarks/results/tpu_compile.txt too."""
    assert default_mesh(SHAPES[shape], machine(name), 2) == mesh


def test_a_model_that_fits_no_mesh_is_refused():
    with pytest.raises(ModelError, match="fit no mesh"):
        default_mesh(SHAPES["7B"], machine("v5e-1"), 2)


@pytest.mark.parametrize("config", QWEN.values(), ids=QWEN)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("memory", [4, 16, 32, 95])
def test_meshes_are_those_that_the_engine_chooses(config, itemsize, memory):
    """On as many devices as there are here, with the slice's memory."""
    ours = _slice_like(8, 1, memory)
    try:
        wanted = layout_for(config, None, jax.devices(), memory * GIB, itemsize)
    except ModelError:
        with pytest.raises(ModelError):
            default_mesh(config, ours, itemsize)
        return
    assert default_mesh(config, ours, itemsize) == tuple(wanted.mesh.shape.values())
    layout = slice_layout(config, ours, itemsize)
    for name in ("heads", "kv_repeats", "mlp", "vocabulary"):
        assert getattr(layout, name) == getattr(wanted, name)


@pytest.mark.parametrize("mesh", [None, (8, 1), (2, 4), (4, 2)])
def test_workers_are_those_of_the_engine(mesh, monkeypatch):
    config = SHAPES["0.5B"]
    monkeypatch.setattr("inference.engine.hosts.device_memory", lambda device: 16 * GIB)
    wanted = plan_workers(config, mesh, 4)
    found = slice_workers(config, _slice_like(8, 1, 16), 4, mesh)
    assert found.layout.mesh.shape == wanted.layout.mesh.shape
    assert (found.count, found.number, found.writes) == (wanted.count, 0, True)
    assert found.device_memory == wanted.device_memory


def test_each_host_works_alone_unless_the_model_spans_hosts():
    config, pod = SHAPES["7B"], machine("v5e-64")
    alone = slice_workers(config, pod, 2)
    assert (alone.count, dict(alone.layout.mesh.shape)) == (16, {"data": 2, "model": 2})
    together = slice_workers(SHAPES["3B"], pod, 2, (8, 8))
    assert (together.count, dict(together.layout.mesh.shape)) == (1, {"data": 8, "model": 8})


def _slice_like(chips: int, hosts: int, gib: int) -> Machine:
    return Machine(
        name="devices-of-the-tests",
        generation="v5e",
        chips=chips,
        hosts=hosts,
        chips_per_host=chips // hosts,
        memory_bytes=gib * GIB,
        peak_flops=1e12,
        hbm_bandwidth=1e11,
        runtime_version="none",
        gke_accelerator="none",
        gke_topology="2x4",
    )
