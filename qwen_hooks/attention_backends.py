"""A prompt's attention to itself on each kind of device: three programs, the same result.

    xla      any device, any dtype      `attention.attend_causal`
    splash   TPU                        `attend_splash`, a Pallas kernel that ships with JAX
    cudnn    NVIDIA GPU, half precision `attend_cudnn`, the fused kernel of cuDNN

All take `(query, key, value, positions, window, segments, scoring)` as `attend_causal` does and
return the same rows for every slot that holds a token. Rows of padding are finite but differ, and
are never read. `ATTENTION` is the table of the programs; `choose_attention` chooses one of them.

    padding            left   right   both   between tokens     segments
    xla, splash        yes    yes     yes    no                 yes
    cudnn              no     yes     no     no                 no

Decode steps, with few queries and many keys, are `attention.attend` everywhere.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from qwen_hooks.attention import Scoring, attend_causal
from qwen_hooks.config import QwenConfig
from qwen_hooks.errors import ModelError

TPU_DEFAULT = "xla"
"""Meaning of "auto" on TPU. Splash attention compiles for TPUs and equals XLA's rows in Pallas'
interpreter, but has not run on a TPU yet, so it is not the default."""

LANES = 128
"""Vector width of a TPU, in slots: splash attention takes prompts in multiples of it."""

QUERY_BLOCK, KEY_BLOCK = 512, 1024
"""Largest splash blocks, in slots: large ones keep the matrix unit busy, and these compile."""

SPLASH_DTYPES = (jnp.dtype("bfloat16"), jnp.dtype("float32"))
CUDNN_DTYPES = (jnp.dtype("bfloat16"), jnp.dtype("float16"))

CUDNN_CAPABILITY = 8
"""First major compute capability (Ampere) with cuDNN's fused attention."""

CUDNN_HEAD_DIM, CUDNN_HEAD_DIM_HOPPER = 128, 256
"""Largest heads that cuDNN takes, before and from compute capability 9.0; multiples of 8 in both
(`check_is_flash_attention` in jax/_src/cudnn/fused_attention_stablehlo.py)."""


