"""Rotary position embeddings: frequencies, their scaling (linear, YaRN, Llama 3), rotation.

Angles are always float32: bfloat16 rounds position 257 to 256. Source: RoFormer
(arXiv 2104.09864), YaRN (arXiv 2309.00071), in Hugging Face's half-split layout, where
dimension i is paired with i + H/2.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qwen_hooks.rope_config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[np.ndarray, float]:
    """Return radians per token of each dimension pair, and the scale of cos and sin.

    Returns:
        float32 `[H / 2]`, and the attention factor (1 unless YaRN).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # One unit in the last place here is 0.002 radians at position 32,768; a float64 power,
    # rounded, gives torch's float32 numbers.
    wavelengths = np.float64(rope.theta) ** exponents.astype(np.float64)
    plain = np.float32(1) / wavelengths.astype(np.float32)
    if rope.rope_type == "default":
        return plain, 1.0
    stretched = plain / np.float32(rope.factor)
    if rope.rope_type == "linear":
        return stretched, 1.0
    if rope.rope_type == "llama3":
        return _llama3(rope, plain, stretched), 1.0
    keep = 1 - _yarn_ramp(rope, head_dim)
    return stretched * (1 - keep) + plain * keep, _yarn_attention_factor(rope)


def _llama3(rope: RopeConfig, plain: np.ndarray, stretched: np.ndarray) -> np.ndarray:
    """Scale frequencies as Llama 3: keep short wavelengths, stretch long ones, mix in between."""
    assert rope.original_max_position_embeddings is not None  # RopeConfig refuses None here
    context = np.float32(rope.original_max_position_embeddings)
    low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
    # In float32 and in Hugging Face's order: half a unit in the last place is 0.001 radians at
    # position 32,768.
    wavelengths = np.float32(2 * math.pi) / plain
    keep = np.clip((context / wavelengths - low) / (high - low), 0, 1)
    mixed = (1 - keep) * plain / np.float32(rope.factor) + keep * plain
    return np.where(keep == 0, stretched, np.where(keep == 1, plain, mixed)).astype(np.float32)


def _yarn_ramp(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Return 0 for fast dimensions (kept as they are) up to 1 for slow ones (fully stretched)."""
    context = rope.original_max_position_embeddings
    assert context is not None  # QwenConfig fills it in for YaRN

    def dimension_with(rotations: float) -> float:
        wavelength = context / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension_with(rope.beta_fast), dimension_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low)
    return np.clip(ramp, 0, 1).astype(np.float32)


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def scale(coefficient: float) -> float:
        return 0.1 * coefficient * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def rotary_angles(
    rope: RopeConfig, head_dim: int, positions: Int[Array, "B S"]
) -> tuple[Float[Array, "B S H"], Float[Array, "B S H"]]:
    """Return cosine and sine of every position's angles, float32 `[B, S, H]`, both halves equal."""
    frequencies, scale = inverse_frequencies(rope, head_dim)
    angles = positions.astype(jnp.float32)[..., None] * frequencies[None, None, :]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    heads: Float[Array, "B S N H"], cos: Float[Array, "B S H"], sin: Float[Array, "B S H"]
) -> Float[Array, "B S N H"]:
    """Rotate each pair of dimensions by its position's angle; keep the dtype of `heads`."""
    heads32 = heads.astype(jnp.float32)
    first, second = jnp.split(heads32, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    rotated = heads32 * cos[:, :, None, :] + turned * sin[:, :, None, :]
    return rotated.astype(heads.dtype)
