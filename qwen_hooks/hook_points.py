"""Names of the places where activations are captured.

`layer_i` is the residual stream after block i, before the final norm: Hugging Face's output of
`model.layers[i]`, TransformerLens' `blocks.i.hook_resid_post`. (Hugging Face's
`hidden_states[L]` is not `layer_{L-1}`: it has passed the final norm.)
"""

from collections.abc import Sequence

from qwen_hooks.errors import ModelError


def layer_name(layer: int) -> str:
    """The key of block `layer` in the activations, in file names and in metadata."""
    return f"layer_{layer}"


def default_layers(num_layers: int) -> tuple[int, ...]:
    """A quarter, half and three quarters of the way, and the last: 6 12 18 23 of 24 layers."""
    return tuple(sorted({num_layers // 4, num_layers // 2, 3 * num_layers // 4, num_layers - 1}))


def check_layers(layers: Sequence[object] | None, num_layers: int) -> tuple[int, ...]:
    """The layers in ascending order; None means all of them.

    Raises:
        ModelError: a layer is no whole number, out of range or repeated, or there is none.
    """
    if layers is None:
        return tuple(range(num_layers))
    valid = f"this model has layers 0 to {num_layers - 1}"
    if not layers:
        raise ModelError(f"no layer to extract; {valid}")
    chosen: list[int] = []
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise ModelError(f"layer {layer!r} is not a whole number; {valid}")
        if not 0 <= layer < num_layers:
            raise ModelError(f"layer {layer} is out of range; {valid}")
        if layer in chosen:
            raise ModelError(f"layer {layer} is asked for more than once")
        chosen.append(layer)
    return tuple(sorted(chosen))
