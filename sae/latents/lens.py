"""What decoder rows say: tokens that they make likelier, and latents with similar rows.

Logit lens: a decoder row, scaled to a root mean square of 1, goes through the model's final norm
with its weight and through the unembedding, as if it were the whole residual stream.
"""

import dataclasses
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.run.identity import read_identity
from extraction.run.vocabulary import text_of
from extraction.setting_names import setting
from extraction.storage import open_storage
from inference.errors import InputError
from sae.autoencoder import SparseAutoencoder
from sae.latents.settings import LatentsSettings

LATENTS_AT_A_TIME = 256


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LogitLens:
    """Tokens of the largest and of the smallest logits of L latents.

    Attributes:
        top: `[L, n]` int64, token ids, from the largest logit on.
        top_logits: `[L, n]` float32.
        bottom: `[L, n]` int64, token ids, from the smallest logit on.
        bottom_logits: `[L, n]` float32.
        texts: text of each of these ids; "" where the tokenizer has none.
    """

    top: np.ndarray
    top_logits: np.ndarray
    bottom: np.ndarray
    bottom_logits: np.ndarray
    texts: dict[int, str]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """The latents of most similar decoder rows.

    Attributes:
        numbers: `[L, n]` int64, numbers of latents in the autoencoder.
        cosines: `[L, n]` float32.
    """

    numbers: np.ndarray
    cosines: np.ndarray


def largest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return places `[L, count]` and values of the largest numbers of each row, largest first."""
    count = min(count, values.shape[1])
    places = np.argpartition(-values, count - 1, axis=1)[:, :count] if count else values[:, :0]
    places = places.astype(np.int64)
    found = np.take_along_axis(values, places, axis=1)
    order = np.lexsort((places, -found), axis=1)
    return np.take_along_axis(places, order, axis=1), np.take_along_axis(found, order, axis=1)


def neighbours_of(sae: SparseAutoencoder, numbers: np.ndarray, count: int) -> Neighbours:
    """Return the latents whose decoder rows have the largest cosines with those of some latents.

    Args:
        sae: the autoencoder.
        numbers: `[L]`, numbers of the latents.
        count: most latents for each.
    """
    norms = np.maximum(sae.decoder_norms, np.finfo(np.float32).tiny)
    unit = (sae.W_dec / norms[:, None]).astype(np.float32)
    count = min(count, sae.d_sae - 1)
    parts = []
    for start in range(0, len(numbers), LATENTS_AT_A_TIME):
        some = numbers[start : start + LATENTS_AT_A_TIME]
        cosines = unit[some] @ unit.T
        cosines[np.arange(len(some)), some] = -np.inf
        parts.append(largest(cosines, count))
    places, cosines = map(np.concatenate, zip(*parts, strict=True))
    return Neighbours(numbers=places, cosines=cosines)


def logit_lens(
    settings: LatentsSettings, sae: SparseAutoencoder, numbers: np.ndarray
) -> LogitLens | None:
    """Return the logit lens of latents; None if no model is named.

    Args:
        settings: the model, and how many tokens are named.
        sae: the autoencoder.
        numbers: `[L]`, numbers of the latents.

    Raises:
        ModelError: the model cannot be used.
        InputError: its residual stream has another width than the decoder's rows.
        StoreError: the rows are of other weights.
    """
    if settings.model_path is None:
        return None
    from inference.engine.language_model import load_model
    from inference.inputs.token_text import token_bytes_of

    model = load_model(settings.model_path, dtype=settings.dtype, revision=settings.revision)
    _check_model(model, sae, settings)
    parts = []
    for start in range(0, len(numbers), LATENTS_AT_A_TIME):
        rows = sae.W_dec[numbers[start : start + LATENTS_AT_A_TIME]]
        logits = _logits(model, rows)
        bottom, below = largest(-logits, settings.lens_tokens)
        parts.append((*largest(logits, settings.lens_tokens), bottom, -below))
    top, top_logits, bottom, bottom_logits = map(np.concatenate, zip(*parts, strict=True))
    token_bytes = token_bytes_of(model.tokenizer)
    ids = np.unique([top, bottom]).tolist()
    texts = {token: (token_bytes(token) or b"") if token_bytes else b"" for token in ids}
    return LogitLens(
        top=top,
        top_logits=top_logits,
        bottom=bottom,
        bottom_logits=bottom_logits,
        texts={token: text_of(text) for token, text in texts.items()},
    )


def _logits(model: Any, rows: np.ndarray) -> np.ndarray:
    """Return float32 logits `[B, V]` of decoder rows `[B, D]`."""
    import jax.numpy as jnp

    from qwen_hooks.model import unembed

    root = np.sqrt(np.square(rows, dtype=np.float64).mean(axis=1, keepdims=True))
    scaled = (rows / np.maximum(root, np.finfo(np.float32).tiny)).astype(np.float32)
    hidden = jnp.asarray(scaled).astype(model.dtype)
    return np.asarray(unembed(model.with_hooks([]), model.params, hidden), np.float32)


def _check_model(model: Any, sae: SparseAutoencoder, settings: LatentsSettings) -> None:
    width = model.config.hidden_size
    named = setting("model_path", settings.model_path)
    if sae.d_out != width:
        raise InputError(
            f"{named} has a residual stream of width {width}, and {settings.sae} writes rows of"
            f" width {sae.d_out}; leave {setting('model_path')} out"
        )
    identity = read_identity(open_storage(settings.activations_dir, writable=False))
    there = None if identity is None else identity.fingerprint.get("weights_sha256")
    own = sae.metadata.get("weights_sha256")
    wanted = own if isinstance(own, str) else there
    digest = model.checkpoint.weights_digest()
    if isinstance(wanted, str) and wanted != digest:
        raise StoreError(
            f"{named} has weights {digest:.12}, and {settings.sae} is for rows of weights"
            f" {wanted:.12}; name the model that the rows are of"
        )
