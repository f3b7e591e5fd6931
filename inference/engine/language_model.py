"""A loaded model for notebooks: parameters on the devices, and the tokenizer.

model = load_model("Qwen/Qwen2.5-0.5B")
logits = model(token_ids)

store = ActivationStore(model, ["layers.0.attention", "norm"])
logits = store(token_ids)
store["norm"]
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from inference.engine.buckets import bucket_length
from inference.engine.hosts import plan_workers, prompt_attention
from inference.engine.pretrained import check_widths, compute_dtype, load_tokenizer, open_checkpoint
from inference.errors import InputError
from qwen_hooks import (
    Checkpoint,
    QwenConfig,
    QwenModelWithActivations,
    create_model_with_hooks,
    load_params,
)
from qwen_hooks.activations import NamedActivations
from qwen_hooks.hook_points import few, is_per_key, sites
from qwen_hooks.interventions import Operation, intervene
from qwen_hooks.model import Params
from qwen_hooks.sharding import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    """

    model_path: str
    revision: str | None
    checkpoint: Checkpoint
    params: Params
    layout: Layout
    tokenizer: PreTrainedTokenizerBase | None
    dtype: jnp.dtype

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
        input_ids: np.ndarray | jax.Array,
        attention_mask: np.ndarray | jax.Array | None = None,
    ) -> np.ndarray:
        """Return float32 logits `[B, S, V]`.

        Args:
            input_ids: `[B, S]`, token ids.
            attention_mask: `[B, S]`, 1 for tokens and 0 for padding, on either side; None: all
                are tokens.
        """
        return ActivationStore(self, [])(input_ids, attention_mask)


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


class ActivationStore:
    """Runs a model on whole sequences, and keeps the activations of the last call.

    The model itself keeps no state: there are no hooks to register or to remove. Arrays are copies
    on the host, and stay unchanged after the next call.

    Args:
        model: model to run.
        hook_points: names, aliases, patterns; the attention pattern is allowed too.

    Raises:
        ModelError: there is no such hook point; the message names similar ones.
    """

    def __init__(self, model: LanguageModel, hook_points: str | Sequence[object]):
        self._model = model
        self._module = model.with_hooks(hook_points)
        self._captured = NamedActivations[np.ndarray]()

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Canonical names of the captured hook points."""
        return self._module.hook_points

    def __call__(
        self,
        input_ids: np.ndarray | jax.Array,
        attention_mask: np.ndarray | jax.Array | None = None,
        interventions: dict[str, Operation] | None = None,
    ) -> np.ndarray:
        """Run whole sequences, keep their activations, and return the logits.

        Args:
            input_ids: `[B, S]`, token ids.
            attention_mask: `[B, S]`, 1 for tokens and 0 for padding, on either side; None: all
                are tokens.
            interventions: operations by hook point; see docs/interventions.md.

        Returns:
            Float32 logits `[B, S, V]`.

        Raises:
            InputError: an array has another shape or dtype, or a token id is out of range.
        """
        ids = np.asarray(input_ids)
        mask = np.ones(ids.shape, np.int32) if attention_mask is None else attention_mask
        mask = (np.asarray(mask) != 0).astype(np.int32)
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or mask.shape != ids.shape:
            raise InputError(
                f"input_ids must be whole numbers [B, S], not {ids.dtype} {list(ids.shape)}, and"
                f" the mask of the same shape, not {list(mask.shape)}"
            )
        real = ids[mask > 0]
        if not real.size or real.min() < 0 or real.max() >= self._model.config.vocab_size:
            raise InputError(
                "input_ids must have tokens, all of them in the model's vocabulary of"
                f" {self._model.config.vocab_size}"
            )
        slots = ids.shape[1]
        padding = ((0, 0), (0, bucket_length(slots) - slots))  # so that few programs are compiled
        edits = None
        if interventions:
            edits = intervene(interventions, self._module.config, mask.sum(axis=1))
        logits, captured = _run_sequences(
            self._module,
            self._model.params,
            np.pad(ids.astype(np.int32), padding),
            np.pad(mask, padding),
            edits,
        )
        self._captured = NamedActivations()
        for hook, values in captured.items():
            of_tokens = np.asarray(values)[:, :slots]
            self._captured[hook] = of_tokens[..., :slots] if is_per_key(hook) else of_tokens
        return np.asarray(logits)[:, :slots]

    def __getitem__(self, hook_point: str) -> np.ndarray:
        """Return `[B, S, ...]` of the last call, in the dtype of the computation; takes any name.

        Raises:
            NotCapturedError: the hook point is not captured, or nothing was run yet.
        """
        return self._captured[hook_point]

    def __iter__(self) -> Iterator[str]:
        return iter(self._captured)

    def __len__(self) -> int:
        return len(self._captured)

    def __repr__(self) -> str:
        if self._captured:
            return f"ActivationStore({self._captured!r})"
        return f"ActivationStore(nothing yet of {few(self.hook_points)})"

    def clear(self) -> None:
        """Free the captured activations."""
        self._captured = NamedActivations()

    def __enter__(self) -> "ActivationStore":
        return self

    def __exit__(self, exception_type: object, exception: object, traceback: object) -> None:
        self.clear()


@functools.partial(jax.jit, static_argnames="module")
def _run_sequences(module, params, input_ids, attention_mask, interventions):
    """Return logits and activations; compiled for each set of hook points and each shape."""
    return module.apply(params, input_ids, attention_mask, True, interventions)
