"""The mesh, and the layout of the parameters on it.

The mesh has the axes `data` and `model`, of `AxisType.Auto`. Parameters are sharded over `model` as
in Megatron-LM (arXiv 1909.08053): heads and MLP columns on the way out, rows on the way back, with
one sum after each. Axes that `model` does not divide stay whole; KV heads are repeated where that
is exact.

Where `model` does not divide the query heads, sharding the rest would leave attention whole on
every device. If the whole parameters fit on a device, the batch is split over both axes instead:
mesh `8,8` with the 0.5B model, which has 14 query and 2 KV heads, is 64-way data parallel.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_hooks.config import QwenConfig
from qwen_hooks.errors import ModelError
from qwen_hooks.parameters import SHARDED, STACKED, ParamPath, params_count, spec_of

log = logging.getLogger(__name__)

WEIGHTS_SHARE = 0.7
"""Share of a device's memory that parameters may take; the rest is for activations and cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A mesh, and which parts of the model are sharded over its `model` axis.

    Attributes:
        mesh: mesh with the axes `data` and `model`.
        heads: whether query and KV heads are sharded.
        kv_repeats: number of copies of each KV head, so that the axis divides the KV heads.
        mlp: whether MLP columns are sharded.
        vocabulary: whether embedding rows and logits are sharded.
    """

    mesh: Mesh
    heads: bool = False
    kv_repeats: int = 1
    mlp: bool = False
    vocabulary: bool = False

    def config(self, config: QwenConfig) -> QwenConfig:
        """Return the configuration of the model as it is laid out, with repeated KV heads."""
        kv_heads = config.num_key_value_heads * self.kv_repeats
        return dataclasses.replace(config, num_key_value_heads=kv_heads, kv_repeats=self.kv_repeats)

    def param_spec(self, path: ParamPath) -> P:
        """Return the partition of a parameter, given by its path below `params`."""
        axes = [
            "model" if letter in SHARDED and getattr(self, SHARDED[letter]) else None
            for letter in spec_of(path).shape.split()
        ]
        if not any(axes):
            return P()
        return P(None, *axes) if path[0] == STACKED else P(*axes)

    def param_sharding(self, path: ParamPath) -> NamedSharding:
        """Return the sharding of a parameter, given by its path below `params`."""
        return NamedSharding(self.mesh, self.param_spec(path))


def params_bytes(config: QwenConfig, itemsize: int) -> int:
    """Return the bytes of all parameters, at `itemsize` bytes a number."""
    return itemsize * params_count(config)


def layout_for(
    config: QwenConfig,
    mesh_shape: tuple[int, int] | None,
    devices: Sequence[Any],
    device_memory: int,
    itemsize: int,
) -> Layout:
    """Return the layout for a given mesh, or the default: the smallest model axis that fits.

    Args:
        config: configuration of the model.
        mesh_shape: sizes of the data and the model axis; None: the default.
        devices: devices of the mesh.
        device_memory: memory of one device, in bytes.
        itemsize: bytes of a parameter.

    Raises:
        ModelError: the shape does not use all devices (the message lists the shapes that do), or
            the parameters fit on no shape.
    """
    count = len(devices)
    if mesh_shape is None:
        mesh_shape = _default_shape(config, count, device_memory, itemsize)
    data, model = mesh_shape
    if data < 1 or model < 1 or data * model != count:
        fitting = " ".join(f"{count // m},{m}" for m in range(1, count + 1) if count % m == 0)
        raise ModelError(
            f"a mesh of {data},{model} needs {data * model} devices, there are {count};"
            f" what fits: {fitting}"
        )
    whole_fits = params_bytes(config, itemsize) <= WEIGHTS_SHARE * device_memory
    sharded = _sharded(config, model)
    if model > 1 and not sharded["heads"] and whole_fits:
        log.info(
            "mesh %d,%d: %d does not divide %d query and %d KV heads, so the batch takes the model"
            " axis too: %d-way data parallel, parameters whole on each device",
            data, model, model, config.num_attention_heads, config.num_key_value_heads, count,
        )  # fmt: skip
        return Layout(mesh=make_mesh((count, 1), devices))
    if model > 1:
        log.info("mesh %d,%d: over the model axis %s", data, model, _describe(sharded))
    return Layout(mesh=make_mesh((data, model), devices), **sharded)


def _sharded(config: QwenConfig, model: int) -> dict:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    repeats = 1 if kv_heads % model == 0 else model // kv_heads if model % kv_heads == 0 else 0
    # Repeated heads must still split the query heads into equal groups.
    exact = heads % model == 0 and repeats > 0 and heads % (kv_heads * repeats) == 0
    return {
        "heads": model > 1 and exact,
        "kv_repeats": repeats if exact else 1,
        "mlp": model > 1 and config.intermediate_size % model == 0,
        "vocabulary": model > 1 and config.vocab_size % model == 0,
    }


def _describe(sharded: dict) -> str:
    names = [name for name in ("heads", "mlp", "vocabulary") if sharded[name]]
    repeats = sharded["kv_repeats"]
    note = f", each KV head {repeats} times" if repeats > 1 else ""
    return f"sharded: {', '.join(names) or 'nothing'}{note}"


def _default_shape(
    config: QwenConfig, count: int, device_memory: int, itemsize: int
) -> tuple[int, int]:
    need = params_bytes(config, itemsize)
    for model in (m for m in range(1, count + 1) if count % m == 0):
        exact = model == 1 or _sharded(config, model)["heads"]
        if exact and need <= WEIGHTS_SHARE * device_memory * model:
            return count // model, model
    raise ModelError(
        f"{need / 1e9:.1f} GB of parameters fit no mesh of {count} devices with"
        f" {device_memory / 1e9:.1f} GB each"
    )


def make_mesh(shape: tuple[int, int], devices: Sequence[Any]) -> Mesh:
    """Return a mesh of the axes `data` and `model`, with neighbours close on the model axis."""
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
