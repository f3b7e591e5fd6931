"""One pass over whole sequences: token ids in, logits and activations of every token out."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from extraction.host_arrays import host_array
from inference.engine.buckets import bucket_length
from inference.errors import InputError
from qwen_hooks import QwenModelWithActivations
from qwen_hooks.activations import NamedActivations
from qwen_hooks.hook_points import is_per_key
from qwen_hooks.interventions import Operation, intervene

if TYPE_CHECKING:
    from inference.engine.language_model import LanguageModel

Array = Any
"""An array of numpy or JAX, or a tensor of torch, which is not installed everywhere."""


def run_sequences(
    model: LanguageModel,
    module: QwenModelWithActivations,
    input_ids: Array,
    attention_mask: Array | None = None,
    interventions: dict[str, Operation] | None = None,
) -> tuple[np.ndarray, NamedActivations[np.ndarray]]:
    """Return float32 logits `[B, S, V]`, and `[B, S, ...]` of each hook point of the module.

    Args:
        model: model whose parameters are used.
        module: one of `model.with_hooks(...)`.
        input_ids: `[B, S]`, token ids.
        attention_mask: `[B, S]`, 1 for tokens and 0 for padding, on either side; None: all are
            tokens.
        interventions: operations by hook point; see docs/interventions.md.

    Raises:
        InputError: an array has another shape or dtype, or a token id is out of range.
    """
    ids = host_array(input_ids)
    mask = np.ones(ids.shape, np.int32) if attention_mask is None else attention_mask
    mask = (host_array(mask) != 0).astype(np.int32)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or mask.shape != ids.shape:
        raise InputError(
            f"input_ids must be whole numbers [B, S], not {ids.dtype} {list(ids.shape)}, and"
            f" the mask of the same shape, not {list(mask.shape)}"
        )
    real = ids[mask > 0]
    if not real.size or real.min() < 0 or real.max() >= model.config.vocab_size:
        raise InputError(
            "input_ids must have tokens, all of them in the model's vocabulary of"
            f" {model.config.vocab_size}"
        )
    slots = ids.shape[1]
    padding = ((0, 0), (0, bucket_length(slots) - slots))  # so that few programs are compiled
    edits = None
    if interventions:
        edits = intervene(interventions, module.config, mask.sum(axis=1))
    logits, values = _pass(
        module, model.params, np.pad(ids.astype(np.int32), padding), np.pad(mask, padding), edits
    )
    captured = NamedActivations[np.ndarray]()
    for hook, padded in values.items():
        of_tokens = np.asarray(padded)[:, :slots]
        captured[hook] = of_tokens[..., :slots] if is_per_key(hook) else of_tokens
    return np.asarray(logits)[:, :slots], captured


@functools.partial(jax.jit, static_argnames="module")
def _pass(module, params, input_ids, attention_mask, interventions):
    """Return logits and activations; compiled for each set of hook points and each shape."""
    return module.apply(params, input_ids, attention_mask, True, interventions)
