"""An autoencoder as an intervention: its reconstruction instead of a hook point's value.

edits = intervene({"layer_12": splice(load("saes/layer_12"))}, config, prompt_lengths)
"""

import numpy as np

from extraction.errors import StoreError
from qwen_hooks.interventions import Splice
from sae.autoencoder import SparseAutoencoder
from sae.folds import fold_decoder_norm


def splice(
    sae: SparseAutoencoder,
    *,
    max_norm: float = np.inf,
    keep_error: bool = False,
    positions: np.ndarray | None = None,
) -> Splice:
    """Return the intervention that puts an autoencoder's reconstruction into the model.

    Args:
        sae: the autoencoder.
        max_norm: largest norm of a row that is reconstructed; others stay as they are.
        keep_error: whether to add what the reconstruction misses.
        positions: int32 `[B, P]`, positions to reconstruct, padded with -1; None: all.

    Raises:
        StoreError: it is a transcoder, whose reconstruction is of another hook point's value.
    """
    if is_transcoder(sae):
        raise StoreError(
            f"{sae} is a transcoder: it reconstructs another value than it reads, and cannot be"
            " spliced in"
        )
    if sae.rescale_acts_by_decoder_norm:  # the same with decoder rows of norm 1
        sae = fold_decoder_norm(sae)
    return Splice(
        W_enc=sae.W_enc,
        W_dec=sae.W_dec,
        b_enc=sae.b_enc,
        b_dec=sae.b_dec,
        threshold=sae.threshold,
        k=sae.k,
        apply_b_dec_to_input=sae.apply_b_dec_to_input,
        max_norm=max_norm,
        keep_error=keep_error,
        positions=positions,
    )


def is_transcoder(sae: SparseAutoencoder) -> bool:
    """Return whether an autoencoder reconstructs the value of another hook point."""
    out = sae.metadata.get("hook_point_out")
    return sae.d_in != sae.d_out or (out is not None and out != sae.metadata.get("hook_point"))
