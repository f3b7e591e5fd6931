"""Interventions change activations at hook points: steering, ablation, patching.

    edits = intervene({"layer_6": Add(vector, coefficient=4.0)}, config, prompt_lengths)
    model.apply(params, input_ids, interventions=edits)

An operation is data. The compiled program depends on the hook points and on the kinds of
operations. Their numbers are arguments, so other vectors, coefficients and positions compile
nothing. Operations are arguments of one call; the model keeps none of them.

A captured activation is the changed one. A change of the prompt's keys, values or residual stream
stays in the KV cache for the generated tokens, as if the whole sequence were run again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from qwen_hooks.config import QwenConfig
from qwen_hooks.errors import ModelError
from qwen_hooks.hook_points import few, hook_widths, select, sites
from qwen_hooks.operation_checks import check_numbers

Where = Literal["all", "prompt", "generated"]
Numbers = Array | np.ndarray
Number = float | int | np.floating | Float[Numbers, ""] | Float[Numbers, " B"]


def array(axes: int, *, has_width: bool = False, **default: Any) -> Any:
    """Return a field of an operation that holds numbers.

    Args:
        axes: number of axes if all samples share the numbers; with one more axis, the first one is
            that of the samples.
        has_width: whether the last axis has the hook point's width.
        **default: `default=...`, if the field has a default.
    """
    return flax.struct.field(metadata={"axes": axes, "has_width": has_width}, **default)


@flax.struct.dataclass(kw_only=True, repr=False)
class Operation:
    """Fields that all interventions share.

    Attributes:
        apply_to: tokens to change: `all`, those of the `prompt`, or the `generated` ones.
        positions: int32 `[B, P]`, positions to change in each sample, from 0, padded with -1. None:
            all positions.
    """

    positions: Int[Numbers, "B P"] | None = array(1, default=None)
    apply_to: Where = flax.struct.field(pytree_node=False, default="all")

    def __repr__(self) -> str:
        values = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        told = [f"{f.name}={_short(value)}" for f, value in values if value is not f.default]
        return f"{type(self).__name__}({', '.join(told)})"

    def change(self, value: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        """Return the changed values, in float32."""
        raise NotImplementedError


def shared_axes() -> dict[str, int]:
    """Return, for each array of an operation, its number of axes if all samples share it."""
    kinds = (Operation, *Operation.__subclasses__())
    return {
        entry.name: entry.metadata["axes"]
        for kind in kinds
        for entry in dataclasses.fields(kind)
        if "axes" in entry.metadata
    }


@flax.struct.dataclass(kw_only=True, repr=False)
class Add(Operation):
    """`x + coefficient * vector`.

    Attributes:
        vector: `[W]`, or `[B, W]` with one vector for each sample.
        coefficient: a number, or `[B]`.
        relative: scale the vector to the norm of `x`, so that the coefficient is in units of that
            norm.
    """

    vector: Float[Numbers, "*samples W"] = array(1, has_width=True)
    coefficient: Number = array(0, default=1.0)
    relative: bool = flax.struct.field(pytree_node=False, default=False)

    def change(self, value: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        """See `Operation.change`."""
        added = _of_tokens(self.vector, 1)
        if self.relative:
            norm = jnp.linalg.norm(value, axis=-1, keepdims=True)
            added = norm * added / jnp.linalg.norm(added, axis=-1, keepdims=True)
        return value + _of_tokens(self.coefficient, 0) * added


@flax.struct.dataclass(kw_only=True, repr=False)
class ProjectOut(Operation):
    """`x` minus `strength` times its projection onto the span of some directions.

    Attributes:
        directions: `[r, W]`, linearly independent; they need not be orthogonal or have unit norm.
        strength: a number, or `[B]`; 1 removes the projection, 2 mirrors it.
    """

    directions: Float[Numbers, "r W"] = array(2, has_width=True)
    strength: Number = array(0, default=1.0)

    def change(self, value: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        """See `Operation.change`."""
        basis, _ = jnp.linalg.qr(jnp.asarray(self.directions, jnp.float32).T)
        part = jnp.einsum("btw,wr,vr->btv", value, basis, basis, precision="highest")
        return value - _of_tokens(self.strength, 0) * part


@flax.struct.dataclass(kw_only=True, repr=False)
class Clamp(Operation):
    """`x` with its component along a direction limited to an interval.

    Attributes:
        direction: `[W]`, or `[B, W]`; scaled to unit norm.
        low: smallest component, a number, or `[B]`; `-inf` for no limit.
        high: largest component, at least `low`; equal to `low`, it sets the component; `inf` for no
            limit.
    """

    direction: Float[Numbers, "*samples W"] = array(1, has_width=True)
    low: Number = array(0)
    high: Number = array(0)

    def change(self, value: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        """See `Operation.change`."""
        along = _of_tokens(self.direction, 1)
        along = along / jnp.linalg.norm(along, axis=-1, keepdims=True)
        component = jnp.sum(value * along, axis=-1, keepdims=True)
        low, high = _of_tokens(self.low, 0), _of_tokens(self.high, 0)
        return value + (jnp.clip(component, low, high) - component) * along


@flax.struct.dataclass(kw_only=True, repr=False)
class Replace(Operation):
    """Other values instead of `x`, such as those of another prompt.

    Attributes:
        values: `[W]`, `[B, W]`, or `[B, P, W]` with one vector for each of `positions`.
    """

    values: Float[Numbers, "*axes W"] = array(1, has_width=True)

    def change(self, value: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        """See `Operation.change`; not for values of positions."""
        return jnp.broadcast_to(_of_tokens(self.values, 1), value.shape)


@flax.struct.dataclass(kw_only=True, repr=False)
class Splice(Operation):
    """The reconstruction of `x` by a sparse autoencoder, `f @ W_dec + b_dec`.

    With `pre = (x - b_dec) @ W_enc + b_enc`, the latents `f` are `relu(pre)`; with `threshold` only
    those above it, with `k` only the k largest of each token. `sae.splice` makes one of an
    autoencoder's files. With two splices one after the other, the second one reads what the first
    one made.

    Attributes:
        W_enc: `[W, m]`, encoder.
        W_dec: `[m, W]`, decoder.
        b_enc: `[m]`, bias of the encoder.
        b_dec: `[W]`, bias of the decoder.
        threshold: `[m]`, of each latent; None: 0.
        max_norm: largest norm of an `x` that is changed, a number or `[B]`; attention sinks have
            norms far above it. `inf` for no limit.
        k: most latents of a token; None: no limit. Another k is compiled anew, as `top_k` needs it.
        apply_b_dec_to_input: whether the encoder subtracts `b_dec` from `x`.
        keep_error: whether to add `x` minus its reconstruction, so that `x` stays as it is: shows
            what the splicing alone does.
    """

    W_enc: Float[Numbers, "..."] = array(2)
    W_dec: Float[Numbers, "..."] = array(2, has_width=True)
    b_enc: Float[Numbers, "..."] = array(1)
    b_dec: Float[Numbers, "..."] = array(1, has_width=True)
    threshold: Float[Numbers, "..."] | None = array(1, default=None)
    max_norm: Number = array(0, default=np.inf)
    k: int | None = flax.struct.field(pytree_node=False, default=None)
    apply_b_dec_to_input: bool = flax.struct.field(pytree_node=False, default=True)
    keep_error: bool = flax.struct.field(pytree_node=False, default=False)

    def change(self, value: Float[Array, "B T W"]) -> Float[Array, "B T W"]:
        """See `Operation.change`."""
        w_enc, w_dec = (jnp.asarray(w, jnp.float32) for w in (self.W_enc, self.W_dec))
        b_enc, b_dec = _of_tokens(self.b_enc, 1), _of_tokens(self.b_dec, 1)
        read = value - b_dec if self.apply_b_dec_to_input else value
        pre = jnp.einsum("btw,wm->btm", read, w_enc, precision="highest") + b_enc
        latents = jnp.maximum(pre, 0)
        if self.threshold is not None:
            latents = jnp.where(pre > _of_tokens(self.threshold, 1), latents, 0)
        if self.k is not None:
            largest, numbers = jax.lax.top_k(latents, self.k)
            latents = jnp.zeros_like(latents)
            latents = jnp.put_along_axis(latents, numbers, largest, axis=-1, inplace=False)
        made = jnp.einsum("btm,mw->btw", latents, w_dec, precision="highest") + b_dec
        if self.keep_error:
            made = made + (value - made)
            made = made + (value - made)  # what rounding left of the first
        norms = jnp.linalg.norm(value, axis=-1, keepdims=True)
        return jnp.where(norms <= _of_tokens(self.max_norm, 0), made, value)


@flax.struct.dataclass(repr=False)
class Interventions:
    """The operations of a call; `intervene` makes them.

    Attributes:
        operations: operations at each hook point, by canonical name, in the order of application.
        prompt_lengths: int32 `[B]`, number of tokens of each prompt.
    """

    operations: dict[str, tuple[Operation, ...]]
    prompt_lengths: Int[Array, " B"]

    def __repr__(self) -> str:
        told = [
            f"{name}: {', '.join(map(repr, several))}" for name, several in self.operations.items()
        ]
        return f"Interventions({few(told)}; {len(self.prompt_lengths)} samples)"

    def specs(self) -> list[P]:
        """Return the sharding of each number on a mesh, in the order of `jax.tree.leaves`."""
        return [
            P("data") if _is_per_sample(path, leaf) else P()
            for path, leaf in jax.tree_util.tree_leaves_with_path(self)
        ]

    def of_samples(self, numbers: np.ndarray) -> "Interventions":
        """Return the interventions of some samples, `numbers` int `[b]`, for a batch of them."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf[numbers] if _is_per_sample(path, leaf) else leaf, self
        )


