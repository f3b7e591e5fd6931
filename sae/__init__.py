"""Sparse autoencoders of activations: train, evaluate, score latents, load and convert.

Importing the package imports nothing else; a name is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.autoencoder import SparseAutoencoder
    from sae.files import load, save
    from sae.folds import fold_b_dec, fold_decoder_norm, fold_mean, fold_scale
    from sae.scores.of_rows import latent_scores, latent_sums
    from sae.splicing import splice
    from sae.training.python_api import train

_MODULES = {
    "SparseAutoencoder": "autoencoder",
    "fold_b_dec": "folds",
    "fold_decoder_norm": "folds",
    "fold_mean": "folds",
    "fold_scale": "folds",
    "latent_scores": "scores.of_rows",
    "latent_sums": "scores.of_rows",
    "load": "files",
    "save": "files",
    "splice": "splicing",
    "train": "training.python_api",
}

__all__ = [
    "SparseAutoencoder",
    "fold_b_dec",
    "fold_decoder_norm",
    "fold_mean",
    "fold_scale",
    "latent_scores",
    "latent_sums",
    "load",
    "save",
    "splice",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that `--help` and settings need no JAX."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
