"""A trained autoencoder as the files have it: for unscaled rows, in SAELens' architectures."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae.architectures import ARCHITECTURES
from sae.autoencoder import SparseAutoencoder
from sae.folds import fold_decoder_norm, fold_scale
from sae.training.outcome import Params
from sae.training.settings import SaeSettings


def exported(
    params: Params,
    threshold: float,
    settings: SaeSettings,
    *,
    scales: tuple[float, float] = (1.0, 1.0),
    transcoder: bool = False,
    metadata: Mapping[str, Any],
) -> SparseAutoencoder:
    """Return an autoencoder that does to unscaled rows what the trained one does to scaled ones.

    Args:
        params: parameters after the last step, see `Params`; float32 or float64.
        threshold: running average of the smallest active score.
        settings: resolved settings.
        scales: numbers that rows and targets were multiplied by.
        transcoder: whether targets were other than the rows.
        metadata: kept in the autoencoder.
    """
    architecture = ARCHITECTURES[settings.architecture]
    thresholds = params.get("threshold")
    scored = bool(architecture.selection and settings.rescale_by_decoder_norm)
    if architecture.selection == "batch":
        thresholds = np.full_like(params["b_enc"], threshold)
        if scored:  # scores are latents times decoder norms
            norms = np.linalg.norm(params["decoder"], axis=1)
            thresholds /= np.maximum(norms, np.finfo(norms.dtype).tiny)
    found = SparseAutoencoder(
        architecture=architecture.exported_as,
        W_enc=np.ascontiguousarray(params["encoder"].T),
        W_dec=np.array(params["decoder"]),
        b_enc=np.array(params["b_enc"]),
        b_dec=np.array(params["b_dec"]),
        threshold=None if thresholds is None else np.array(thresholds),
        k=settings.k if architecture.exported_as == "topk" else None,
        apply_b_dec_to_input=not transcoder,
        rescale_acts_by_decoder_norm=scored and architecture.exported_as == "topk",
        metadata=metadata,
    )
    found = fold_scale(found, scales[0], scales[1])
    return fold_decoder_norm(found) if scored else found
