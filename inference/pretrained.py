"""A model as a command uses it, checked but not loaded: checkpoint, tokenizer, layers, dtype."""

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from extraction.errors import first_line
from inference.bucket_checkpoint import open_bucket_checkpoint
from inference.errors import InputError
from inference.input_files import is_in_bucket
from inference.settings import ExtractionSettings
from qwen_hooks import (
    Checkpoint,
    QwenModelWithActivations,
    create_model_with_hooks,
    find_checkpoint,
)
from qwen_hooks.errors import ModelError
from qwen_hooks.hook_points import default_layers

log = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What is known of a model before its weights are read.

    Attributes:
        checkpoint: local, with headers that fit.
        model: that captures the wanted layers.
        tokenizer: None where the checkpoint has none.
        dtype: to compute in.
    """

    checkpoint: Checkpoint
    model: QwenModelWithActivations
    tokenizer: PreTrainedTokenizerBase | None
    dtype: jnp.dtype


def open_pretrained(settings: ExtractionSettings) -> Pretrained:
    """Finds and checks everything about the model that its files' headers tell.

    Raises:
        ModelError: no such checkpoint, or one this package cannot compute.
        InputError: the tokenizer is damaged.
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
    patterns = [name for name in model.hook_points if name.endswith(".pattern")]
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
        InputError: it is damaged.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # every kind, depending on which of its files is damaged
        raise InputError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from None
