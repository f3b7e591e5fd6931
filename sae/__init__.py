"""Sparse autoencoders of activations: train, evaluate, score, steer by, load and convert.

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
    from sae.vectors.files import Vector, load_vectors, save_vectors
    from sae.vectors.run import decoder_vectors

_MODULES = {
    "SparseAutoencoder": "autoencoder",
    "Vector": "vectors.files",
    "decoder_vectors": "vectors.run",
    "fold_b_dec": "folds",
    "fold_decoder_norm": "folds",
    "fold_mean": "folds",
    "fold_scale": "folds",
    "latent_scores": "scores.of_rows",
    "latent_sums": "scores.of_rows",
    "load": "files",
    "load_vectors": "vectors.files",
    "save": "files",
    "save_vectors": "vectors.files",
    "splice": "splicing",
    "train": "training.python_api",
}

__all__ = [
    "SparseAutoencoder",
    "Vector",
    "decoder_vectors",
    "fold_b_dec",
    "fold_decoder_norm",
    "fold_mean",
    "fold_scale",
    "latent_scores",
    "latent_sums",
    "load",
    "load_vectors",
    "save",
    "save_vectors",
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
