"""What autoencoders do to the model that their rows come from.

Texts run through the model as it is, with a hook point's values replaced by their reconstructions
(spliced), and with these values replaced by zeros (ablated). Over the tokens t with a next token:

    ce        cross-entropy of the next token, nats
    kl        Kullback-Leibler divergence of the next token's distribution from the clean one, nats
    ce_recovered   (ce_ablated - ce_spliced) / (ce_ablated - ce_clean): 1 is no loss, 0 as bad as
                   zeros

Special tokens, and attention sinks, whose norm at the hook point is above a limit, are neither
replaced by reconstructions nor by zeros, and predictions made at them are left out of all means.
Logits are never whole in memory: the unembedding runs over some positions at a time.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from extraction.interruption import stop_flag
from extraction.progress import Progress, silent
from inference.engine.buckets import bucket_length
from inference.engine.language_model import LanguageModel
from inference.engine.programs import batch_sharding
from inference.errors import InputError
from qwen_hooks.hook_points import hook_widths, select
from qwen_hooks.interventions import Interventions, Splice, intervene
from qwen_hooks.model import forward, positions_from_mask, unembed
from sae.autoencoder import SparseAutoencoder
from sae.splicing import splice

TOKENS_PER_BATCH = 2048
LOGITS_AT_A_TIME = 512
"""Most positions of a batch whose logits are in memory, if its length can be divided so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """What an autoencoder does to the model's predictions; see the module. Means over `tokens`.

    Attributes:
        tokens: number of predictions.
        special: special tokens that were bypassed.
        sinks: other tokens that were bypassed, as their norm is above `max_norm`.
        max_norm: norm above which a token is a sink; None: no token is.
        ce_clean: cross-entropy of the model as it is.
        ce_spliced: cross-entropy with reconstructions.
        ce_ablated: cross-entropy with zeros.
        ce_recovered: None if zeros change nothing.
        kl_spliced: divergence with reconstructions.
        kl_ablated: divergence with zeros.
    """

    tokens: int
    special: int
    sinks: int
    max_norm: float | None
    ce_clean: float
    ce_spliced: float
    ce_ablated: float
    ce_recovered: float | None
    kl_spliced: float
    kl_ablated: float


@dataclasses.dataclass(frozen=True, eq=False)
class Spliced:
    """An autoencoder and its place in the model.

    Attributes:
        sae: the autoencoder.
        hook_point: name of its hook point.
        max_norm: norm above which a token is a sink; None: no token is.
    """

    sae: SparseAutoencoder
    hook_point: str
    max_norm: float | None = None


def evaluate_model(
    model: LanguageModel,
    saes: Mapping[str, Spliced],
    sequences: Sequence[Sequence[int]],
    *,
    special_ids: Collection[int] = (),
    tokens_per_batch: int = TOKENS_PER_BATCH,
    keep_error: bool = False,
    progress: Progress = silent,
) -> dict[str, ModelFigures]:
    """Return what autoencoders do to a model's predictions of texts, by the autoencoders' names.

    Args:
        model: the model.
        saes: autoencoders by name.
        sequences: token ids of each text.
        special_ids: ids of the special tokens.
        tokens_per_batch: most tokens, with padding, that a device runs at a time.
        keep_error: splice in reconstructions and what they miss, which must change nothing.
        progress: called with the number of texts.

    Raises:
        ModelError: the model has no such hook point, or it cannot be changed.
        InputError: an autoencoder has another width than its hook point; there is no prediction.
        StoreError: an autoencoder is a transcoder.
    """
    runs = {name: _Run(model, one, keep_error) for name, one in saes.items()}
    hooks = sorted({run.hook_point for run in runs.values()})
    module = model.with_hooks(hooks)
    special = np.array(sorted(special_ids), np.int32)
    done = 0
    with stop_flag() as stop:
        for ids, mask in _batches(model, sequences, tokens_per_batch):
            clean = _clean(module, model.params, ids, mask)
            for run in runs.values():
                stop.check()
                run.add(clean, ids, mask, special)
            done += int((np.asarray(mask).sum(1) > 0).sum())
            progress("texts run", done, len(sequences))
    return {name: run.figures() for name, run in runs.items()}