@functools.partial(
    jax.jit, static_argnames=("window", "scoring")
)  # the layers of a model share one trace
def attend_splash(
    query: Float[Array, "B S N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    positions: Int[Array, "B S"],
    window: int | None = None,
    segments: Int[Array, "B S"] | None = None,
    scoring: Scoring | None = None,
) -> Float[Array, "B S N H"]:
    """Return splash attention, a flash attention (arXiv 2205.14135) that skips masked blocks.

    Compiled on TPU, and interpreted on CPU, which is slow. On several devices it runs only inside
    `jax.shard_map(..., check_vma=False)`, because XLA cannot partition the kernel.

    Args:
        query: `[B, S, N, H]`, not scaled; float32 or bfloat16, any head dim.
        key: `[B, S, K, H]`.
        value: `[B, S, K, H]`.
        positions: int32 `[B, S]`, ascending along the tokens; -1 for padding, on either side.
        window: keys that a query sees, its own included; None: all before it.
        segments: int32 `[B, S]`, not negative; tokens see their own segment only.
    """
    # An experimental module of JAX: imported only where it is used.
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    _, slots, heads, head_dim = query.shape
    padded = -(-slots // LANES) * LANES

    def lay_out(x: Array) -> Array:
        """Transpose `[B, S, heads, H]` to the kernel's `[B, heads, padded, H]`."""
        return jnp.pad(x, ((0, 0), (0, padded - slots), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    # Slots ascend as positions do, so the kernel masks by slot. Padding is a separate segment, in
    # which every slot sees at least itself; otherwise its softmax would divide by zero.
    if segments is None:
        segments = jnp.zeros_like(positions)
    segments = jnp.where(positions < 0, -1, segments)
    segments = jnp.pad(segments, ((0, 0), (0, padded - slots)), constant_values=-1)
    # The kernel does not scale. In bfloat16 this rounds the query once more, unless H is a power of
    # four (64 is, 128 is not): noise of the size that rounding query and key has brought already.
    scoring = scoring or Scoring()
    scaled = query.astype(jnp.float32) * (scoring.scale or head_dim**-0.5)
    # The kernel takes no precision argument either, so `matmul_precision` is set as the default.
    with jax.default_matmul_precision("highest" if query.dtype == jnp.float32 else "default"):
        mixed = jax.lax.platform_dependent(
            *map(lay_out, (scaled.astype(query.dtype), key, value)),
            SegmentIds(q=segments, kv=segments),
            tpu=_splash(padded, heads, window, scoring.softcap, interpret=False),
            cpu=_splash(padded, heads, window, scoring.softcap, interpret=True),
        )
    return mixed.transpose(0, 2, 1, 3)[:, :slots]


def _splash(
    slots: int, heads: int, window: int | None, softcap: float | None, *, interpret: bool
) -> Callable:
    """Return the kernel for batches of `[B, heads, slots, H]` and segments `[B, slots]`."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash_kernel,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as splash_mask,
    )

    if window is None:
        mask = splash_mask.CausalMask((slots, slots))
    else:
        mask = splash_mask.LocalMask((slots, slots), (window - 1, 0), offset=0)
    blocks = splash_kernel.BlockSizes(
        block_q=_block(slots, QUERY_BLOCK), block_kv=_block(slots, KEY_BLOCK)
    )
    return jax.vmap(
        splash_kernel.make_splash_mha(
            splash_mask.MultiHeadMask([mask] * heads),
            block_sizes=blocks,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap,
            interpret=interpret,
        )
    )


def _block(slots: int, largest: int) -> int:
    """Return the largest divisor of `slots` up to `largest` that is a multiple of LANES.

    A divisor, because padding up to whole blocks costs more: 640 slots would become 1,024.
    """
    fitting = range(LANES, min(slots, largest) + 1, LANES)
    return max(size for size in fitting if slots % size == 0)


def attend_cudnn(
    query: Float[Array, "B S N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    positions: Int[Array, "B S"],
    window: int | None = None,
    segments: Int[Array, "B S"] | None = None,
    scoring: Scoring | None = None,
) -> Float[Array, "B S N H"]:
    """Return cuDNN's fused attention, for prompts padded on the right only.

    It masks by slots and not by positions, so there must be no padding to the left of a token.
    Padding on the right needs no mask, because a causal query never sees it.

    Args:
        query: `[B, S, N, H]`, not scaled; bfloat16 or float16.
        key: `[B, S, K, H]`.
        value: `[B, S, K, H]`.
        positions: int32 `[B, S]`; not read: assumed to be `0, 1, 2, ...` up to the padding.
        window: keys that a query sees, its own included; None: all before it.
        segments: must be None; cuDNN has no mask for segments.

    Raises:
        ModelError: the dtype is not one of cuDNN's, or there are segments or a soft cap.
    """
    refusal = _cudnn_dtype_refusal(query.dtype)
    if segments is not None:
        refusal = "attention 'cudnn' cannot run packed documents: use 'xla'"
    if scoring is not None and scoring.softcap is not None:
        refusal = NO_SOFTCAP
    if refusal:
        raise ModelError(refusal)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),  # before and after
        scale=(scoring.scale or None) if scoring is not None else None,
        implementation="cudnn",
    )


NO_SOFTCAP = "attention 'cudnn' has no soft cap for scores (Gemma 2 has one): use 'auto' or 'xla'"

ATTENTION: dict[str, Callable[..., Array]] = {
    "xla": attend_causal,
    "splash": attend_splash,
    "cudnn": attend_cudnn,
}


def check_attention(name: str) -> str:
    """Return the name if it is in `ATTENTION`, else raise.

    Raises:
        ModelError: it is not.
    """
    if name not in ATTENTION:
        raise ModelError(f"attention {name!r} is unknown; there are {', '.join(ATTENTION)}")
    return name


def choose_attention(
    requested: str,
    platform: str,
    dtype: DTypeLike,
    config: QwenConfig,
    *,
    compute_capability: str | None = None,
) -> str:
    """Return the name in `ATTENTION` of the attention for prompts.

    All of them support any window. The caller must know: `cudnn` needs prompts padded on the right,
    and `splash` runs on several devices only inside `jax.shard_map`.

    Args:
        requested: `auto`, or a name in the table, which is then checked.
        platform: `cpu`, `gpu` or `tpu`, as in `jax.Device.platform`.
        dtype: dtype of the activations.
        config: configuration of the model.
        compute_capability: that of the GPU, as in `jax.Device.compute_capability` (`9.0`,
            `gfx942`); None: not known, assumed to be an NVIDIA GPU of the Ampere generation.

    Raises:
        ModelError: the requested attention does not exist, or cannot run there.
    """
    no_cudnn = _cudnn_refusal(platform, dtype, config.head_dim, compute_capability)
    if config.attention_softcap is not None:
        no_cudnn = no_cudnn or NO_SOFTCAP
    if requested == "auto":
        if platform == "tpu":
            return TPU_DEFAULT
        return "cudnn" if platform == "gpu" and no_cudnn is None else "xla"
    check_attention(requested)
    if requested == "splash" and (platform != "tpu" or jnp.dtype(dtype) not in SPLASH_DTYPES):
        raise ModelError(
            "attention 'splash' runs on TPU in bfloat16 or float32, not on"
            f" {platform} in {jnp.dtype(dtype)}: use 'auto' or 'xla'"
        )
    if requested == "cudnn" and no_cudnn:
        raise ModelError(no_cudnn)
    return requested


def _cudnn_refusal(
    platform: str, dtype: DTypeLike, head_dim: int, compute_capability: str | None
) -> str | None:
    """Return why cuDNN cannot run the attention, and what to use instead; None if it can."""
    # AMD's GPUs have the platform "gpu" too; their capability is a name, not a number.
    major = (compute_capability or str(CUDNN_CAPABILITY)).partition(".")[0]
    generation = int(major) if major.isdigit() else 0
    if platform != "gpu" or generation < CUDNN_CAPABILITY:
        return (
            f"attention 'cudnn' runs on NVIDIA GPUs of compute capability {CUDNN_CAPABILITY}.0 and"
            f" newer, not on {compute_capability or platform}: use 'auto' or 'xla'"
        )
    largest = CUDNN_HEAD_DIM_HOPPER if generation >= 9 else CUDNN_HEAD_DIM
    if head_dim > largest or head_dim % 8:
        return (
            f"attention 'cudnn' takes heads in multiples of 8 up to {largest}, not a head_dim of"
            f" {head_dim}: use 'auto' or 'xla'"
        )
    return _cudnn_dtype_refusal(dtype)


def _cudnn_dtype_refusal(dtype: DTypeLike) -> str | None:
    if jnp.dtype(dtype) in CUDNN_DTYPES:
        return None
    return (
        f"attention 'cudnn' computes in bfloat16 or float16, not in {jnp.dtype(dtype)}:"
        " use bfloat16, or attention 'xla'"
    )
