"""One decoder block: attention and MLP, each after a norm, each added to the residual stream.

residual -> input_layernorm -> attention -> (+) -> post_attention_layernorm -> MLP -> (+) ->
    `------------------------------------'  `------------------------------------------'

With `post_norms` (Gemma 2) `post_attention_layernorm` comes before the first sum, and the MLP is
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
    """Everything that attention needs beside the residual stream; the same for all blocks.

    Attributes:
        cos: float32 `[B, T, H]`, cosine of the tokens' rotary angles.
        sin: float32 `[B, T, H]`, sine of the tokens' rotary angles.
        query_positions: int32 `[B, T]`, -1 for padding.
        key_positions: int32 `[B, S]`, positions of the keys: those of the tokens themselves, or of
            the slots of the cache.
        slot: int32 scalar, first cache slot of the tokens' keys; None without a cache.
        query_segments: int32 `[B, T]`, segment of each query, if documents are packed.
        key_segments: int32 `[B, S]`, segment of each key, if documents are packed.
        window: int32 scalar, window of the block that runs, if blocks with different windows are
            scanned; None: the block's own `window`.
        attention: static, name in `attention_backends.ATTENTION` of the attention for prompts.
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
        """Return the context with queries at these slots only and all keys."""
        segments = self.query_segments
        return dataclasses.replace(
            self,
            cos=take_rows(self.cos, rows),
            sin=take_rows(self.sin, rows),
            query_positions=take_rows(self.query_positions, rows),
            query_segments=None if segments is None else take_rows(segments, rows),
        )

    def visibility(self, window: Window) -> tuple[Any, ...]:
        """Return the arguments of `attention.attend` that decide which keys a query sees."""
        positions, segments = self.query_positions, self.query_segments
        return positions, self.key_positions, window, segments, self.key_segments


def _norm(config: QwenConfig, dtype: DTypeLike, key: str) -> RMSNorm:
    return RMSNorm(config.rms_norm_eps, dtype, key, config.norms_add_one)


class QwenAttention(nn.Module):
    """Grouped-query attention with rotary positions; biases and norms depend on the family."""

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
        """Mix the tokens; also return keys and values that later tokens may attend to.

        Without a cache those are the tokens' own; with a cache they are its buffers with the
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
    """A block of the model; its output is the residual stream of the hook point `layer_i`."""

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
        """Return the residual stream after the block, and the keys and values of the attention.

        With `rows` only those slots are returned and, if they are few, computed; keys and values
        are still computed for all slots. It is used for the last block, whose other slots nobody
        reads.
        """
        taps = taps or Taps()
        # `attend` holds the scores of all of these at once.
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
