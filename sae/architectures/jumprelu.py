"""JumpReLU (Rajamanoharan et al., arXiv 2407.14435): a threshold for each latent, trained.

The step functions have no gradient; straight-through estimates with a rectangular kernel of a given
bandwidth stand in for it. Thresholds are trained directly, not as logarithms, in the dtype of the
parameters, and kept from falling below zero before each step.
"""

import functools
from typing import Any

from sae.architectures.architecture import Architecture


@functools.cache
def _functions() -> tuple[Any, Any]:
    """Return `jump_relu(pre, threshold, bandwidth)` and `step(pre, threshold, bandwidth)`."""
    import jax
    import jax.numpy as jnp

    def kernel(pre: Any, threshold: Any, bandwidth: float) -> Any:
        inside = jnp.abs((pre - threshold[None]) / bandwidth) < 0.5
        return inside.astype(pre.dtype) / bandwidth

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def jump_relu(pre: Any, threshold: Any, bandwidth: float) -> Any:
        return jnp.where(pre > threshold[None], pre, 0)

    def jump_relu_forward(pre: Any, threshold: Any, bandwidth: float) -> Any:
        return jump_relu(pre, threshold, bandwidth), (pre, threshold)

    def jump_relu_backward(bandwidth: float, saved: Any, gradient: Any) -> Any:
        pre, threshold = saved
        of_threshold = -(threshold[None] * kernel(pre, threshold, bandwidth) * gradient).sum(0)
        return jnp.where(pre > threshold[None], gradient, 0), of_threshold

    jump_relu.defvjp(jump_relu_forward, jump_relu_backward)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def step(pre: Any, threshold: Any, bandwidth: float) -> Any:
        return (pre > threshold[None]).astype(pre.dtype)

    def step_forward(pre: Any, threshold: Any, bandwidth: float) -> Any:
        return step(pre, threshold, bandwidth), (pre, threshold)

    def step_backward(bandwidth: float, saved: Any, gradient: Any) -> Any:
        pre, threshold = saved
        of_threshold = -(kernel(pre, threshold, bandwidth) * gradient).sum(0)
        return jnp.zeros_like(pre), of_threshold

    step.defvjp(step_forward, step_backward)
    return jump_relu, step


def _activate(params: Any, pre: Any, settings: Any) -> Any:
    return _functions()[0](pre, params["threshold"], settings.bandwidth)


def _penalty(params: Any, pre: Any, latents: Any, coefficient: Any, settings: Any) -> Any:
    active = _functions()[1](pre, params["threshold"], settings.bandwidth).sum(-1)
    if settings.sparsity_loss == "quadratic":  # Gemma Scope 2
        target = settings.target_l0
        active = 2 / target * (active - target) ** 2
    return coefficient * active.mean()


JUMPRELU = Architecture(
    name="jumprelu",
    exported_as="jumprelu",
    parameters=lambda settings: {"threshold": settings.init_threshold},
    activate=_activate,
    penalty=_penalty,
    coefficient=lambda settings: (settings.l0_coefficient, settings.l0_warm_up_rows),
    floors={"threshold": 0.0},
)
