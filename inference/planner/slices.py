"""The layout of a model over a TPU slice that is not here."""

import dataclasses

from inference.engine.hosts import Workers
from inference.planner.machines import Machine
from qwen_hooks.config import QwenConfig
from qwen_hooks.sharding import Layout, layout_for, make_mesh


@dataclasses.dataclass(frozen=True)
class _Chip:
    """A stand-in for a device of a slice that is not here."""

    id: int
    process_index: int
    platform: str = "plan"
    device_kind: str = "plan"


def slice_layout(
    config: QwenConfig, machine: Machine, itemsize: int, mesh_shape: tuple[int, int] | None = None
) -> Layout:
    """Return the engine's layout of a model over all chips of a slice; no device is needed.

    Args:
        config: configuration of the model.
        machine: the slice.
        itemsize: bytes of a number of the parameters.
        mesh_shape: data and model axis; None: the default.

    Raises:
        ModelError: the mesh does not match the slice's chips, or the model does not fit them.
    """
    return layout_for(config, mesh_shape, _chips(machine.chips, machine), machine.memory_bytes,
                      itemsize)  # fmt: skip


def default_mesh(config: QwenConfig, machine: Machine, itemsize: int) -> tuple[int, int]:
    """Return the data and model axis that the engine chooses for a model on a slice.

    Raises:
        ModelError: the model fits no mesh of the slice.
    """
    shape = slice_layout(config, machine, itemsize).mesh.shape
    return shape["data"], shape["model"]


def slice_workers(
    config: QwenConfig, machine: Machine, itemsize: int, mesh_shape: tuple[int, int] | None = None
) -> Workers:
    """Return the worker of the slice's first host, as `hosts.plan_workers` does for real devices.

    Raises:
        ModelError: see `slice_layout`.
    """
    layout = slice_layout(config, machine, itemsize, mesh_shape)
    model, local = layout.mesh.shape["model"], machine.chips_per_host
    count = 1
    if local % model == 0:
        mesh = make_mesh((local // model, model), _chips(local, machine))
        layout, count = dataclasses.replace(layout, mesh=mesh), machine.hosts
    return Workers(
        layout=layout, device_memory=machine.memory_bytes, number=0, count=count, writes=True
    )


def _chips(count: int, machine: Machine) -> list[_Chip]:
    return [_Chip(number, number // machine.chips_per_host) for number in range(count)]
