"""A model as a command uses it, checked but not loaded: checkpoint, tokenizer, layers, dtype."""

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
"""Tokens of a vocabulary without any of the probe's words that are tried in its place."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What is known of a model before its weights are read.

    Attributes:
        checkpoint: local, with headers that fit.
        model: that captures the wanted layers.
        tokenizer: None where the checkpoint has none.
        dtype: to compute in.
        repetition_penalty: of the logits of tokens that have occurred; 1: none.
    """

    checkpoint: Checkpoint
    model: QwenModelWithActivations
    tokenizer: PreTrainedTokenizerBase | None
    dtype: jnp.dtype
    repetition_penalty: float = 1.0


def open_pretrained(settings: ExtractionSettings) -> Pretrained:
    """Finds and checks everything about the model that its files' headers tell.

    Raises:
        ModelError: no such checkpoint, or one this package cannot compute.
        InputError: the tokenizer is damaged, or the penalty that the checkpoint asks for.
        StoreError: the bucket that it lies in cannot be used.
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
    """A checkpoint's headers: a folder's, a hub model's, or one's in a bucket.

    Raises:
        ModelError: there is none, or one this package cannot compute.
        StoreError: the bucket that it lies in cannot be used.
    """
    if not is_in_bucket(model_path):
        return Checkpoint.open(find_checkpoint(model_path, revision))
    if revision is not None:
        raise ModelError(f"{model_path} is a bucket's folder, which has no revision {revision!r}")
    return open_bucket_checkpoint(model_path)


def check_widths(model: QwenModelWithActivations) -> QwenModelWithActivations:
    """The model, if every hook point of it gives rows of one width.

    Raises:
        InputError: one does not.
    """
    patterns = [name for name in model.hook_points if is_per_key(name)]
    if patterns:
        raise InputError(
            f"{patterns[0]} has a value for each key, so its rows differ in width; take it from the"
            " model itself: create_model_with_hooks(config, hook_points=...)"
        )
    return model


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of a name; of `auto` float32 on CPU, bfloat16 on TPU and GPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint's folder; None if it has none.

    Raises:
        InputError: it is damaged, or knows no token but special ones.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer  # a second, which no other refusal waits for

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        is_whole = _knows_text(tokenizer)
    except Exception as error:  # every kind, depending on which of its files is damaged
        raise InputError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from None
    if not is_whole:
        found = ", ".join(name for name in TOKENIZER_FILES if (folder / name).exists())
        raise InputError(
            f"{folder}: the tokenizer has no vocabulary: it makes no token of any text but special"
            f" and unknown ones. Found {found}; a whole one has tokenizer.json, or vocab.json and"
            " merges.txt"
        )
    return tokenizer


def _knows_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Says whether the tokenizer makes a known token, not a special one, of any text.

    transformers makes a tokenizer of a folder without a vocabulary, too.
    """
    unknown = tokenizer.unk_token_id
    others = special_ids(tokenizer) | ({unknown} if isinstance(unknown, int) else set())

    def is_known(text: str) -> bool:
        return not others.issuperset(tokenizer(text, add_special_tokens=False)["input_ids"])

    if is_known(PROBE):
        return True
    own = (token for token, number in tokenizer.get_vocab().items() if number not in others)
    return any(is_known(token) for token in itertools.islice(own, OWN_PROBES))