def _batches(
    model: LanguageModel, sequences: Sequence[Sequence[int]], tokens_per_batch: int
) -> Iterator[tuple[Any, Any]]:
    """Yield token ids and masks `[B, S]` of texts of similar length, on the devices."""
    devices = model.layout.mesh.shape["data"]
    sharding = batch_sharding(model.layout.mesh)
    waiting = sorted((s for s in sequences if len(s) > 1), key=len, reverse=True)
    while waiting:
        slots = bucket_length(len(waiting[0]))
        size = max(1, tokens_per_batch // slots) * devices
        ids, mask = np.zeros((2, size, slots), np.int32)
        for row, sequence in enumerate(waiting[:size]):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        del waiting[:size]
        yield jax.device_put(ids, sharding), jax.device_put(mask, sharding)


class _Run:
    """The sums of one autoencoder."""

    def __init__(self, model: LanguageModel, one: Spliced, keep_error: bool):
        names = select(one.hook_point, model.config)
        if len(names) != 1:
            raise InputError(f"{one.hook_point} names {len(names)} hook points; give one")
        (self.hook_point,) = names
        width = hook_widths(names, model.config).get(self.hook_point)
        if width is not None and width != one.sae.d_in:
            raise InputError(
                f"{one.sae} reads rows of width {one.sae.d_in}, and {self.hook_point} of"
                f" {model.model_path} has width {width}"
            )
        self.max_norm = np.inf if one.max_norm is None else one.max_norm
        self._module, self._params = model.with_hooks([]), model.params
        spliced = splice(one.sae, max_norm=self.max_norm, keep_error=keep_error)
        self._edits = {
            kind: intervene({self.hook_point: operation}, self._module.config, np.zeros(1, int))
            for kind, operation in (("spliced", spliced), ("ablated", _zeros(spliced)))
        }
        self._sums: dict[str, float] = dict.fromkeys(
            ("ce_clean", "ce_spliced", "ce_ablated", "kl_spliced", "kl_ablated"), 0.0
        )
        self._tokens = self._special = self._sinks = 0

    def add(self, clean: Any, ids: Any, mask: Any, special: np.ndarray) -> None:
        """Add the predictions of a batch; `clean` is what `_clean` returned."""
        residual, norms = clean
        is_token, there = np.asarray(mask) > 0, np.asarray(ids)
        is_special = np.isin(there, special) & is_token
        is_sink = ~(np.asarray(norms[self.hook_point]) <= self.max_norm) & is_token & ~is_special
        self._special += int(is_special.sum())
        self._sinks += int(is_sink.sum())
        counted = is_token & ~is_special & ~is_sink
        counted[:, :-1] &= is_token[:, 1:]
        counted[:, -1] = False
        self._tokens += int(counted.sum())
        slots = np.arange(there.shape[1], dtype=np.int32)
        positions = np.where(is_token & ~is_special, slots, np.int32(-1))
        for kind, edits in self._edits.items():
            edits = _for_batch(edits, positions, is_token.sum(1))
            changed = _changed(self._module, self._params, ids, mask, edits)
            found = _compared(self._module, self._params, residual, changed, ids, mask, edits)
            ce_clean, ce_changed, kl = (np.asarray(values, np.float64)[counted] for values in found)
            self._sums[f"ce_{kind}"] += ce_changed.sum()
            self._sums[f"kl_{kind}"] += kl.sum()
            if kind == "spliced":
                self._sums["ce_clean"] += ce_clean.sum()

    def figures(self) -> ModelFigures:
        if not self._tokens:
            raise InputError("the texts have no token whose prediction can be compared")
        means = {name: float(total / self._tokens) for name, total in self._sums.items()}
        gap = means["ce_ablated"] - means["ce_clean"]
        return ModelFigures(
            tokens=self._tokens,
            special=self._special,
            sinks=self._sinks,
            max_norm=None if np.isinf(self.max_norm) else float(self.max_norm),
            ce_recovered=(means["ce_ablated"] - means["ce_spliced"]) / gap if gap else None,
            **means,
        )


def _zeros(spliced: Splice) -> Splice:
    """Return the splice of an autoencoder that makes zeros of the same tokens."""
    width = spliced.W_enc.shape[0]
    nothing = np.zeros((width, 1), np.float32)
    return Splice(
        W_enc=nothing,
        W_dec=nothing.T,
        b_enc=nothing[0],
        b_dec=nothing[:, 0],
        max_norm=spliced.max_norm,
    )


def _for_batch(edits: Interventions, positions: np.ndarray, lengths: np.ndarray) -> Interventions:
    """Return interventions for other sequences, without looking through the weights again."""
    operations = {
        name: tuple(dataclasses.replace(one, positions=positions) for one in several)
        for name, several in edits.operations.items()
    }
    return dataclasses.replace(
        edits, operations=operations, prompt_lengths=jnp.asarray(lengths, jnp.int32)
    )


@functools.partial(jax.jit, static_argnames="module")
def _clean(module, params, ids, mask):
    """Return the last residual stream, and the norms `[B, S]` at each hook point."""
    output = forward(module, params, ids, positions_from_mask(ids, mask > 0))
    norms = {
        hook: jnp.linalg.norm(values.astype(jnp.float32).reshape(*ids.shape, -1), axis=-1)
        for hook, values in output.activations.items()
    }
    return output.residual, norms


@functools.partial(jax.jit, static_argnames="module")
def _changed(module, params, ids, mask, edits):
    """Return the last residual stream with interventions."""
    positions = positions_from_mask(ids, mask > 0)
    return forward(module, params, ids, positions, interventions=edits).residual


@functools.partial(jax.jit, static_argnames="module")
def _compared(module, params, clean, changed, ids, mask, edits):
    """Return cross-entropy clean and changed, and KL, of each position's next token, `[B, S]`."""
    batch, slots = ids.shape
    step = _step(batch, slots)
    following = jnp.roll(ids, -1, axis=1)
    positions = positions_from_mask(ids, mask > 0)

    def compare(part):
        clean, changed, following, positions = part
        before = jax.nn.log_softmax(unembed(module, params, clean))
        after = jax.nn.log_softmax(unembed(module, params, changed, edits, positions))

        def of_next(logs):
            return -jnp.take_along_axis(logs, following[..., None], axis=-1)[..., 0]

        kl = jnp.sum(jnp.exp(before) * (before - after), axis=-1)
        return of_next(before), of_next(after), kl

    parts = [
        jnp.moveaxis(values.reshape(batch, slots // step, step, *values.shape[2:]), 1, 0)
        for values in (clean, changed, following, positions)
    ]
    found = jax.lax.map(compare, parts)
    return tuple(jnp.moveaxis(values, 0, 1).reshape(batch, slots) for values in found)


def _step(batch: int, slots: int) -> int:
    """Return the positions whose logits are computed at a time: a divisor of `slots`."""
    step = slots
    while step % 2 == 0 and step * batch > LOGITS_AT_A_TIME:
        step //= 2
    return step
