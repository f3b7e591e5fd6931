"""The model's configuration, read from a Hugging Face `config.json`.

`QwenConfig` is frozen and hashable, so that it can be a static argument of `jax.jit`. Settings that
this package would compute wrongly are refused by name; `config_fields` lists the fields that matter
and `rope_config` reads those of RoPE. Absent fields have the defaults of transformers' class.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from qwen_hooks.config_fields import check_fields, shown
from qwen_hooks.errors import ModelError
from qwen_hooks.families import FAMILIES, Family
from qwen_hooks.families.family import MOST_LAYERS
from qwen_hooks.rope_config import RopeConfig, read_rope

log = logging.getLogger(__name__)

LayerType = Literal["full_attention", "sliding_attention"]

OWN_ROPE_FIELDS = {
    "yarn": (
        "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    ),
    "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip
"""Settings that only one type of RoPE has."""

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
"""Keys that config.json must have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QwenConfig:
    """Shape and constants of a model of one of `families.FAMILIES`; the defaults are Qwen2's.

    Attributes:
        vocab_size: rows of the embedding (V).
        hidden_size: width of the residual stream (D).
        intermediate_size: width of the MLP (F).
        num_hidden_layers: decoder blocks (L).
        num_attention_heads: query heads (N).
        num_key_value_heads: key and value heads (K); divides N.
        head_dim: width of a head (H); the argument 0 means D / N.
        max_position_embeddings: trained context, in tokens.
        rms_norm_eps: added to the mean square in every RMSNorm.
        tie_word_embeddings: whether the unembedding is the transposed embedding.
        rope: rotary position embedding.
        sliding_window: tokens that a token sees in a sliding layer, itself included; None: no such.
        layer_types: one entry for each block; empty: all `full_attention`.
        eos_token_ids: tokens that end a text, as config.json says.
        model_type: the family.
        qkv_bias: whether queries, keys and values have biases.
        output_bias: whether the attention's output has a bias.
        mlp_bias: whether the MLP's three products have biases.
        qk_norm: whether each head's queries and keys pass an RMSNorm before the rotation.
        activation: activation of the MLP's gate, a key of `layers.ACTIVATIONS`.
        post_norms: whether outputs of attention and MLP pass an RMSNorm before they are added.
        norms_add_one: whether RMSNorms multiply by one plus their weight.
        embedding_scale: factor of the embeddings.
        attention_scale: factor of the attention's scores; 0 as an argument: one over the root of H.
        attention_softcap: c in `c * tanh(score / c)`; None: no cap.
        logits_softcap: likewise, of the logits.
        kv_repeats: number of consecutive copies of each key and value head among the K; more than
            1 only if a mesh needs it.

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
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    sliding_window: int | None = None
    layer_types: tuple[LayerType, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    model_type: str = "qwen2"
    qkv_bias: bool = True
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    activation: str = "silu"
    post_norms: bool = False
    norms_add_one: bool = False
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    kv_repeats: int = 1

    def __post_init__(self):
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        for name in (*REQUIRED, "num_key_value_heads", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_hidden_layers > MOST_LAYERS:
            raise ModelError(f"num_hidden_layers is {self.num_hidden_layers}, above {MOST_LAYERS}")
        if not 0 <= self.rms_norm_eps < float("inf"):
            raise ModelError(f"rms_norm_eps must be finite and at least 0, not {self.rms_norm_eps}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelError(f"sliding_window must be at least 1, not {self.sliding_window}")
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
        if self.head_dim % 2 or self.head_dim < 0:
            raise ModelError(f"head_dim must be even and above 0, not {self.head_dim}")
        if not self.attention_scale:
            object.__setattr__(self, "attention_scale", self.head_dim**-0.5)
        for name in ("attention_scale", "attention_softcap", "logits_softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ModelError(f"{name} must be a finite number above 0, not {value}")
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
        """Return how many tokens block `layer` sees, including its own; None: all before it."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    @property
    def context_length(self) -> int:
        """Longest sequence the model is meant for, in tokens, with RoPE scaling."""
        if self.rope.rope_type == "llama3":  # max_position_embeddings is the stretched length
            return self.max_position_embeddings
        unstretched = self.rope.original_max_position_embeddings or self.max_position_embeddings
        return max(self.max_position_embeddings, int(self.rope.factor * unstretched))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "QwenConfig":
        """Read `config.json` of a local checkpoint folder.

        Raises:
            ModelError: no such file, not JSON, or an architecture this package does not compute.
        """
        path = Path(folder) / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(
                f"{folder}: no config.json, so it is not a Hugging Face checkpoint"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{path} is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ModelError(f"{path} must hold a JSON object, not a {type(raw).__name__}")
        try:
            config, ignored = _read(raw)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        if ignored:
            log.info("%s: ignored, the model does not read them: %s", path, ", ".join(ignored))
        return config

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "QwenConfig":
        """Return the configuration for the content of a Hugging Face `config.json`.

        Raises:
            ModelError: a key is missing, or a setting is not one this package computes.
        """
        return _read(raw)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `config.json`, in a form that every transformers version reads."""
        rope = self.rope
        scaling: dict[str, Any] = {}
        if rope.rope_type != "default":
            scaling = {"rope_type": rope.rope_type, "type": rope.rope_type, "factor": rope.factor}
        given = dataclasses.asdict(rope)
        scaling |= {
            name: given[name]
            for name in OWN_ROPE_FIELDS.get(rope.rope_type, ())
            if given[name] is not None
        }
        eos = list(self.eos_token_ids)
        family = FAMILIES[self.model_type]
        return {
            "architectures": [family.architecture],
            "model_type": self.model_type,
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
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            **family.write(self),
        }


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """Return Hugging Face's `eos_token_id` (a number, a list or null) as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _read(raw: Mapping[str, Any]) -> tuple[QwenConfig, list[str]]:
    """Return the configuration of a config.json, and the names of fields that nothing reads."""
    family = _family(raw)
    if raw.get("quantization_config"):
        raise ModelError(
            "quantization_config: quantised weights are not read; use the original checkpoint"
        )
    missing = [name for name in REQUIRED if raw.get(name) is None]
    if missing:
        raise ModelError(f"missing {', '.join(missing)}")
    ignored = check_fields(raw, family)
    fields = {**family.defaults, **raw}
    rope, ignored_in_rope = read_rope(fields, family.rope_types)
    kv_heads = fields["num_key_value_heads"]
    config = QwenConfig(
        **{name: raw[name] for name in REQUIRED},
        model_type=family.model_type,
        num_key_value_heads=raw["num_attention_heads"] if kv_heads is None else kv_heads,
        head_dim=fields.get("head_dim") or 0,
        max_position_embeddings=fields["max_position_embeddings"],
        rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=fields.get("tie_word_embeddings", False),
        rope=rope,
        eos_token_ids=token_ids(fields.get("eos_token_id")),
        **family.read(fields),
    )
    return config, ignored + ignored_in_rope


def _family(raw: Mapping[str, Any]) -> Family:
    model_type = raw.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    known = "; ".join(f"'{family.model_type}' ({family.title})" for family in FAMILIES.values())
    raise ModelError(f"model_type is {shown(model_type)}; supported are {known}")
