"""A language model with its activations. Read top to bottom; then `decoder_layer`, `taps`.

Dimension letters, used in the whole package:

    B batch     S sequence    T tokens of this call    R slots of them whose rows are wanted
    D hidden (residual stream)    N query heads    K key/value heads    H head dim
    F mlp    V vocabulary    L layers

There are two ways to run it. `model.apply(params, input_ids, attention_mask, True)` is for
notebooks: it returns logits and activations of every position. The functions `forward` and
`unembed` are for fast loops: they use a KV cache, stop at the deepest block that is needed, and
compute logits only where the next token is wanted.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from qwen_hooks.activations import NamedActivations
from qwen_hooks.attention import soft_cap
from qwen_hooks.config import QwenConfig
from qwen_hooks.decoder_layer import AttentionContext, QwenDecoderLayer
from qwen_hooks.edits import edits_of
from qwen_hooks.errors import ModelError
from qwen_hooks.hook_points import AFTER_BLOCKS, blocks_needed, by_layer, few, sites
from qwen_hooks.interventions import Interventions
from qwen_hooks.kv_cache import KeysValues, KVCache, StackedKeysValues
from qwen_hooks.layers import Embedding, Linear, RMSNorm
from qwen_hooks.rope import rotary_angles
from qwen_hooks.scanned_layers import run_scanned
from qwen_hooks.taps import Taps

Activations = dict[str, Float[Array, "B R ..."]]
TokenIds = Int[Array | np.ndarray, "B S"]
AttentionMask = Shaped[Array | np.ndarray, "B S"]
EVERY_KEY = 2**30
"""Window of a block without a sliding window, if it is scanned with blocks that have one."""

Params = Mapping[str, Any]
"""The variables of the model, `{'params': ...}`."""


@flax.struct.dataclass
class ForwardOutput:
    """The results of `forward`.

    Attributes:
        residual: `[B, R, D]`, residual stream after the last block that ran, before the final norm.
            R is T, or the number of slots in `rows`.
        activations: `[B, R, ...]` of each computed hook point, by name, in the order of the model's
            `hook_points`; `layer_i` is `[B, R, D]`.
        cache: the filled cache; None if none was given.
        keys_values: keys and values of each block that ran, for `KVCache.from_prefill`; empty if
            a cache was given.
    """

    residual: Float[Array, "B R D"]
    activations: Activations
    cache: KVCache | None
    keys_values: tuple[KeysValues, ...] | StackedKeysValues


class QwenModelWithActivations(nn.Module):
    """A causal language model that returns its activations at chosen hook points.

    The model computes in the dtype of the parameters; logits are float32. Build it with
    `create_model_with_hooks`, which checks the names.

    Attributes:
        config: shape and constants of the model.
        hook_points: canonical names of the captured hook points, in the order of computation.
        dtype: dtype of the parameters that `init` makes.
        attention: attention kernel for prompts, one of `attention_backends.ATTENTION`: `xla`,
            `splash` (TPU), or `cudnn` (GPU, half precision, padding on the right only).
        scan_layers: whether the blocks run as a loop over stacked parameters (`scanned_layers`).
    """

    config: QwenConfig
    hook_points: tuple[str, ...]
    dtype: DTypeLike = jnp.float32
    attention: str = "xla"
    scan_layers: bool = False

    if TYPE_CHECKING:  # Flax declares what `init_with_output` returns

        def apply(self, variables: Params, *args: Any, **kwargs: Any) -> Any: ...  # noqa: D102

    def setup(self):  # noqa: D102
        config = self.config
        self.embed_tokens = Embedding(
            config.vocab_size, config.hidden_size, self.dtype, config.embedding_scale
        )
        if self.scan_layers:
            self.stacked = self.param("layers", self._init_stacked)
        else:
            self.layers = [
                QwenDecoderLayer(config, config.layer_window(i), self.dtype, name=f"layers_{i}")
                for i in range(config.num_hidden_layers)
            ]
        self.norm = RMSNorm(config.rms_norm_eps, self.dtype, add_one=config.norms_add_one)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.vocab_size, dtype=self.dtype)

    @overload
    def __call__(
        self,
        input_ids: TokenIds,
        attention_mask: AttentionMask | None = None,
        return_activations: Literal[False] = False,
        interventions: Interventions | None = None,
    ) -> Float[Array, "B S V"]: ...

    @overload
    def __call__(
        self,
        input_ids: TokenIds,
        attention_mask: AttentionMask | None = None,
        return_activations: Literal[True] = ...,
        interventions: Interventions | None = None,
    ) -> tuple[Float[Array, "B S V"], NamedActivations[Array]]: ...

    def __call__(
        self, input_ids, attention_mask=None, return_activations=False, interventions=None
    ):
        """Run whole sequences, and return their logits.

        Args:
            input_ids: `[B, S]` of any integer type, numpy or JAX.
            attention_mask: `[B, S]` of any type, 0 for padding on either side, another number for
                tokens; None: all are tokens. Positions count the tokens, so padding changes no
                token's row. With a mask, `xla` replaces `cudnn`, which cannot skip padding on the
                left.
            return_activations: also return the activations.
            interventions: changes of activations; see `interventions`.

        Returns:
            Logits, float32 `[B, S, V]`; with `return_activations` the pair of logits and
            activations, `{'layer_6': [B, S, D], ...}` in the parameters' dtype. Aliases work as
            keys too: `activations["layers.6"]`.
        """
        input_ids = jnp.asarray(input_ids, jnp.int32)
        if attention_mask is not None:
            attention_mask = jnp.asarray(attention_mask).astype(jnp.bool_)
        any_side = self.attention == "cudnn" and attention_mask is not None
        positions = positions_from_mask(input_ids, attention_mask)
        output = self.forward(
            input_ids,
            positions,
            attention="xla" if any_side else None,
            interventions=interventions,
        )
        logits = self.unembed(output.residual, interventions, positions)
        return (logits, NamedActivations(output.activations)) if return_activations else logits

    def forward(
        self,
        input_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: KVCache | None = None,
        num_layers: int | None = None,
        rows: Int[Array, "B R"] | None = None,
        attention: str | None = None,
        interventions: Interventions | None = None,
        segments: Int[Array, "B T"] | None = None,
    ) -> ForwardOutput:
        """Run the blocks, without the unembedding.

        Args:
            input_ids: int32 `[B, T]`.
            positions: int32 `[B, T]`; -1 for padding, with `cudnn` on the right only.
            cache: keys and values of earlier tokens; these tokens are appended. None: there are no
                earlier tokens.
            num_layers: number of blocks to run, from the first; None: all.
            rows: slots whose residual stream and activations are wanted; None: all slots. The last
                block computes these slots only, if they are at most `attention.BLOCK`.
            attention: attention kernel for this call; None: the model's own.
            interventions: changes of activations.
            segments: int32 `[B, T]`, number of each token's document, for documents packed into one
                sequence. A token sees its own document only, and positions restart in each. Not
                with a cache or `cudnn`.
        """
        attention = attention or self.attention
        if self.scan_layers and attention != "xla" and len(set(self.config.layer_types)) > 1:
            raise ModelError(
                f"attention {attention!r} cannot be scanned where some blocks have a sliding window"
                " and others none: use 'xla', or no scan_layers"
            )
        if cache is not None:
            slot, cache = cache.filled, cache.with_positions(positions)
        cos, sin = rotary_angles(self.config.rope, self.config.head_dim, positions)
        context = AttentionContext(
            cos=cos,
            sin=sin,
            query_positions=positions,
            key_positions=positions if cache is None else cache.positions,
            slot=None if cache is None else slot,
            query_segments=segments,
            key_segments=segments,
            attention=attention,
        )

        num_layers = num_layers or self.config.num_hidden_layers
        edits = edits_of(interventions, None, positions)
        outside = Taps(by_layer(self.hook_points).get(None, ()), rows, edits)
        residual = outside("embed_tokens", self.embed_tokens(input_ids))
        run = self._run_scanned if self.scan_layers else self._run_unrolled
        residual, activations, keys_values = run(
            residual, context, cache, num_layers, rows, interventions
        )
        if AFTER_BLOCKS & outside.wanted and num_layers == self.config.num_hidden_layers:
            self._logits(residual, outside.of_rows())
        computed = outside.captured | activations
        activations = {name: computed[name] for name in self.hook_points if name in computed}
        if cache is None:
            return ForwardOutput(residual, activations, None, keys_values)
        filled = dataclasses.replace(cache, layers=keys_values)
        return ForwardOutput(residual, activations, filled, ())

    def _run_unrolled(
        self,
        residual: Float[Array, "B T D"],
        context: AttentionContext,
        cache: KVCache | None,
        num_layers: int,
        rows: Int[Array, "B R"] | None,
        interventions: Interventions | None,
    ) -> tuple[Float[Array, "B R D"], Activations, tuple[KeysValues, ...]]:
        """Run the blocks one after the other."""
        names = by_layer(self.hook_points)
        activations: Activations = {}
        keys_values: list[KeysValues] = []
        for i, layer in enumerate(self.layers[:num_layers]):
            is_last = i == num_layers - 1
            buffers = None if cache is None else cast("KeysValues", cache.layers[i])
            wanted = names.get(i, {})
            taps = Taps(wanted, rows, edits_of(interventions, i, context.query_positions))
            residual, seen = layer(residual, context, taps, buffers, rows if is_last else None)
            keys_values.append(seen)
            activations |= {wanted[key]: value for key, value in taps.captured.items()}
        return residual, activations, tuple(keys_values)

    def _run_scanned(
        self,
        residual: Float[Array, "B T D"],
        context: AttentionContext,
        cache: KVCache | None,
        num_layers: int,
        rows: Int[Array, "B R"] | None,
        interventions: Interventions | None,
    ) -> tuple[Float[Array, "B R D"], Activations, StackedKeysValues]:
        """Run the blocks as a loop; keys and values are stacked, `[L, B, S, K, H]`."""
        names = by_layer(self.hook_points)
        windows = [
            self.config.layer_window(i) or EVERY_KEY for i in range(self.config.num_hidden_layers)
        ]
        wanted: dict[str, list[int]] = {}
        for layer, keys in names.items():
            if layer is not None:
                for key in keys:
                    wanted.setdefault(key, []).append(layer)
        residual, captured, keys_values = run_scanned(
            lambda params, *inputs: self._any_block().apply({"params": params}, *inputs),
            self.stacked,
            residual,
            context,
            num_layers=num_layers,
            captured=wanted,
            buffers=None if cache is None else cast("StackedKeysValues", cache.layers),
            rows=rows,
            interventions=interventions,
            windows=None if len(set(windows)) == 1 else windows,
        )
        activations = {
            names[layer][key]: value
            for key, values in captured.items()
            for layer, value in values.items()
        }
        return residual, activations, keys_values

    def _any_block(self) -> QwenDecoderLayer:
        return QwenDecoderLayer(self.config, self.config.layer_window(0), self.dtype, parent=None)

    def _init_stacked(self, key: Array) -> Params:
        config = self.config
        residual = jnp.zeros((1, 1, config.hidden_size), self.dtype)
        positions = jnp.zeros((1, 1), jnp.int32)
        cos, sin = rotary_angles(config.rope, config.head_dim, positions)
        context = AttentionContext(cos, sin, query_positions=positions, key_positions=positions)
        keys = jax.random.split(key, config.num_hidden_layers)
        init = self._any_block().init
        return jax.vmap(lambda key: init(key, residual, context)["params"])(keys)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"QwenModelWithActivations({config.num_hidden_layers} layers of width"
            f" {config.hidden_size}, {jnp.dtype(self.dtype).name}, attention={self.attention!r},"
            f" scan_layers={self.scan_layers}, hook points {few(self.hook_points)})"
        )

    @property
    def layers_to_extract(self) -> tuple[int, ...]:
        """Numbers of the blocks whose output is captured, ascending."""
        found = by_layer(self.hook_points).items()
        return tuple(layer for layer, keys in found if layer is not None and "resid_post" in keys)

    @property
    def blocks_needed(self) -> int:
        """Number of blocks, from the first, that the captured hook points need."""
        return blocks_needed(self.hook_points, self.config.num_hidden_layers)

    def list_hook_points(self) -> list[str]:
        """Return the canonical names of all hook points of this model."""
        return [site.name for site in sites(self.config)]

    def unembed(
        self,
        residual: Float[Array, "*B D"],
        interventions: Interventions | None = None,
        positions: Int[Array, "*B"] | None = None,
    ) -> Float[Array, "*B V"]:
        """Return float32 logits of the next token at each position: final norm, then unembedding.

        Args:
            residual: residual stream after the last block; `[B, T, D]` with interventions.
            interventions: changes of activations.
            positions: int32 `[B, T]`, positions of the tokens; needed with interventions.
        """
        if interventions is None:
            return self._logits(residual, Taps())
        assert positions is not None
        return self._logits(residual, Taps(edits=edits_of(interventions, None, positions)))

    def _logits(self, residual: Float[Array, "*B D"], taps: Taps) -> Float[Array, "*B V"]:
        hidden, cap = self.norm(residual, taps), self.config.logits_softcap
        if self.config.tie_word_embeddings:
            logits = taps("logits", self.embed_tokens.attend(hidden))
        else:
            logits = taps("logits", self.lm_head(hidden).astype(jnp.float32))
        return logits if cap is None else taps("logits.capped", soft_cap(logits, cap))


def positions_from_mask(
    input_ids: Int[Array, "B S"], attention_mask: AttentionMask | None
) -> Int[Array, "B S"]:
    """Return the tokens' positions, from 0 in each sequence; -1 on padding, where the mask is 0."""
    if attention_mask is None:
        return jnp.broadcast_to(jnp.arange(input_ids.shape[1], dtype=jnp.int32), input_ids.shape)
    is_token = jnp.asarray(attention_mask).astype(jnp.bool_)
    return jnp.where(is_token, jnp.cumsum(is_token, axis=1, dtype=jnp.int32) - 1, -1)


def forward(
    model: QwenModelWithActivations,
    params: Params,
    input_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    cache: KVCache | None = None,
    num_layers: int | None = None,
    rows: Int[Array, "B R"] | None = None,
    interventions: Interventions | None = None,
    segments: Int[Array, "B T"] | None = None,
) -> ForwardOutput:
    """Call `QwenModelWithActivations.forward` with `params`."""
    return model.apply(
        params,
        input_ids,
        positions,
        cache,
        num_layers,
        rows,
        interventions=interventions,
        segments=segments,
        method="forward",
    )


def unembed(
    model: QwenModelWithActivations,
    params: Params,
    residual: Float[Array, "*B D"],
    interventions: Interventions | None = None,
    positions: Int[Array, "*B"] | None = None,
) -> Float[Array, "*B V"]:
    """Call `QwenModelWithActivations.unembed` with `params`."""
    return model.apply(params, residual, interventions, positions, method="unembed")
