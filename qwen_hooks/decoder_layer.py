"""One decoder block: attention and MLP, each after a norm, each added to the residual stream.

residual -> input_layernorm -> attention -> (+) -> post_attention_layernorm -> MLP -> (+) ->
    `------------------------------------'  `------------------------------------------'

With `post_norms` (Gemma 2) `post_attention_layernorm` stands before the first sum, and the MLP
between `pre_feedforward_layernorm` and `post_feedforward_layernorm`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from qwen_hooks.attention import BLOCK, Scoring, Window, attend, attention_pattern
from qwen_hooks.attention_backends import ATTENTION
from qwen_hooks.config import QwenConfig
from qwen_hooks.kv_cache import KeysValues, write_slots
from qwen_hooks.layers import Linear, QwenMLP, RMSNorm
from qwen_hooks.rope import rotate
from qwen_hooks.taps import Taps, take_rows


@flax.struct.dataclass
class AttentionContext:
    """What a block needs of the tokens beside their hidden states; alike for all blocks.

    Attributes:
        cos: float32 `[B, T, H]`, of the tokens' rotary angles.
        sin: likewise.
        query_positions: int32 `[B, T]`, -1 for padding.
        key_positions: int32 `[B, S]` of the keys that can be seen: the tokens themselves, or the
            slots of the cache.
        slot: int32 scalar, where in the cache the tokens' keys go; None without a cache.
        query_segments: int32 `[B, T]`, where several documents are packed into a row.
        key_segments: int32 `[B, S]`, likewise.
        window: int32 scalar, of the block that runs, where blocks that differ are scanned; None:
            the block knows its own.
        attention: static, the entry of `attention_backends.ATTENTION` for a prompt with itself.
    """

    cos: Float[Array, "B T H"]
    sin: Float[Array, "B T H"]
    query_positions: Int[Array, "B T"]
    key_positions: Int[Array, "B S"]
    slot: Int[Array, ""] | None = None
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    window: Int[Array, ""] | None = None
    attention: str = flax.struct.field(pytree_node=False, default="xla")

    def at_rows(self, rows: Int[Array, "B R"]) -> "AttentionContext":
        """The same for queries at these slots only; the keys stay."""
        segments = self.query_segments
        return dataclasses.replace(
            self,
            cos=take_rows(self.cos, rows),
            sin=take_rows(self.sin, rows),
            query_positions=take_rows(self.query_positions, rows),
            query_segments=None if segments is None else take_rows(segments, rows),
        )

    def visibility(self, window: Window) -> tuple[Any, ...]:
        """Who sees whom, as `attention.attend` takes it after queries, keys and values."""
        positions, segments = self.query_positions, self.query_segments
        return positions, self.key_positions, window, segments, self.key_segments


def _norm(config: QwenConfig, dtype: DTypeLike, key: str) -> RMSNorm:
    return RMSNorm(config.rms_norm_eps, dtype, key, config.norms_add_one)


class QwenAttention(nn.Module):
    """Grouped-query attention with rotary positions; biases and norms as the family has them."""

    config: QwenConfig
    window: int | None = None
    dtype: DTypeLike = "float32"

    def setup(self):  # noqa: D102
        config = self.config
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(queries, config.qkv_bias, self.dtype)
        self.k_proj = Linear(keys, config.qkv_bias, self.dtype)
        self.v_proj = Linear(keys, config.qkv_bias, self.dtype)
        self.o_proj = Linear(config.hidden_size, config.output_bias, self.dtype)
        if config.qk_norm:
            self.q_norm = _norm(config, self.dtype, "q_norm")
            self.k_norm = _norm(config, self.dtype, "k_norm")

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: AttentionContext,
        taps: Taps,
        cache: KeysValues | None = None,
        rows: Int[Array, "B R"] | None = None,
    ) -> tuple[Float[Array, "B R D"], KeysValues]:
        """Mixes the tokens; also returns the keys and values that later tokens may attend to.

        Without a cache those are the tokens' own, with one they are the cache's buffers, the
        tokens' own written into them. With `rows` only those slots of the input are queries.
        """
        batch, tokens, _ = x.shape
        heads = (batch, tokens, -1, self.config.head_dim)
        repeats = self.config.kv_repeats
        window = self.window if context.window is None else context.window
        scoring = Scoring(scale=self.config.attention_scale, softcap=self.config.attention_softcap)
        key = taps("k", self.k_proj(x).reshape(heads), every=repeats)
        if self.config.qk_norm:
            key = self.k_norm(key, taps, every=repeats)
        key = taps("k_rotated", rotate(key, context.cos, context.sin), every=repeats)
        seen = (key, taps("v", self.v_proj(x).reshape(heads), every=repeats))
        query_context = context
        if rows is not None:
            query_context, x, taps = context.at_rows(rows), take_rows(x, rows), taps.of_rows()
        query = taps("q", self.q_proj(x).reshape(batch, x.shape[1], -1, self.config.head_dim))
        if self.config.qk_norm:
            query = self.q_norm(query, taps)
        query = taps("q_rotated", rotate(query, query_context.cos, query_context.sin))
        if cache is not None:
            assert context.slot is not None
            seen = write_slots(cache, seen, context.slot)
        if "pattern" in taps.wanted:
            visibility = query_context.visibility(window)
            taps("pattern", attention_pattern(query, seen[0], *visibility, scoring=scoring))
        if cache is None and rows is None:
            attend_prompt = ATTENTION[context.attention]
            mixed = attend_prompt(
                query, *seen, context.key_positions, window, context.key_segments, scoring
            )
        else:
            mixed = attend(query, *seen, *query_context.visibility(window), scoring=scoring)
        mixed = self.o_proj(taps("z", mixed).reshape(*x.shape[:2], -1))
        return taps("attention.output" if self.config.post_norms else "attention", mixed), seen


class QwenDecoderLayer(nn.Module):
    """A block of the model; its output is the residual stream that `layer_i` names."""

    config: QwenConfig
    window: int | None = None
    dtype: DTypeLike = "float32"

    def setup(self):  # noqa: D102
        config = self.config
        self.input_layernorm = _norm(config, self.dtype, "input_layernorm")
        self.self_attn = QwenAttention(config, self.window, self.dtype)
        if config.post_norms:
            self.post_attention_layernorm = _norm(config, self.dtype, "attention")
            self.pre_feedforward_layernorm = _norm(config, self.dtype, "mlp_norm")
            self.post_feedforward_layernorm = _norm(config, self.dtype, "mlp")
        else:
            self.post_attention_layernorm = _norm(config, self.dtype, "mlp_norm")
        self.mlp = QwenMLP(
            config.hidden_size,
            config.intermediate_size,
            self.dtype,
            config.mlp_bias,
            config.activation,
        )

    def __call__(
        self,
        residual: Float[Array, "B T D"],
        context: AttentionContext,
        taps: Taps | None = None,
        cache: KeysValues | None = None,
        rows: Int[Array, "B R"] | None = None,
    ) -> tuple[Float[Array, "B R D"], KeysValues]:
        """The residual stream after the block, and what `QwenAttention` returns for the cache.

        With `rows` only those slots come out, and only they go through the block, if they are few;
        keys and values are still made of all slots. For the last block, when nobody reads the
        others.
        """
        taps = taps or Taps()
        # The scores of all of these exist at once.
        few = rows if rows is not None and rows.shape[1] <= BLOCK else None
        residual = taps("resid_pre", residual)
        x = self.input_layernorm(residual, taps)
        mixed, seen = self.self_attn(x, context, taps, cache, few)
        if few is not None:
            residual, taps = take_rows(residual, few), taps.of_rows()
        if self.config.post_norms:
            mixed = self.post_attention_layernorm(mixed, taps)
        residual = taps("resid_mid", residual + mixed)
        if self.config.post_norms:
            x = self.pre_feedforward_layernorm(residual, taps)
            added = taps("mlp.output", self.mlp(x, taps))
            added = self.post_feedforward_layernorm(added, taps)
        else:
            x = self.post_attention_layernorm(residual, taps)
            added = taps("mlp", self.mlp(x, taps))
        residual = taps("resid_post", residual + added)
        if rows is not None and few is None:
            residual = take_rows(residual, rows)
        return residual, seen
