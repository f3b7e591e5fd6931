"""ReLU with an L1 loss weighted by decoder norms (Anthropic, April 2024)."""

from typing import Any

from sae.architectures.architecture import Architecture


def _activate(params: Any, pre: Any, settings: Any) -> Any:
    import jax

    return jax.nn.relu(pre)


def _penalty(params: Any, pre: Any, latents: Any, coefficient: Any, settings: Any) -> Any:
    import jax.numpy as jnp

    norms = jnp.linalg.norm(params["decoder"], axis=1)
    return coefficient * (latents * norms[None]).sum(-1).mean()


STANDARD = Architecture(
    name="standard",
    exported_as="standard",
    activate=_activate,
    penalty=_penalty,
    coefficient=lambda settings: (settings.l1_coefficient, settings.l1_warm_up_rows),
)
