"""The activations of the last pass over whole sequences, for loops of one's own.

store = ActivationStore(model, ["layers.0.attention", "norm"])
logits = store(token_ids)
store["norm"]

An enabled store keeps the activations of every call of the model instead:

store.enable()
logits = model(token_ids)
store.get("norm")
store.disable()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from extraction.host_arrays import is_torch
from inference.engine.language_model import LanguageModel
from inference.engine.whole_sequences import Array, run_sequences
from inference.errors import InputError
from qwen_hooks.activations import NamedActivations
from qwen_hooks.hook_points import captured_name, few, select
from qwen_hooks.interventions import Operation


class ActivationStore:
    """Runs a model on whole sequences, and keeps the activations of the last call.

    A call of the store runs the model. After `enable`, calls of the model itself are kept too,
    until `disable`, the end of a `with` block, or the end of the store. Arrays are copies on the
    host, and stay unchanged after the next call.

    Args:
        model: model to run.
        hook_points: names, aliases, patterns; the attention pattern is allowed too.
        layers: another name of this argument; give one of the two.

    Raises:
        ModelError: there is no such hook point; the message names similar ones.
        InputError: neither or both of the names are given.
    """

    def __init__(
        self,
        model: LanguageModel,
        hook_points: str | Sequence[object] | None = None,
        *,
        layers: str | Sequence[object] | None = None,
    ):
        if (hook_points is None) == (layers is None):
            raise InputError(
                "ActivationStore needs hook_points, such as ['layers.0.mlp', 'norm'], or the same"
                " as layers; give one of the two"
            )
        asked = layers if hook_points is None else hook_points
        assert asked is not None
        self._model = model
        self._module = model.with_hooks(asked)
        self._asked = (asked,) if isinstance(asked, str) else tuple(asked)
        self._captured = NamedActivations[np.ndarray]()
        self._as_torch = False

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Canonical names of the captured hook points, in the order of computation."""
        return self._module.hook_points

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names that were given, in their order; instead of a pattern, what it stands for."""
        names: list[str] = []
        for asked in self._asked:
            chosen = select([asked], self._module.config)
            names += [asked] if len(chosen) == 1 and isinstance(asked, str) else chosen
        return tuple(dict.fromkeys(names))

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        interventions: dict[str, Operation] | None = None,
    ) -> np.ndarray:
        """Run whole sequences, keep their activations, and return the logits.

        Args:
            input_ids: `[B, S]`, token ids; a torch tensor too.
            attention_mask: `[B, S]`, 1 for tokens and 0 for padding, on either side; None: all
                are tokens.
            interventions: operations by hook point; see docs/interventions.md.

        Returns:
            Float32 logits `[B, S, V]`.

        Raises:
            InputError: an array has another shape or dtype, or a token id is out of range.
        """
        logits, captured = run_sequences(
            self._model, self._module, input_ids, attention_mask, interventions
        )
        self.keep(captured, as_torch=is_torch(input_ids))
        return logits

    def enable(self) -> None:
        """Keep the activations of every later call of the model; safe to call twice.

        Calls of `capture` and `extract` are not kept.
        """
        self._model.enabled.add(self)

    def disable(self) -> None:
        """Leave later calls of the model alone, and keep what was captured; safe to call twice."""
        self._model.enabled.discard(self)

    def keep(self, captured: Mapping[str, np.ndarray], *, as_torch: bool) -> None:
        """Keep the activations of a call in place of the last one's; the model calls it.

        Args:
            captured: `[B, S, ...]` by canonical name, the store's hook points and perhaps others.
            as_torch: whether `get` gives torch tensors.
        """
        kept = {name: captured[name] for name in self.hook_points}
        self._captured, self._as_torch = NamedActivations(kept), as_torch

    def get(self, hook_point: str) -> Any:
        """Return `[B, S, ...]` of the last call; None if nothing was run, or all was cleared.

        It is a torch tensor if the token ids were one, else an array of numpy.

        Raises:
            NotCapturedError: the hook point is not one of this store.
        """
        name = captured_name(hook_point, self.hook_points)
        if not self._captured:
            return None
        return _tensor(self._captured[name]) if self._as_torch else self._captured[name]

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
        """Free the captured activations; an enabled store stays enabled."""
        self._captured = NamedActivations()

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, exception_type: object, exception: object, traceback: object) -> None:
        self.disable()
        self.clear()


def _tensor(values: np.ndarray) -> Any:
    """Return a copy as a tensor of torch; numpy's bfloat16 is unknown to torch."""
    import torch

    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(values.copy())
