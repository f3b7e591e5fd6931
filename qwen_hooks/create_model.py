"""Build a model that captures its activations at the hook points that a user names."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike

from qwen_hooks.attention_backends import check_attention
from qwen_hooks.config import QwenConfig
from qwen_hooks.hook_points import check_layers, layer_name, select
from qwen_hooks.model import QwenModelWithActivations


def create_model_with_hooks(
    config: QwenConfig,
    layers_to_extract: Sequence[int] | None = None,
    dtype: DTypeLike = jnp.float32,
    attention: str = "xla",
    scan_layers: bool = False,
    hook_points: str | Sequence[object] | None = None,
) -> QwenModelWithActivations:
    """Return a model that captures its activations at some hook points.

    Args:
        config: configuration of the model.
        layers_to_extract: numbers of blocks, from 0, whose outputs are captured as `layer_i`. None:
            all blocks, or none if `hook_points` is given.
        dtype: dtype of the parameters that `model.init` makes; loaded parameters keep their own.
        attention: attention kernel for prompts; `attention_backends.choose_attention` returns the
            best one for a device.
        scan_layers: run the blocks as a loop, which compiles faster. The parameters must be loaded
            or made for it (`load_params(..., scan_layers=True)`).
        hook_points: names, aliases or patterns (`layers.*.mlp`) of further hook points to capture;
            see `hook_points.select`.

    Raises:
        ModelError: a layer is out of range, repeated or no whole number; or there is no such hook
            point or attention kernel.
    """
    names: list[str] = []
    if layers_to_extract is not None or hook_points is None:
        names += map(layer_name, check_layers(layers_to_extract, config.num_hidden_layers))
    if hook_points is not None:
        names += select(hook_points, config)
    return QwenModelWithActivations(
        config, select(names, config), dtype, check_attention(attention), scan_layers
    )
