"""Exact changes of units: what was done to rows before, or to latents after, goes into the weights.

Each function returns another autoencoder; what it leaves unchanged stands in its docstring.
"""

import dataclasses

import numpy as np

from extraction.errors import StoreError
from sae.autoencoder import SparseAutoencoder


def fold_scale(
    sae: SparseAutoencoder, scale: float, target_scale: float | None = None
) -> SparseAutoencoder:
    """Return an autoencoder for `x` that does what `sae` does for `x * scale`.

    `folded(x) == sae(x * scale) / target_scale` and `folded.encode(x) == sae.encode(x * scale)`;
    latents that are multiplied by decoder norms (`rescale_acts_by_decoder_norm`) are divided by
    `target_scale`, as these norms are.

    Args:
        sae: trained on scaled rows.
        scale: number that rows were multiplied by.
        target_scale: number that targets were multiplied by; None: the same.

    Raises:
        StoreError: scales that are not positive, or two where `b_dec` is subtracted from rows.
    """
    target_scale = scale if target_scale is None else target_scale
    for value in (scale, target_scale):
        if not 0 < value < np.inf:
            raise StoreError(f"a scale must be a positive number, not {value}")
    if sae.apply_b_dec_to_input and scale != target_scale:
        raise StoreError("rows and targets with different scales need apply_b_dec_to_input=False")
    if scale == target_scale == 1:
        return sae
    return dataclasses.replace(
        sae,
        W_enc=_times(sae.W_enc, scale),
        W_dec=_times(sae.W_dec, 1 / target_scale),
        b_dec=_times(sae.b_dec, 1 / target_scale),
    )


def fold_mean(
    sae: SparseAutoencoder, mean: np.ndarray, target_mean: np.ndarray | None = None
) -> SparseAutoencoder:
    """Return an autoencoder for `x` that does what `sae` does for `x - mean`.

    `folded.encode(x) == sae.encode(x - mean)` and `folded(x) == sae(x - mean) + target_mean`. One
    for `(x - mean) * scale` needs `fold_scale` first.

    Args:
        sae: trained on centered rows.
        mean: `[d_in]`, which was subtracted from rows.
        target_mean: `[d_out]`, which was subtracted from targets; None: the same.

    Raises:
        StoreError: means of other shapes, or two where `b_dec` is subtracted from rows.
    """
    for name, value, width in (("mean", mean, sae.d_in), ("target_mean", target_mean, sae.d_out)):
        value = mean if value is None else value
        if np.shape(value) != (width,) or not np.isfinite(value).all():
            raise StoreError(f"{name} {list(np.shape(value))} must be finite, [{width}]")
    target_mean = mean if target_mean is None else target_mean
    b_enc = sae.b_enc
    if not sae.apply_b_dec_to_input:
        b_enc = _like(b_enc, b_enc - np.asarray(mean, np.float64) @ sae.W_enc)
    elif not np.array_equal(mean, target_mean):
        raise StoreError("rows and targets with different means need apply_b_dec_to_input=False")
    b_dec = sae.b_dec + np.asarray(target_mean, np.float64)
    return dataclasses.replace(sae, b_enc=b_enc, b_dec=_like(sae.b_dec, b_dec))


def fold_decoder_norm(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Return an autoencoder whose decoder rows have norm 1; zero rows stay zero.

    Reconstructions are unchanged, and latents are multiplied by the norms, so that the latent of a
    zero row is always 0. With `rescale_acts_by_decoder_norm` they were multiplied before.

    Raises:
        StoreError: topk that is not chosen by these norms would choose others.
    """
    if sae.architecture == "topk" and not sae.rescale_acts_by_decoder_norm:
        raise StoreError("norms of a topk decoder cannot be folded: other latents would be chosen")
    norms = np.linalg.norm(sae.W_dec.astype(np.float64), axis=1)
    threshold = sae.threshold
    return dataclasses.replace(
        sae,
        W_enc=_times(sae.W_enc, norms),
        W_dec=_times(sae.W_dec, 1 / np.where(norms > 0, norms, 1)[:, None]),
        b_enc=_times(sae.b_enc, norms),
        threshold=None if threshold is None else _times(threshold, norms),
        rescale_acts_by_decoder_norm=False,
    )


def fold_b_dec(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Return an autoencoder that does the same without subtracting `b_dec` from rows."""
    if not sae.apply_b_dec_to_input:
        return sae
    b_enc = sae.b_enc - sae.b_dec.astype(np.float64) @ sae.W_enc
    return dataclasses.replace(sae, b_enc=_like(sae.b_enc, b_enc), apply_b_dec_to_input=False)


def unfold_b_dec(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Return an autoencoder that does the same and subtracts `b_dec` from rows.

    Raises:
        StoreError: rows and targets of different widths.
    """
    if sae.apply_b_dec_to_input:
        return sae
    if sae.d_in != sae.d_out:
        raise StoreError(f"b_dec of width {sae.d_out} cannot be subtracted from rows of {sae.d_in}")
    b_enc = sae.b_enc + sae.b_dec.astype(np.float64) @ sae.W_enc
    return dataclasses.replace(sae, b_enc=_like(sae.b_enc, b_enc), apply_b_dec_to_input=True)


def _times(array: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    return _like(array, array.astype(np.float64) * factor)


def _like(array: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values.astype(array.dtype)
