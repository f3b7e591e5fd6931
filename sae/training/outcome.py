"""What a step's gradients come with, on either path."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Params = Mapping[str, Any]
"""`encoder [d_sae, d_in]`, `decoder [d_sae, d_out]`, `b_enc [d_sae]`, `b_dec [d_out]`, and those of
the architecture, `[d_sae]`. Encoder and decoder both have a row for each latent, so that a latent's
numbers lie together, are sharded together, and sparse products need no transposed copy."""


class Outcome(NamedTuple):
    """Losses, gradients and counts of one batch.

    Attributes:
        losses: `mse` (summed over the width, mean over rows), and those of the architecture.
        gradients: of the sum of the losses, by parameter.
        fired: `[d_sae]` int32, rows in which each latent is active.
        smallest: smallest active score of the batch; infinite if no latent is active.
    """

    losses: dict[str, Any]
    gradients: dict[str, Any]
    fired: Any
    smallest: Any
