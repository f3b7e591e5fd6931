"""A trained sparse autoencoder: its weights, and what they do to rows.

    pre = (x - b_dec) @ W_enc + b_enc               without "- b_dec" if not apply_b_dec_to_input
    standard   latents = relu(pre)
    jumprelu   latents = relu(pre) where pre > threshold, else 0
    topk       latents = relu of the k largest of pre, else 0
    reconstruction = latents @ W_dec + b_dec

With `rescale_acts_by_decoder_norm`, topk multiplies `pre` by the norms of W_dec's rows before it
selects, and the decoder divides the latents by them, as in SAELens. Letters of shapes: `d_in` and
`d_out` widths of the rows, equal unless the SAE is a transcoder; `d_sae` number of latents.

numpy arrays give numpy arrays, and jax arrays give jax arrays, also in a `jax.jit`. This module
does not import jax; whoever passes a jax array has.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from extraction.errors import StoreError
from extraction.formats.float_types import SOURCES

ARCHITECTURES = ("standard", "topk", "jumprelu")
"""How `pre` becomes latents; more names exist while an SAE is trained."""

Rows = TypeVar("Rows")
"""A numpy or a jax array."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SparseAutoencoder:
    """Weights of a sparse autoencoder, float32 or float64, checked against each other.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        W_enc: encoder, [d_in, d_sae].
        W_dec: decoder, [d_sae, d_out].
        b_enc: bias of the encoder, [d_sae].
        b_dec: bias of the decoder, [d_out].
        threshold: of each latent for jumprelu, [d_sae]; None for the others.
        k: most latents of a row for topk; None for the others.
        apply_b_dec_to_input: whether the encoder subtracts b_dec; False in a transcoder.
        rescale_acts_by_decoder_norm: for topk, whether latents count times the norm of their row
            of W_dec.
        metadata: JSON values: model, hook point, filters, rows seen, training settings.

    Raises:
        StoreError: arrays or settings that do not fit each other.
    """

    architecture: str
    W_enc: np.ndarray
    W_dec: np.ndarray
    b_enc: np.ndarray
    b_dec: np.ndarray
    threshold: np.ndarray | None = None
    k: int | None = None
    apply_b_dec_to_input: bool = True
    rescale_acts_by_decoder_norm: bool = False
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            raise StoreError(
                f"architecture={self.architecture!r} is none of {', '.join(ARCHITECTURES)}"
            )
        self._check_arrays()
        if (self.k is not None) != (self.architecture == "topk"):
            raise StoreError(f"k={self.k} for {self.architecture}; topk has a k, and only it")
        if self.k is not None and not 1 <= self.k <= self.d_sae:
            raise StoreError(f"k={self.k} is not between 1 and d_sae={self.d_sae}")
        if self.rescale_acts_by_decoder_norm and self.architecture != "topk":
            raise StoreError("rescale_acts_by_decoder_norm=True is for topk only")
        if self.apply_b_dec_to_input and self.d_in != self.d_out:
            raise StoreError(
                f"apply_b_dec_to_input=True with d_in={self.d_in} and d_out={self.d_out}: b_dec"
                " [d_out] cannot be subtracted from rows [d_in]; use False"
            )

    def _check_arrays(self) -> None:
        """Refuse arrays of wrong types, shapes or dtypes."""
        if (self.threshold is not None) != (self.architecture == "jumprelu"):
            given = "no threshold" if self.threshold is None else "a threshold"
            raise StoreError(f"{given} for {self.architecture}; jumprelu has one, and only it")
        arrays = self.arrays()
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
                kind = getattr(array, "dtype", type(array).__name__)
                raise StoreError(f"{name} is {kind}; numpy float32 or float64 is needed")
        for name in ("W_enc", "W_dec"):
            if arrays[name].ndim != 2 or 0 in arrays[name].shape:
                raise StoreError(f"{name} is {list(arrays[name].shape)}, not a matrix")
        d_sae, d_out = self.W_enc.shape[1], self.W_dec.shape[1]
        wanted = {
            "W_dec": (d_sae, d_out),
            "b_enc": (d_sae,),
            "b_dec": (d_out,),
            "threshold": (d_sae,),
        }
        for name, array in arrays.items():
            if name in wanted and array.shape != wanted[name]:
                raise StoreError(
                    f"{name} is {list(array.shape)}; W_enc {list(self.W_enc.shape)} and W_dec"
                    f" {list(self.W_dec.shape)} need {list(wanted[name])}"
                )

    def _repr_html_(self) -> str:
        from extraction.notebook_html import summary

        facts = {"architecture": self.architecture, "latents": f"{self.d_sae:,}"}
        facts["widths"] = f"{self.d_in} to {self.d_out}"
        for name in ("model_name", "hook_point", "rows_trained_on", "l0", "num_dead_features"):
            if name in self.metadata:
                value = self.metadata[name]
                facts[name.replace("_", " ")] = (
                    f"{value:.4g}" if type(value) is float else str(value)
                )
        return summary("Sparse autoencoder", facts)

    @property
    def d_in(self) -> int:
        """Width of the rows that are encoded."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the reconstructions; `d_in`, unless it is a transcoder."""
        return self.W_dec.shape[1]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights by their names in files."""
        named = {
            "W_enc": self.W_enc,
            "W_dec": self.W_dec,
            "b_enc": self.b_enc,
            "b_dec": self.b_dec,
            "threshold": self.threshold,
        }
        return {name: array for name, array in named.items() if array is not None}

    @functools.cached_property
    def decoder_norms(self) -> np.ndarray:
        """Norms of W_dec's rows, [d_sae]."""
        return np.linalg.norm(self.W_dec, axis=1)

    def encode(self, rows: Rows) -> Rows:
        """Return the latents of rows.

        Args:
            rows: [..., d_in], numpy or jax; float16, bfloat16 and float32 are computed in float32,
                float64 in float64.

        Returns:
            [..., d_sae], 0 where a latent is off. Latents of a row that is not finite are not.

        Raises:
            StoreError: rows of another width or dtype.
        """
        lib, x, w = self._prepared(rows, "rows", "d_in")
        if self.apply_b_dec_to_input:
            x = x - w["b_dec"]
        pre = _product(lib, x, w["W_enc"]) + w["b_enc"]
        if self.architecture == "jumprelu":  # a product, which leaves NaN visible
            return lib.maximum(pre, 0) * (pre > w["threshold"]).astype(pre.dtype)
        if self.architecture == "topk":
            assert self.k is not None
            if self.rescale_acts_by_decoder_norm:
                pre = pre * w["decoder_norms"]
            pre = _only_largest(lib, pre, self.k)
        return lib.maximum(pre, 0)

    def decode(self, latents: Rows) -> Rows:
        """Return the reconstructions of latents.

        Args:
            latents: [..., d_sae], numpy or jax, of the dtypes of `encode`.

        Returns:
            [..., d_out].

        Raises:
            StoreError: latents of another width or dtype.
        """
        lib, f, w = self._prepared(latents, "latents", "d_sae")
        if self.rescale_acts_by_decoder_norm:
            # A latent without a direction adds nothing, whatever its value.
            norms = w["decoder_norms"]
            f = f / lib.where(norms > 0, norms, lib.ones_like(norms))
        return _product(lib, f, w["W_dec"]) + w["b_dec"]

    def __call__(self, rows: Rows) -> Rows:
        """Return `decode(encode(rows))`."""
        return self.decode(self.encode(rows))

    def __repr__(self) -> str:
        of = f", k={self.k}" if self.k else ""
        hook = self.metadata.get("hook_point")
        return (
            f"SparseAutoencoder({self.architecture}{of}: {self.d_in} -> {self.d_sae:,} latents"
            f" -> {self.d_out}{f', of {hook}' if hook else ''})"
        )

    def _prepared(self, values: Any, name: str, width: str) -> tuple[Any, Any, dict[str, Any]]:
        """Return numpy or jax.numpy, the values, and the weights, both in the dtype to compute in.

        Vectors among the weights get as many axes as the values have.

        Args:
            values: rows or latents.
            name: what they are, for messages.
            width: attribute that their last axis must equal.
        """
        lib: Any = np
        jax = sys.modules.get("jax")
        if jax is not None and isinstance(values, jax.Array):
            lib = jax.numpy
        elif not isinstance(values, np.ndarray):
            raise StoreError(f"{name} are a {type(values).__name__}; give a numpy or jax array")
        if values.dtype.name not in SOURCES:
            raise StoreError(f"{name} are {values.dtype.name}; give one of {', '.join(SOURCES)}")
        if values.ndim == 0 or values.shape[-1] != getattr(self, width):
            raise StoreError(
                f"{name} are {list(values.shape)}; their last axis must be"
                f" {width}={getattr(self, width)}"
            )
        weights = self._numpy_weights if lib is np else self._jax_weights
        rows_dtype = values.dtype if values.dtype.itemsize >= 4 else np.dtype(np.float32)
        dtype = np.promote_types(rows_dtype, weights["W_enc"].dtype)
        return (
            lib,
            values.astype(dtype, copy=False),
            {
                key: weight.astype(dtype, copy=False).reshape(
                    weight.shape if weight.ndim == 2 else (1,) * (values.ndim - 1) + (-1,)
                )
                for key, weight in weights.items()
            },
        )

    @functools.cached_property
    def _numpy_weights(self) -> dict[str, np.ndarray]:
        norms = {"decoder_norms": self.decoder_norms} if self.rescale_acts_by_decoder_norm else {}
        return self.arrays() | norms

    @functools.cached_property
    def _jax_weights(self) -> dict[str, Any]:
        """The weights on the default device, copied there once."""
        jax = sys.modules["jax"]
        with jax.ensure_compile_time_eval():  # also on first use within a jit: arrays, no tracers
            return {name: jax.numpy.asarray(value) for name, value in self._numpy_weights.items()}


def _product(lib: Any, a: Any, b: Any) -> Any:
    """Return `a @ b`; jax would round float32 to bfloat16 on a TPU."""
    return np.matmul(a, b) if lib is np else lib.matmul(a, b, precision="highest")


def _only_largest(lib: Any, pre: Any, k: int) -> Any:
    """Return the k largest numbers of each row, 0 elsewhere; of equal ones, the first count."""
    if lib is not np:
        values, places = sys.modules["jax"].lax.top_k(pre, k)
        return lib.put_along_axis(lib.zeros_like(pre), places, values, axis=-1, inplace=False)
    width = pre.shape[-1]
    smallest = np.partition(pre, width - k, axis=-1)[..., width - k, None]
    kept = ~(pre < smallest)  # true for NaN, which then stay visible
    if (kept.sum(axis=-1) > k).any():
        above = pre > smallest
        equal = kept & ~above
        room = k - above.sum(axis=-1, keepdims=True)
        kept = above | (equal & (np.cumsum(equal, axis=-1) <= room))
    return np.where(kept, pre, 0)
