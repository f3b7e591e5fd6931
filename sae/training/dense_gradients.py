"""Losses and gradients with dense products in JAX: for accelerators, and what is sharded.

Thresholds of selections are found by counting, never by sorting: on a mesh whose axis `latent`
splits the latents, a step gathers no candidates, it sums counts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sae.architectures import ARCHITECTURES
from sae.training.outcome import Outcome, Params
from sae.training.settings import SaeSettings


def gradients(
    params: Params,
    rows: Any,
    targets: Any,
    dead: Any,
    coefficient: Any,
    settings: SaeSettings,
    *,
    split: bool = False,
) -> Outcome:
    """Return losses and gradients of a batch; a pure function, to be compiled.

    Args:
        params: see `Params`.
        rows: `[B, d_in]`, scaled.
        targets: `[B, d_out]`; None: the rows themselves.
        dead: `[d_sae]` bool, latents that count as dead.
        coefficient: weight of the architecture's penalty at this step.
        settings: resolved settings.
        split: whether the latents are split over devices.
    """

    def total(params: Params) -> tuple[Any, Any]:
        losses, fired, smallest = _losses(params, rows, targets, dead, coefficient, settings, split)
        return sum(losses.values()), (losses, fired, smallest)

    (_, (losses, fired, smallest)), found = jax.value_and_grad(total, has_aux=True)(params)
    return Outcome(losses, found, fired, smallest)


def _losses(
    params: Params,
    rows: Any,
    targets: Any,
    dead: Any,
    coefficient: Any,
    settings: SaeSettings,
    split: bool,
) -> tuple[dict[str, Any], Any, Any]:
    architecture = ARCHITECTURES[settings.architecture]
    encoder, decoder, b_dec = params["encoder"], params["decoder"], params["b_dec"]
    bias = params["b_enc"]
    if targets is None:
        # (rows - b_dec) @ encoder.T without a gradient of the rows, which would be one more product
        bias = bias - encoder @ b_dec
        targets = rows
    pre = rows @ encoder.T + bias[None]
    norms = jax.lax.stop_gradient(decoder_norms(decoder, settings))[None]
    smallest = jnp.asarray(jnp.inf, pre.dtype)
    if architecture.selection is not None:
        scores = jax.lax.stop_gradient(jax.nn.relu(pre) * norms)
        per_row = architecture.selection == "row"
        count = settings.k if per_row else settings.k * len(rows)
        least = kth_largest(scores, count, axis=1 if per_row else None)
        kept = (scores >= least) & (scores > 0)
        latents = jnp.where(kept, pre, 0)
        smallest = jnp.where(kept, scores, jnp.inf).min()
    else:
        assert architecture.activate is not None
        latents = architecture.activate(params, pre, settings)
    widths = settings.matryoshka_widths if architecture.nested else None
    losses, reconstruction = _reconstruct(latents, decoder, b_dec, targets, widths, split)
    if architecture.penalty is not None:
        losses["penalty"] = architecture.penalty(params, pre, latents, coefficient, settings)
    if architecture.selection is not None and settings.aux_coefficient:
        residual = jax.lax.stop_gradient(targets - reconstruction)
        losses["aux"] = _aux_loss(pre, norms, decoder, residual, dead, settings)
    return losses, (latents > 0).sum(0, dtype=jnp.int32), smallest


def decoder_norms(decoder: Any, settings: SaeSettings) -> Any:
    """Return `[d_sae]`: what scores are multiplied by when the largest latents are chosen."""
    if not settings.rescale_by_decoder_norm:
        return jnp.ones(len(decoder), decoder.dtype)
    return jnp.linalg.norm(decoder, axis=1)


def _reconstruct(
    latents: Any, decoder: Any, b_dec: Any, targets: Any, widths: list[int] | None, split: bool
) -> tuple[dict[str, Any], Any]:
    """Return the losses of the reconstructions, and the whole reconstruction `[B, d_out]`.

    A slice of latents that are split over devices would be moved between them; so there each
    width multiplies all latents, and the others are zero.
    """
    losses: dict[str, Any] = {}
    reconstruction, begin = b_dec[None], 0
    numbers = jnp.arange(len(decoder))[None]
    for width in widths or [len(decoder)]:
        if split and widths:
            inside = jnp.where((numbers >= begin) & (numbers < width), latents, 0)
            reconstruction = reconstruction + inside @ decoder
        else:
            reconstruction = reconstruction + latents[:, begin:width] @ decoder[begin:width]
        error = ((reconstruction - targets) ** 2).sum(-1).mean()
        losses["mse" if width == len(decoder) else f"mse_{width}"] = error
        begin = width
    return losses, reconstruction


def _aux_loss(
    pre: Any, norms: Any, decoder: Any, residual: Any, dead: Any, settings: SaeSettings
) -> Any:
    """Return the loss by which the largest dead latents learn the residual; 0 if none is dead."""

    def of_dead(_: None) -> Any:
        dead_count = dead.sum()
        most = residual.shape[1] // 2
        count = jnp.minimum(most, dead_count)
        scores = jnp.where(dead[None], jax.lax.stop_gradient(pre) * norms, -jnp.inf)
        kept = dead[None] & (scores >= kth_largest(scores, count, axis=1))
        found = jnp.where(kept, pre, 0) @ decoder
        error = ((found - residual) ** 2).sum(-1).mean()
        if settings.aux_normalized:
            return error / ((residual - residual.mean(0, keepdims=True)) ** 2).sum(-1).mean()
        return error * jnp.minimum(dead_count.astype(error.dtype) / most, 1)

    def none(_: None) -> Any:
        return jnp.zeros((), pre.dtype)

    loss = jax.lax.cond(dead.any(), of_dead, none, None)
    return (settings.aux_coefficient * loss).astype(pre.dtype)


def kth_largest(values: Any, count: Any, axis: int | None) -> Any:
    """Return the largest `t` such that at least `count` values are `>= t`, exactly, by counting.

    Floating numbers are ordered as the whole numbers that their bits are, so bisection ends after
    as many counts as there are bits. Each count is a sum, which a mesh adds up.

    Args:
        values: `[B, M]` without NaN.
        count: from 1 to the number of values; a traced scalar may be given.
        axis: 1: in each row, `[B, 1]` is returned; None: of all, a scalar.
    """
    whole = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(values, whole)
    ordered = jnp.where(bits < 0, bits ^ jnp.iinfo(whole).max, bits)
    shape = (len(values), 1) if axis == 1 else ()
    low = jnp.full(shape, jnp.iinfo(whole).min, whole)
    high = jnp.full(shape, jnp.iinfo(whole).max, whole)

    def halve(_: Any, bounds: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without running over
        enough = (ordered >= middle).sum(axis, keepdims=axis == 1) >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, jnp.iinfo(whole).bits, halve, (low, high))
    bits = jnp.where(low < 0, low ^ jnp.iinfo(whole).max, low)
    return jax.lax.bitcast_convert_type(bits, values.dtype)
