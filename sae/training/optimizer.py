"""Adam with a schedule, clipping, and decoder rows of norm 1; counters of dead latents."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sae.architectures import ARCHITECTURES
from sae.training.outcome import Params
from sae.training.settings import SaeSettings

CLIP_EPSILON = 1e-6
"""Added to the norm of all gradients, as torch's `clip_grad_norm_` does."""

MOST_ROWS = 2**31 - 1
"""Rows without firing are counted up to here, the largest int32."""


def learning_rate(settings: SaeSettings, batch_size: int, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step, from 0.

    It grows linearly over the warm-up, and falls linearly to zero over the last part.
    """
    peak = settings.learning_rate or 0.0
    warm_up = -(-(settings.warm_up_rows or 0) // batch_size)
    decay = round(settings.decay_fraction * steps)

    def rate(step: Any) -> Any:
        step = jnp.asarray(step).astype(float)
        grown = jnp.minimum(1.0, (step + 1) / max(warm_up, 1))
        left = jnp.clip((steps - step) / max(decay, 1), 0.0, 1.0) if decay else 1.0
        return peak * grown * left

    return rate


def coefficient(settings: SaeSettings, batch_size: int, step: int) -> float:
    """Return the weight of the architecture's penalty at a step, from 0."""
    told = ARCHITECTURES[settings.architecture].coefficient
    if told is None:
        return 0.0
    value, warm_up_rows = told(settings)
    warm_up = -(-warm_up_rows // batch_size)
    return value * min(1.0, step / warm_up) if warm_up else value


def make_optimizer(
    settings: SaeSettings, batch_size: int, steps: int
) -> optax.GradientTransformation:
    """Return the optimiser of a training of so many steps."""
    return optax.chain(
        optax.stateless(lambda gradients, _: _clipped(gradients, settings.clip_norm)),
        optax.scale_by_adam(b1=settings.adam_b1 or 0.0, b2=0.999, eps=1e-8),
        optax.scale_by_learning_rate(learning_rate(settings, batch_size, steps)),
    )


def _clipped(gradients: Any, most: float) -> Any:
    factor = jnp.minimum(1.0, most / (optax.tree.norm(gradients) + CLIP_EPSILON))
    return jax.tree.map(lambda gradient: (gradient * factor).astype(gradient.dtype), gradients)


def initial_state(params: Params, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """Return the state of a training before its first step: a tree of arrays.

    `params`, `optimizer`, `rows_since_fired [d_sae]` and `fired_rows [d_sae]` int32, and
    `threshold`, the running average of the smallest active score.
    """
    latents = len(params["encoder"])
    return {
        "params": dict(params),
        "optimizer": optimizer.init(dict(params)),
        "rows_since_fired": jnp.zeros(latents, jnp.int32),
        "fired_rows": jnp.zeros(latents, jnp.int32),
        "threshold": jnp.zeros((), params["encoder"].dtype),
    }


def advance(
    state: dict[str, Any],
    gradients: Any,
    fired: Any,
    smallest: Any,
    rows: int,
    settings: SaeSettings,
    optimizer: optax.GradientTransformation,
) -> dict[str, Any]:
    """Return the state after a step; a pure function, to be compiled.

    Args:
        state: see `initial_state`.
        gradients: by parameter.
        fired: `[d_sae]` int32, rows in which each latent was active.
        smallest: smallest active score; infinite if no latent was active.
        rows: rows of the batch.
        settings: resolved settings.
        optimizer: see `make_optimizer`.
    """
    params: Any = state["params"]
    if settings.decoder_norm == "unit":  # a gradient along a row would only change its norm
        decoder, gradient = params["decoder"], gradients["decoder"]
        along = (decoder * gradient).sum(1, keepdims=True)
        gradients = {**gradients, "decoder": gradient - along * decoder}
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to whole powers
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], params)
    params = optax.apply_updates(params, updates)
    if settings.decoder_norm == "unit":
        norms = jnp.linalg.norm(params["decoder"], axis=1, keepdims=True)
        params["decoder"] = params["decoder"] / norms
    for name, least in ARCHITECTURES[settings.architecture].floors.items():
        params[name] = jnp.maximum(params[name], least)
    waiting = state["rows_since_fired"]
    waiting = jnp.where(waiting > MOST_ROWS - rows, MOST_ROWS, waiting + rows)
    rate, threshold = settings.threshold_rate or 0.0, state["threshold"]
    return {
        "params": params,
        "optimizer": optimizer_state,
        "rows_since_fired": jnp.where(fired > 0, 0, waiting),
        "fired_rows": state["fired_rows"] + fired,
        "threshold": jnp.where(
            jnp.isfinite(smallest), (1 - rate) * threshold + rate * smallest, threshold
        ).astype(threshold.dtype),
    }


def is_dead(state: dict[str, Any], settings: SaeSettings) -> Any:
    """Return `[d_sae]` bool: latents that did not fire for `dead_rows` rows."""
    return state["rows_since_fired"] > settings.dead_rows
