"""The model's configuration, read from a Hugging Face `config.json`.

`QwenConfig` is a frozen value: hashable, so that it can be a static argument of `jax.jit`.
Both spellings of transformers are read: `rope_theta` + `rope_scaling` (before version 5) and
`rope_parameters` (from 5 on). Whatever this package would compute wrongly is refused by name.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from qwen_hooks.errors import ModelError

LayerType = Literal["full_attention", "sliding_attention"]
RopeType = Literal["default", "linear", "yarn"]

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
"""Keys that config.json must have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: base and scaling.

    Attributes:
        theta: base of the geometric series of wavelengths.
        rope_type: `default`, `linear` (position interpolation) or `yarn` (arXiv 2309.00071).
        factor: by how much the context is stretched (`linear`, `yarn`).
        original_max_position_embeddings: context before stretching, in tokens (`yarn`).
        attention_factor: scale of cos and sin; None: from `factor`, or the two `mscale`s.
        beta_fast: rotations within the original context above which a dimension is not stretched.
        beta_slow: rotations below which it is stretched in full.
        mscale: YaRN's numerator coefficient, used only together with `mscale_all_dim`.
        mscale_all_dim: YaRN's denominator coefficient.
        truncate: round the border dimensions of YaRN's ramp to whole numbers.
    """

    theta: float = 10_000.0
    rope_type: RopeType = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenConfig:
    """Shape and constants of a Qwen2 or Qwen2.5 model.

    Attributes:
        vocab_size: rows of the embedding (V).
        hidden_size: width of the residual stream (D).
        intermediate_size: width of the MLP (F).
        num_hidden_layers: decoder blocks (L).
        num_attention_heads: query heads (N).
        num_key_value_heads: key and value heads (K); divides N.
        head_dim: width of a head (H); 0 as an argument: D / N.
        max_position_embeddings: trained context, in tokens.
        rms_norm_eps: added to the mean square in every RMSNorm.
        tie_word_embeddings: the unembedding is the embedding, transposed.
        rope: rotary position embedding.
        sliding_window: tokens a sliding layer sees, itself included; None: no layer slides.
        layer_types: one entry a block; empty: all `full_attention`.
        eos_token_ids: tokens that end a text, as config.json says.
        kv_repeats: how often each key and value head of the checkpoint stands among the K, one
            behind the other; more than once only where a mesh needs it.

    Raises:
        ModelError: the numbers do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 0
    max_position_embeddings: int = 32_768
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope: RopeConfig = RopeConfig()
    sliding_window: int | None = None
    layer_types: tuple[LayerType, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    kv_repeats: int = 1

    def __post_init__(self):
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        for name in (*REQUIRED, "num_key_value_heads", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1, not {getattr(self, name)}")
        if heads % kv_heads:
            raise ModelError(
                f"num_key_value_heads ({kv_heads}) must divide num_attention_heads ({heads})"
            )
        if not self.head_dim:
            if self.hidden_size % heads:
                raise ModelError(
                    f"hidden_size ({self.hidden_size}) is no multiple of num_attention_heads"
                    f" ({heads}), and no head_dim is given"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        if self.head_dim % 2:
            raise ModelError(f"head_dim must be even for rotary embeddings, not {self.head_dim}")
        if not self.layer_types:
            full = cast(tuple[LayerType, ...], ("full_attention",) * self.num_hidden_layers)
            object.__setattr__(self, "layer_types", full)
        if len(self.layer_types) != self.num_hidden_layers:
            raise ModelError(
                f"layer_types has {len(self.layer_types)} entries for"
                f" {self.num_hidden_layers} layers"
            )
        if "sliding_attention" in self.layer_types and not self.sliding_window:
            raise ModelError("layer_types asks for sliding_attention without a sliding_window")

    def layer_window(self, layer: int) -> int | None:
        """Tokens that block `layer` sees, itself included; None: everything before it."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    @property
    def context_length(self) -> int:
        """Longest sequence the model is meant for, in tokens, RoPE stretching included."""
        unstretched = self.rope.original_max_position_embeddings or self.max_position_embeddings
        return max(self.max_position_embeddings, int(self.rope.factor * unstretched))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "QwenConfig":
        """Reads `config.json` of a local checkpoint folder.

        Raises:
            ModelError: no such file, not JSON, or an architecture this package does not compute.
        """
        path = Path(folder) / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{folder}: no config.json, so no Hugging Face checkpoint") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ModelError(f"{path} must hold a JSON object, not a {type(raw).__name__}")
        try:
            return cls.from_dict(raw)
        except (ModelError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "QwenConfig":
        """Reads the content of a Hugging Face `config.json`.

        Raises:
            ModelError: a key is missing, or a setting is not one this package computes.
        """
        model_type = raw.get("model_type")
        if model_type != "qwen2":
            raise ModelError(
                f"model_type is {model_type!r}; this package computes 'qwen2'"
                " (Qwen2 and Qwen2.5) and nothing else"
            )
        if raw.get("quantization_config"):
            raise ModelError("quantised weights are not supported: use the original checkpoint")
        if raw.get("hidden_act", "silu") != "silu":
            raise ModelError(f"hidden_act {raw['hidden_act']!r} is not supported, only 'silu'")
        missing = [name for name in REQUIRED if raw.get(name) is None]
        if missing:
            raise ModelError(f"missing {', '.join(missing)}")
        whole = (*REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings")
        for name in whole:
            if type(raw.get(name, 1)) is not int and raw[name] is not None:
                raise ModelError(f"{name} must be a whole number, not {raw[name]!r}")
        window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
        eos = raw.get("eos_token_id")
        return cls(
            **{name: raw[name] for name in REQUIRED},
            num_key_value_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim") or 0,
            max_position_embeddings=raw.get("max_position_embeddings", 32_768),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            rope=_read_rope(raw),
            sliding_window=window,
            layer_types=_read_layer_types(raw, window),
            eos_token_ids=token_ids(eos),
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, in the spelling that every transformers version reads."""
        rope = self.rope
        scaling: dict[str, Any] = {}
        if rope.rope_type != "default":
            scaling = {"rope_type": rope.rope_type, "type": rope.rope_type, "factor": rope.factor}
        if rope.rope_type == "yarn":
            scaling |= {
                name: value
                for name, value in dataclasses.asdict(rope).items()
                if value is not None and name not in ("theta", "rope_type", "factor")
            }
        eos = list(self.eos_token_ids)
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "rope_theta": rope.theta,
            "rope_scaling": scaling or None,
            "use_sliding_window": self.sliding_window is not None,
            "sliding_window": self.sliding_window,
            "layer_types": list(self.layer_types),
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        }


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """`eos_token_id` as Hugging Face writes it (a number, a list or nothing), as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _read_layer_types(raw: Mapping[str, Any], window: int | None) -> tuple[LayerType, ...]:
    layers = raw["num_hidden_layers"]
    types = raw.get("layer_types")
    if types is None:
        first = raw.get("max_window_layers", 28)
        slides = [window is not None and i >= first for i in range(layers)]
        types = ["sliding_attention" if s else "full_attention" for s in slides]
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelError(f"layer_types {sorted(unknown)} are not supported")
    return cast(tuple[LayerType, ...], tuple(types))


def _read_rope(raw: Mapping[str, Any]) -> RopeConfig:
    scaling = dict(raw.get("rope_scaling") or {}) | dict(raw.get("rope_parameters") or {})
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if rope_type not in ("default", "linear", "yarn"):
        raise ModelError(
            f"RoPE type {rope_type!r} is not supported; 'default', 'linear' and 'yarn' are"
        )
    if scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) not in (1, None):
        raise ModelError("partial_rotary_factor other than 1 is not supported")
    theta = float(scaling.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    if rope_type == "default":
        return RopeConfig(theta=theta)
    factor = scaling.get("factor")
    if not isinstance(factor, int | float) or factor < 1:
        raise ModelError(f"RoPE type {rope_type!r} needs a factor of at least 1, not {factor!r}")
    if rope_type == "linear":
        return RopeConfig(theta=theta, rope_type="linear", factor=float(factor))
    return RopeConfig(
        theta=theta,
        rope_type="yarn",
        factor=float(factor),
        original_max_position_embeddings=scaling.get("original_max_position_embeddings")
        or raw.get("max_position_embeddings", 32_768),
        attention_factor=scaling.get("attention_factor"),
        beta_fast=scaling.get("beta_fast") or 32.0,
        beta_slow=scaling.get("beta_slow") or 1.0,
        mscale=scaling.get("mscale"),
        mscale_all_dim=scaling.get("mscale_all_dim"),
        truncate=scaling.get("truncate", True),
    )