def _is_per_sample(path: tuple[Any, ...], leaf: Any) -> bool:
    """Return whether the first axis of a leaf of `Interventions` is that of the samples."""
    name = path[-1].name
    return name == "prompt_lengths" or jnp.ndim(leaf) > shared_axes()[name]


def intervene(
    operations: Mapping[str, Operation | Sequence[Operation]],
    config: QwenConfig,
    prompt_lengths: Int[Numbers, " B"],
) -> Interventions:
    """Return the operations for a call of the model.

    Args:
        operations: operations by name, alias or pattern of hook points; several at a hook point
            apply one after the other.
        config: configuration of the model.
        prompt_lengths: int32 `[B]`, number of tokens of each prompt; later tokens are generated.

    Raises:
        ModelError: there is no such hook point, it cannot be changed, its width differs, an array
            has another number of samples, or a number is invalid (`operation_checks`).
    """
    lengths = jnp.asarray(prompt_lengths, jnp.int32)
    widths = hook_widths([site.name for site in sites(config)], config)
    found: dict[str, tuple[Operation, ...]] = {}
    for asked, given in operations.items():
        several = (given,) if isinstance(given, Operation) else tuple(given)
        several = tuple(_with_arrays(asked, operation, len(lengths)) for operation in several)
        for name in select(asked, config):
            if name not in widths:
                raise ModelError(
                    f"{name} cannot be changed: it is computed beside the fused attention, for"
                    " capture only"
                )
            for operation in several:
                _check_width(name, operation, widths[name])
            found[name] = found.get(name, ()) + several
    return Interventions(found, lengths)


