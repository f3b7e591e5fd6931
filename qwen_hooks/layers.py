"""RMSNorm, linear maps and the gated MLP: plain functions, and Linen modules around them.

Every layer computes in the dtype of its input, which is the dtype of the parameters. Norms, softmax
and angles need float32, so they convert to float32 and back.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from qwen_hooks.taps import Taps


def matmul_precision(dtype: DTypeLike) -> jax.lax.Precision:
    """Return the matmul precision of a dtype: float32 is multiplied in full float32."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def rms_normalize(x: Float[Array, "*B D"], epsilon: float) -> Float[Array, "*B D"]:
    """Return `x` divided by its root mean square (arXiv 1910.07467), in float32."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return x32 * scale


def linear(
    x: Float[Array, "*B D"],
    kernel: Float[Array, "D F"],
    bias: Float[Array, " F"] | None = None,
) -> Float[Array, "*B F"]:
    """Return `x @ kernel + bias`; a kernel `[in, out]` decodes a quarter faster on CPU."""
    if x.dtype == jnp.bfloat16:
        y = jax.lax.platform_dependent(x, kernel, cpu=_dot_by_float32, default=jnp.dot)
    else:
        y = jnp.dot(x, kernel, precision=matmul_precision(x.dtype))
    return y if bias is None else y + _for_last_axis(bias, y)


def _dot_by_float32(x: Float[Array, "*B D"], kernel: Float[Array, "D F"]) -> Float[Array, "*B F"]:
    """Return the product computed in float32 and rounded at the end; three times faster on CPU."""
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def _for_last_axis(vector: Float[Array, " D"], x: Float[Array, "*B D"]) -> Float[Array, "*ones D"]:
    """Return the vector with leading axes of one, so that nothing is broadcast by accident."""
    return jax.lax.expand_dims(vector, range(x.ndim - 1))


class RMSNorm(nn.Module):
    """Root-mean-square norm times a weight. The parameter is `weight` `[D]`.

    Attributes:
        epsilon: number added to the mean square.
        dtype: dtype of the weight that `init` makes.
        key: key of the hook point at the output; `{key}.normalized` is the one before the weight.
        add_one: multiply with one plus the weight, before rounding (Gemma 2).
    """

    epsilon: float
    dtype: DTypeLike = jnp.float32
    key: str = "norm"
    add_one: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "*B D"], taps: Taps | None = None, every: int = 1
    ) -> Float[Array, "*B D"]:
        """Return the normalised input, rounded to its dtype (as in Hugging Face), times weight.

        Args:
            x: `[..., D]`.
            taps: captures and interventions; None: none.
            every: with repeated KV heads, every n-th head is a head of the checkpoint; see `Taps`.
        """
        taps = taps or Taps()
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],), self.dtype)
        exact = rms_normalize(x, self.epsilon)
        rounded = exact.astype(x.dtype)
        normalized = taps(f"{self.key}.normalized", rounded, every=every)
        if self.add_one:
            if normalized is not rounded:  # an intervention changed it
                exact = normalized.astype(jnp.float32)
            scaled = (1 + _for_last_axis(weight.astype(jnp.float32), x)) * exact
            return taps(self.key, scaled.astype(x.dtype), every=every)
        return taps(self.key, _for_last_axis(weight, x) * normalized, every=every)


class Linear(nn.Module):
    """A linear map. Parameters: `kernel` `[in, out]` and, with `use_bias`, `bias` `[out]`."""

    features: int
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
        """See `linear`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape, self.dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        return linear(x, kernel, bias)


ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": jax.nn.gelu}
"""Activation functions by their names in config.json; `jax.nn.gelu` is the tanh approximation."""


class QwenMLP(nn.Module):
    """`down(activation(gate(x)) * up(x))`, `[B, S, D]` to `[B, S, D]`."""

    hidden_size: int
    intermediate_size: int
    dtype: DTypeLike = jnp.float32
    use_bias: bool = False
    activation: str = "silu"

    def setup(self):  # noqa: D102
        self.gate_proj = Linear(self.intermediate_size, self.use_bias, self.dtype)
        self.up_proj = Linear(self.intermediate_size, self.use_bias, self.dtype)
        self.down_proj = Linear(self.hidden_size, self.use_bias, self.dtype)

    def __call__(self, x: Float[Array, "B S D"], taps: Taps) -> Float[Array, "B S D"]:
        """Return the output of the gated MLP of Shazeer (arXiv 2002.05202)."""
        gate, up = taps("gate", self.gate_proj(x)), taps("up", self.up_proj(x))
        return self.down_proj(taps("neurons", ACTIVATIONS[self.activation](gate) * up))


class Embedding(nn.Module):
    """Token embeddings. The parameter is `weight` `[V, D]`; a tied unembedding is its transpose.

    An embedding is a row of `weight` times `scale`, which is rounded to the weight's dtype first.
    """

    vocab_size: int
    hidden_size: int
    dtype: DTypeLike = jnp.float32
    scale: float = 1.0

    def setup(self):  # noqa: D102
        shape = (self.vocab_size, self.hidden_size)
        self.weight = self.param("weight", nn.initializers.normal(0.02), shape, self.dtype)

    def __call__(self, input_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return the embeddings of the tokens, scaled."""
        rows = self.weight[input_ids]
        return rows if self.scale == 1 else rows * jnp.asarray(self.scale, rows.dtype)

    def attend(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Return float32 logits of a tied unembedding."""
        return jax.lax.dot_general(
            hidden,
            self.weight,
            (((hidden.ndim - 1,), (1,)), ((), ())),
            precision=matmul_precision(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
