"""A sparse autoencoder in memory: weights, how latents become active, where it came from."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from extraction.errors import StoreError

Architecture = Literal["standard", "topk", "jumprelu"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SparseAutoencoder:
    """A sparse autoencoder, or a transcoder, in the terms of SAELens.

        latents = sae.encode(rows)      # [..., d_in] -> [..., d_sae]
        rows = sae.decode(latents)      # [..., d_sae] -> [..., d_out]

    `pre = (rows - b_dec) @ W_enc + b_enc`; the latents are

        standard   relu(pre)
        topk       relu(pre) of the k largest pre of each row, the others 0
        jumprelu   relu(pre) where pre > threshold, else 0

    Attributes:
        architecture: how latents become active.
        W_enc: `[d_in, d_sae]`.
        W_dec: `[d_sae, d_out]`.
        b_enc: `[d_sae]`.
        b_dec: `[d_out]`.
        threshold: `[d_sae]`, of jumprelu.
        k: number of active latents of a row, of topk.
        apply_b_dec_to_input: whether `b_dec` is subtracted from rows; never for transcoders.
        rescale_acts_by_decoder_norm: topk: latents are multiplied by the norm of their decoder row,
            by which they are also chosen, and divided by it in `decode`.
        metadata: where the rows came from and how it was trained.

    Raises:
        StoreError: shapes do not fit each other.
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
        if self.architecture not in ("standard", "topk", "jumprelu"):
            raise StoreError(
                f"architecture is standard, topk or jumprelu, not {self.architecture!r}"
            )
        shapes = {name: array.shape for name, array in self.arrays().items()}
        if len(shapes["W_enc"]) != 2 or len(shapes["W_dec"]) != 2:
            raise StoreError(f"W_enc and W_dec must have two axes, not {shapes}")
        d_in, d_sae = shapes["W_enc"]
        d_out = shapes["W_dec"][1]
        expected = {"W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,)}
        if self.architecture == "jumprelu":
            expected["threshold"] = (d_sae,)
        for name, shape in expected.items():
            if shapes.get(name) != shape:
                raise StoreError(f"{name} must have shape {shape}, not {shapes.get(name)}")
        if self.apply_b_dec_to_input and d_in != d_out:
            raise StoreError(f"b_dec of width {d_out} cannot be subtracted from rows of {d_in}")
        if self.architecture == "topk" and not (self.k and 1 <= self.k <= d_sae):
            raise StoreError(f"topk needs k from 1 to {d_sae}, not {self.k}")

    def __repr__(self) -> str:
        of = f", k={self.k}" if self.k else ""
        hook = self.metadata.get("hook_point")
        return (
            f"SparseAutoencoder({self.architecture}{of}: {self.d_in} -> {self.d_sae:,} latents"
            f" -> {self.d_out}{f', of {hook}' if hook else ''})"
        )

    @property
    def d_in(self) -> int:
        """Width of the rows."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the reconstruction."""
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

    def encode(self, rows: Any) -> Any:
        """Return latents `[..., d_sae]` of rows `[..., d_in]`, numpy or JAX as the rows are.

        Raises:
            StoreError: the rows have another width.
        """
        xp = _module_of(rows)
        rows = _floating(xp, rows, self.d_in, "rows")
        w_enc, b_enc, b_dec = (xp.asarray(a) for a in (self.W_enc, self.b_enc, self.b_dec))
        pre = (rows - b_dec if self.apply_b_dec_to_input else rows) @ w_enc + b_enc
        if self.architecture == "standard":
            return xp.maximum(pre, 0)
        if self.architecture == "jumprelu":
            return xp.where(pre > xp.asarray(self.threshold), xp.maximum(pre, 0), 0)
        if self.rescale_acts_by_decoder_norm:
            pre = pre * xp.asarray(np.linalg.norm(self.W_dec, axis=1))
        assert self.k is not None
        chosen = xp.argpartition(pre, -self.k, axis=-1)[..., -self.k :]
        values = xp.maximum(xp.take_along_axis(pre, chosen, -1), 0)
        if xp is np:
            latents = np.zeros_like(pre)
            np.put_along_axis(latents, chosen, values, -1)
            return latents
        return xp.put_along_axis(xp.zeros_like(pre), chosen, values, -1, inplace=False)

    def decode(self, latents: Any) -> Any:
        """Return reconstructions `[..., d_out]` of latents `[..., d_sae]`.

        Raises:
            StoreError: there is another number of latents.
        """
        xp = _module_of(latents)
        latents = _floating(xp, latents, self.d_sae, "latents")
        if self.rescale_acts_by_decoder_norm:
            latents = latents / xp.asarray(np.linalg.norm(self.W_dec, axis=1))
        return latents @ xp.asarray(self.W_dec) + xp.asarray(self.b_dec)

    def __call__(self, rows: Any) -> Any:
        """Return the reconstructions `[..., d_out]` of rows `[..., d_in]`."""
        return self.decode(self.encode(rows))


def _module_of(array: Any) -> Any:
    """Return `numpy`, or `jax.numpy` for JAX's arrays."""
    if type(array).__module__.partition(".")[0] in ("jax", "jaxlib"):
        import jax.numpy

        return jax.numpy
    return np


def _floating(xp: Any, array: Any, width: int, name: str) -> Any:
    """Return an array in float32 or float64, of the expected width."""
    array = xp.asarray(array)
    if not array.ndim or array.shape[-1] != width:
        raise StoreError(f"{name} must be [..., {width}], not {list(array.shape)}")
    return array if array.dtype == np.float64 else array.astype(np.float32)
