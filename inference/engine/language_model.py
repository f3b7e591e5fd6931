"""A loaded model for notebooks: parameters on the devices, and the tokenizer.

model = load_model("Qwen/Qwen2.5-0.5B")
logits = model(token_ids)

`activation_store` keeps the activations of such calls, `whole_sequences` is the pass itself.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from extraction.host_arrays import is_torch
from inference.engine.hosts import plan_workers, prompt_attention
from inference.engine.pretrained import check_widths, compute_dtype, load_tokenizer, open_checkpoint
from inference.engine.whole_sequences import Array, run_sequences
from inference.errors import InputError
from qwen_hooks import (
    Checkpoint,
    QwenConfig,
    QwenModelWithActivations,
    create_model_with_hooks,
    load_params,
)
from qwen_hooks.hook_points import sites
from qwen_hooks.model import Params
from qwen_hooks.sharding import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from inference.engine.activation_store import ActivationStore


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LanguageModel:
    """A model loaded by `load_model`; calling it runs whole sequences.

    Attributes:
        model_path: folder, bucket prefix or hub id that it was loaded from.
        revision: branch, tag or commit of a hub model.
        checkpoint: files of the checkpoint.
        params: the full `{'params': ...}`, on the devices.
        layout: layout of the parameters over the devices of this process.
        tokenizer: the tokenizer; None if the checkpoint has none.
        dtype: dtype of the computation.
        enabled: the stores that keep the activations of every call, by `ActivationStore.enable`.
    """

    model_path: str
    revision: str | None
    checkpoint: Checkpoint
    params: Params
    layout: Layout
    tokenizer: PreTrainedTokenizerBase | None
    dtype: jnp.dtype
    enabled: weakref.WeakSet[ActivationStore] = dataclasses.field(
        default_factory=weakref.WeakSet, init=False
    )

    @property
    def config(self) -> QwenConfig:
        """Shape and constants of the model."""
        return self.checkpoint.config

    def __repr__(self) -> str:
        config, mesh = self.config, self.layout.mesh.shape
        revision = "" if self.revision is None else f" at {self.revision}"
        return (
            f"LanguageModel({self.model_path!r}{revision}: {config.num_hidden_layers} layers of"
            f" width {config.hidden_size}, vocabulary {config.vocab_size}, {self.dtype}, mesh"
            f" {mesh['data']} x {mesh['model']}, {'no' if self.tokenizer is None else 'a'}"
            " tokenizer)"
        )

    def list_hook_points(self) -> list[str]:
        """Return the canonical names of all hook points of the model."""
        return [site.name for site in sites(self.config)]

    def with_hooks(
        self, hook_points: str | Sequence[object], attention: str = "xla"
    ) -> QwenModelWithActivations:
        """Return the Flax module that captures some hook points, for these parameters.

        Args:
            hook_points: names, aliases, patterns; an empty list captures nothing.
            attention: an entry of `attention_backends.ATTENTION`.

        Raises:
            ModelError: there is no such hook point, or no such attention.
        """
        config = self.layout.config(self.config)
        if not hook_points:
            return QwenModelWithActivations(config, (), self.dtype, attention)
        return create_model_with_hooks(
            config,
            dtype=self.dtype,
            attention=attention,
            hook_points=hook_points,
        )

    def for_rows(self, hook_points: str | Sequence[object]) -> QwenModelWithActivations:
        """Return `with_hooks` for rows of tokens, with the attention that is fastest here.

        Raises:
            ModelError: there is no such hook point.
            InputError: the width of a hook point's rows depends on the prompt.
        """
        attention = prompt_attention("auto", self.layout, self.config, self.dtype)
        return check_widths(self.with_hooks(hook_points, attention))

    def tokenise(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids and attention mask, int32 `[B, S]`, padded on the right.

        Raises:
            InputError: the checkpoint has no tokenizer.
        """
        if self.tokenizer is None:
            raise InputError(f"{self.model_path} has no tokenizer; give token ids")
        rows = [self.tokenizer(text)["input_ids"] for text in texts]
        ids, mask = np.zeros((2, len(rows), max(map(len, rows), default=0)), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
    ) -> np.ndarray:
        """Return float32 logits `[B, S, V]`; enabled stores keep their activations.

        Args:
            input_ids: `[B, S]`, token ids; a torch tensor too.
            attention_mask: `[B, S]`, 1 for tokens and 0 for padding, on either side; None: all
                are tokens.

        Raises:
            InputError: an array has another shape or dtype, or a token id is out of range.
        """
        stores = list(self.enabled)
        module = self.with_hooks([name for store in stores for name in store.hook_points])
        logits, captured = run_sequences(self, module, input_ids, attention_mask)
        for store in stores:
            store.keep(captured, as_torch=is_torch(input_ids))
        return logits


def load_model(
    model_path: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    revision: str | None = None,
    mesh_shape: tuple[int, int] | None = None,
) -> LanguageModel:
    """Load a checkpoint onto the devices of this process.

    Args:
        model_path: checkpoint folder, `gs://bucket/folder`, or hub id.
        dtype: to compute in: `auto` (float32 on CPU, bfloat16 on TPU and GPU), `float32`,
            `bfloat16`.
        revision: branch, tag or commit of a hub model.
        mesh_shape: devices on the data and the model axis; None: the smallest model axis on which
            the parameters fit.

    Raises:
        ModelError: there is no such checkpoint, this package cannot compute it, or it does not fit.
        InputError: the checkpoint's tokenizer is damaged.
    """
    model_path = os.fspath(model_path)
    checkpoint, computed = open_checkpoint(model_path, revision), compute_dtype(dtype)
    layout = plan_workers(checkpoint.config, mesh_shape, computed.itemsize).layout
    return LanguageModel(
        model_path=model_path,
        revision=revision,
        checkpoint=checkpoint,
        params=load_params(checkpoint, computed, layout),
        layout=layout,
        tokenizer=load_tokenizer(checkpoint.folder),
        dtype=computed,
    )