def _with_arrays(name: str, operation: Operation, samples: int) -> Operation:
    """Return the operation with its numbers as arrays, one for each sample if needed."""
    check_numbers(name, {f.name: getattr(operation, f.name) for f in dataclasses.fields(operation)})
    changed: dict[str, Any] = {}
    for field, axes in shared_axes().items():
        value = getattr(operation, field, None)
        if value is None or isinstance(value, int | float):
            continue
        if not isinstance(value, jax.Array):
            value = np.asarray(value, np.int32 if field == "positions" else np.float32)
        if field == "positions" and value.ndim == 1:  # the same in every sample
            value = np.broadcast_to(value, (samples, *value.shape))
        if value.ndim > axes and value.shape[0] != samples:
            if value.shape[0] != 1:
                raise ModelError(
                    f"{name}: {field} has shape {list(value.shape)}, for {value.shape[0]} samples;"
                    f" there are {samples}"
                )
            value = jnp.broadcast_to(value, (samples, *value.shape[1:]))
        changed[field] = value
    return operation.replace(**changed)  # pyright: ignore[reportAttributeAccessIssue]


def _check_width(name: str, operation: Operation, width: int) -> None:
    for entry in dataclasses.fields(operation):
        if entry.metadata.get("has_width"):
            shape = jnp.shape(getattr(operation, entry.name))
            if shape[-1:] != (width,):
                raise ModelError(
                    f"{name} has {width} numbers, {entry.name} has shape {list(shape)}"
                )


def _short(value: Any) -> str:
    """Return a number as it is, and an array as its dtype and shape."""
    return repr(value) if np.ndim(value) == 0 else f"{value.dtype} {list(value.shape)}"


def _of_tokens(value: Number | Float[Numbers, "..."], axes: int) -> Float[Array, "samples one W"]:
    """Return a number or vector, shared or per sample, shaped to be used with values of tokens."""
    array = jnp.asarray(value, jnp.float32)
    if array.ndim == axes:
        array = array[None]
    return array.reshape(array.shape[0], 1, -1)
