"""Weights that cannot write along some directions of the residual stream.

    params, config = orthogonalize(params, direction, config)

What the embeddings, the attention outputs and the MLP outputs add to the residual stream then has
no part along the directions, at every position: as if `ProjectOut` were applied to each of them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen_hooks.config import QwenConfig
from qwen_hooks.errors import ModelError
from qwen_hooks.model import Params
from qwen_hooks.operation_checks import check_numbers
from qwen_hooks.parameters import EMBEDDING, HEAD, PARAMETERS, spec_of


def orthogonalize(
    params: Params, directions: np.ndarray | jax.Array, config: QwenConfig
) -> tuple[Params, QwenConfig]:
    """Return parameters without the part along some directions, and their configuration.

    The unembedding stays as it is. Where it is the transposed embedding, it becomes a parameter of
    its own, `lm_head`, and the configuration says so.

    Args:
        params: the full `{'params': ...}`, unrolled or stacked; it is not changed.
        directions: `[D]`, or `[r, D]`, linearly independent, of any length.
        config: configuration of the model.

    Raises:
        ModelError: a direction has another width, is not finite or 0, or the model has norms
            between its outputs and the residual stream (Gemma 2), which would bring the directions
            back.
    """
    if config.post_norms:
        raise ModelError(
            "a model with norms after attention and MLP cannot be orthogonalized: the norms'"
            " weights bring the direction back; use ProjectOut"
        )
    given = np.asarray(directions)
    rows = given[None] if given.ndim == 1 else given
    check_numbers(
        "orthogonalize", {"apply_to": "all", "directions": rows, "strength": 1.0, "positions": None}
    )
    if rows.shape[-1] != config.hidden_size:
        raise ModelError(
            f"directions have shape {list(given.shape)}; the residual stream has"
            f" {config.hidden_size} numbers"
        )
    basis = np.linalg.qr(rows.astype(np.float64).T)[0].astype(np.float32)  # [D, r]

    def without(path: tuple[Any, ...], value: Any) -> Any:
        if not spec_of(tuple(entry.key for entry in path[1:])).writes_residual:
            return value
        wide = value.astype(jnp.float32)
        part = jnp.einsum("...d,dr,er->...e", wide, basis, basis, precision="highest")
        return (wide - part).astype(value.dtype)

    changed = jax.tree_util.tree_map_with_path(without, params)
    if config.tie_word_embeddings:
        paths = {spec.tensor: spec.path() for spec in PARAMETERS}
        embedding: Any = params["params"]
        for name in paths[EMBEDDING]:
            embedding = embedding[name]
        head: Any = embedding.T
        for name in reversed(paths[HEAD]):
            head = {name: head}
        changed = {"params": {**changed["params"], **head}}
        config = dataclasses.replace(config, tie_word_embeddings=False)
    return changed, config
