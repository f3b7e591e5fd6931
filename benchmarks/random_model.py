"""A model of random parameters that are made on the device: nothing is read, and torch not needed.

For machines that have an accelerator and little else. It runs as the distributed command runs a
checkpoint, on the first device alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from inference.engine.programs import (
    BatchInput,
    GenerationSettings,
    batch_sharding,
    generate_batch,
    last_slots,
)
from qwen_hooks import QwenConfig, QwenModelWithActivations
from qwen_hooks.hook_points import layer_name
from qwen_hooks.model import Params, forward
from qwen_hooks.sharding import make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomModel:
    """Parameters on a device, and ways to run them.

    Attributes:
        config: the shape.
        dtype: of the parameters.
        attention: of prompts.
        scan_layers: the blocks are a loop.
        mesh: of the one device.
        params: on it.
    """

    config: QwenConfig
    dtype: jnp.dtype
    attention: str
    scan_layers: bool
    mesh: Mesh
    params: Params

    @classmethod
    def make(
        cls, config: QwenConfig, dtype: jnp.dtype, attention: str, *, scan_layers: bool
    ) -> "RandomModel":
        """On the first device."""
        mesh = make_mesh((1, 1), jax.devices()[:1])
        module = QwenModelWithActivations(config, (), dtype, attention, scan_layers)
        return cls(
            config=config,
            dtype=dtype,
            attention=attention,
            scan_layers=scan_layers,
            mesh=mesh,
            params=random_params(module, mesh),
        )

    def capturing(self, layers: Sequence[int]) -> QwenModelWithActivations:
        """The module that captures some layers, or none."""
        names = tuple(map(layer_name, layers))
        return QwenModelWithActivations(
            self.config, names, self.dtype, self.attention, self.scan_layers
        )

    def prompts(self, batch: int, slots: int) -> BatchInput:
        """Random tokens, no padding."""
        random = np.random.default_rng(0)
        ids = random.integers(self.config.vocab_size, size=(batch, slots), dtype=np.int32)
        place = functools.partial(jax.device_put, device=batch_sharding(self.mesh))
        lengths = np.full(batch, slots, np.int32)
        return BatchInput(
            input_ids=place(ids),
            lengths=place(lengths),
            numbers=place(np.arange(batch, dtype=np.int32)),
            rows=place(last_slots(lengths)),
        )

    def generate(
        self, prompts: BatchInput, layers: Sequence[int], *, new_tokens: int, calls: int
    ) -> None:
        """The same batch so many times, one behind the other; its rows are brought to the host."""
        settings = GenerationSettings(max_new_tokens=new_tokens)
        model = self.capturing(layers)
        outputs = [
            start_copies(
                generate_batch(model, self.params, prompts, settings=settings, mesh=self.mesh)
            )
            for _ in range(calls)
        ]
        fetch(outputs)

    def all_tokens(self, input_ids: Int[Array, "B S"], layers: Sequence[int]) -> list[Array]:
        """`[B, S, D]` after each of the layers, or, of none, after the last; on the device."""
        return _all_tokens(self.capturing(layers), self.params, input_ids)


@functools.partial(jax.jit, static_argnames="model")
def _all_tokens(
    model: QwenModelWithActivations, params: Params, input_ids: Int[Array, "B S"]
) -> list[Array]:
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1], dtype=jnp.int32), input_ids.shape)
    output = forward(model, params, input_ids, positions)
    return list(output.activations.values()) or [output.residual]


def random_params(model: QwenModelWithActivations, mesh: Mesh) -> Params:
    """Parameters as `model.init` lays them out: norms 1, the rest normal, deviation 0.02.

    Made leaf by leaf, because `init` as one program takes long to compile.
    """
    sharding = NamedSharding(mesh, P())

    @functools.partial(jax.jit, static_argnames="shape", out_shardings=sharding)
    def normal(key: Array, shape: tuple[int, ...]) -> Array:
        return 0.02 * jax.random.normal(key, shape, model.dtype)

    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    params = [
        jnp.ones(leaf.shape, leaf.dtype, device=sharding)
        if "norm" in jax.tree_util.keystr(path)
        else normal(key, leaf.shape)
        for key, (path, leaf) in zip(keys, leaves, strict=True)
    ]
    return jax.block_until_ready(jax.tree.unflatten(structure, params))


def start_copies(arrays: Any) -> Any:
    """The same, on their way to the host."""
    for array in jax.tree.leaves(arrays):
        array.copy_to_host_async()
    return arrays


def fetch(arrays: Any) -> None:
    """Waits until the host has them."""
    for array in jax.tree.leaves(arrays):
        np.asarray(array)
