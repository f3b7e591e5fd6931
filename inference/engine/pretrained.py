"""A model that is checked but not loaded: checkpoint, tokenizer, layers, dtype."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from extraction.errors import first_line
from inference.engine.bucket_checkpoint import open_bucket_checkpoint
from inference.engine.generation_config import followed_penalty
from inference.errors import InputError
from inference.inputs.files import is_in_bucket
from inference.inputs.prompt_tokens import special_ids
from inference.settings.commands import ExtractionSettings
from qwen_hooks import (
    Checkpoint,
    QwenModelWithActivations,
    create_model_with_hooks,
    find_checkpoint,
)
from qwen_hooks.errors import ModelError
from qwen_hooks.hook_points import default_layers, is_per_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
PROBE = "The quick brown fox jumps over the lazy dog. 0123456789"
OWN_PROBES = 100
"""Most tokens of the vocabulary that are tried if it knows none of the probe's words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model before its weights are read.

    Attributes:
        checkpoint: checkpoint whose headers fit its configuration.
        model: Flax module that captures the wanted hook points.
        tokenizer: the tokenizer; None if the checkpoint has none.
        dtype: dtype of the computation.
        repetition_penalty: penalty for tokens that have occurred; 1: none.
    """

    checkpoint: Checkpoint
    model: QwenModelWithActivations
    tokenizer: PreTrainedTokenizerBase | None
    dtype: jnp.dtype
    repetition_penalty: float = 1.0


def open_pretrained(settings: ExtractionSettings) -> Pretrained:
    """Find and check everything about the model that its files' headers say.

    Raises:
        ModelError: there is no such checkpoint, or this package cannot compute it.
        InputError: the tokenizer is damaged, or the checkpoint's repetition penalty is invalid.
        StoreError: the bucket of the model cannot be used.
    """
    checkpoint = open_checkpoint(settings.model_path, settings.revision)
    layers, hook_points = settings.layers_to_extract, settings.hook_points
    if layers is None and hook_points is None:
        layers = default_layers(checkpoint.config.num_hidden_layers)
    dtype = compute_dtype(settings.dtype)
    return Pretrained(
        checkpoint=checkpoint,
        model=check_widths(
            create_model_with_hooks(checkpoint.config, layers, dtype, hook_points=hook_points)
        ),
        tokenizer=load_tokenizer(checkpoint.folder),
        dtype=dtype,
        repetition_penalty=followed_penalty(
            checkpoint.folder,
            settings.repetition_penalty,
            predicts=settings.max_new_tokens > 0,
        ),
    )


def open_checkpoint(model_path: str, revision: str | None) -> Checkpoint:
    """Read the headers of a checkpoint in a folder, on the hub or in a bucket.

    Raises:
        ModelError: there is no checkpoint, or this package cannot compute it.
        StoreError: the bucket of the model cannot be used.
    """
    if not is_in_bucket(model_path):
        return Checkpoint.open(find_checkpoint(model_path, revision))
    if revision is not None:
        raise ModelError(
            f"{model_path} is in a bucket, which has no revision {revision!r}; omit it"
        )
    return open_bucket_checkpoint(model_path)


def check_widths(model: QwenModelWithActivations) -> QwenModelWithActivations:
    """Return the model if all rows of each of its hook points have the same width, else raise.

    Raises:
        InputError: the width of a hook point's rows depends on the prompt.
    """
    patterns = [name for name in model.hook_points if is_per_key(name)]
    if patterns:
        raise InputError(
            f"{patterns[0]} has a value for each key, so its rows differ in width and cannot be"
            " stored; capture it with ActivationStore, or create_model_with_hooks(config,"
            " hook_points=...)"
        )
    return model


def compute_dtype(name: str) -> jnp.dtype:
    """Return the dtype of a name; `auto` is float32 on CPU, bfloat16 on TPU and GPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a checkpoint's folder; None if it has none.

    Raises:
        InputError: the tokenizer is damaged, or knows only special tokens.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer  # slow (1 s), so after all other checks

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        is_whole = _knows_text(tokenizer)
    except Exception as error:  # of any kind, depending on the damaged file
        raise InputError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from None
    if not is_whole:
        found = ", ".join(name for name in TOKENIZER_FILES if (folder / name).exists())
        raise InputError(
            f"{folder}: the tokenizer has no vocabulary: it turns every text into special and"
            f" unknown tokens. Found {found}; a whole tokenizer has tokenizer.json, or vocab.json"
            " and merges.txt"
        )
    return tokenizer


def _knows_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer makes any token that is neither special nor unknown.

    transformers loads a tokenizer even from a folder without a vocabulary.
    """
    unknown = tokenizer.unk_token_id
    others = special_ids(tokenizer) | ({unknown} if isinstance(unknown, int) else set())

    def is_known(text: str) -> bool:
        return not others.issuperset(tokenizer(text, add_special_tokens=False)["input_ids"])

    if is_known(PROBE):
        return True
    own = (token for token, number in tokenizer.get_vocab().items() if number not in others)
    return any(is_known(token) for token in itertools.islice(own, OWN_PROBES))
