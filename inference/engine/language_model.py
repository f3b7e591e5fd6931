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
    """What `load_model` gives; calling it runs whole sequences.

    Attributes:
        model_path: that it was loaded from.
        revision: of a hub model.
        checkpoint: its files.
        params: the full `{'params': ...}`, on the devices.
        layout: of the parameters over the devices of this process.
        tokenizer: None where the checkpoint has none.
        dtype: that is computed in.
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
        """Shape and constants."""
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
        """Canonical names of every place that can be captured."""
        return [site.name for site in sites(self.config)]

    def with_hooks(
        self, hook_points: str | Sequence[object], attention: str = "xla"
    ) -> QwenModelWithActivations:
        """The Flax module that captures some hook points, for these parameters.

        Args:
            hook_points: names, aliases, patterns; or none.
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
        """The same for rows of tokens, on the attention that is fastest here.

        Raises:
            ModelError: there is no such hook point.
            InputError: one gives rows of different widths.
        """
        attention = prompt_attention("auto", self.layout, self.config, self.dtype)
        return check_widths(self.with_hooks(hook_points, attention))

    def tokenise(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and attention mask, int32 `[B, S]`, padded on the right.

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
        """Float32 logits `[B, S, V]`.

        Args:
            input_ids: `[B, S]`, whole numbers.
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
    """Loads a checkpoint onto the devices of this process.

    Args:
        model_path: checkpoint folder, `gs://bucket/folder`, or hub id.
        dtype: to compute in: `auto` (float32 on CPU, bfloat16 on TPU and GPU), `float32`,
            `bfloat16`.
        revision: branch, tag or commit of a hub model.
        mesh_shape: devices on the data and the model axis; None: the smallest model axis on which
            the parameters fit.

    Raises:
        ModelError: no such checkpoint, one this package cannot compute, or one that does not fit.
        InputError: its tokenizer is damaged.
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
    """Forward passes that one drives oneself, and what the last of them captured.

    The model is a function and keeps nothing: there are no hooks to register or to remove. Arrays
    are copies on the host, and stay as they are when the next pass comes.

    Args:
        model: to run.
        hook_points: names, aliases, patterns; the attention pattern too.

    Raises:
        ModelError: there is no such hook point; the nearest ones are named.
    """

    def __init__(self, model: LanguageModel, hook_points: str | Sequence[object]):
        self._model = model
        self._module = model.with_hooks(hook_points)
        self._captured = NamedActivations[np.ndarray]()

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Canonical names of what is captured."""
        return self._module.hook_points

    def __call__(
        self,
        input_ids: np.ndarray | jax.Array,
        attention_mask: np.ndarray | jax.Array | None = None,
        interventions: dict[str, Operation] | None = None,
    ) -> np.ndarray:
        """Runs whole sequences and keeps what is captured.

        Args:
            input_ids: `[B, S]`, whole numbers.
            attention_mask: `[B, S]`, 1 for tokens and 0 for padding, on either side; None: all
                are tokens.
            interventions: operations by hook point; see docs/interventions.md.

        Returns:
            Float32 logits `[B, S, V]`.

        Raises:
            InputError: the arrays are not of these shapes.
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
        padding = ((0, 0), (0, bucket_length(slots) - slots))  # few lengths, few programs
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
        """`[B, S, ...]` of the last pass, in the dtype of the computation; by any of its names.

        Raises:
            NotCapturedError: it is none of those captured, or nothing was run yet.
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
        """Lets go of what is captured."""
        self._captured = NamedActivations()

    def __enter__(self) -> "ActivationStore":
        return self

    def __exit__(self, exception_type: object, exception: object, traceback: object) -> None:
        self.clear()


@functools.partial(jax.jit, static_argnames="module")
def _run_sequences(module, params, input_ids, attention_mask, interventions):
    """Logits and activations; compiled for each set of hook points and each shape."""
    return module.apply(params, input_ids, attention_mask, True, interventions)
