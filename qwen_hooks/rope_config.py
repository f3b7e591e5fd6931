"""Settings of rotary position embedding, read from a Hugging Face `config.json`.

Both spellings of transformers are read: `rope_theta` + `rope_scaling` (before version 5) and
`rope_parameters` (from 5 on).
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal, cast

from qwen_hooks.config_fields import ROPE_FIELDS, check_types, shown
from qwen_hooks.errors import ModelError
from qwen_hooks.families.family import LAYER_TYPES

RopeType = Literal["default", "linear", "yarn", "llama3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: base and scaling.

    Attributes:
        theta: base of the geometric series of wavelengths.
        rope_type: `default`, `linear` (position interpolation), `yarn` (arXiv 2309.00071) or
            `llama3` (arXiv 2407.21783, as in Hugging Face's code).
        factor: factor by which the context is stretched; not used by `default`.
        original_max_position_embeddings: context before stretching, in tokens (`yarn`, `llama3`).
        attention_factor: scale of cos and sin; None: from `factor`, or the two `mscale`s.
        beta_fast: number of rotations within the original context above which YaRN does not stretch
            a dimension.
        beta_slow: number of rotations below which YaRN stretches a dimension fully.
        mscale: YaRN's numerator coefficient, used only together with `mscale_all_dim`.
        mscale_all_dim: YaRN's denominator coefficient.
        truncate: whether the first and the last dimension of YaRN's ramp are rounded.
        low_freq_factor: `llama3` stretches wavelengths above the original context divided by this
            factor.
        high_freq_factor: `llama3` keeps wavelengths below the original context divided by this
            factor.
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
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self):
        if not 0 < self.theta < float("inf"):
            raise ModelError(f"rope_theta must be a finite number above 0, not {self.theta}")
        if not 1 <= self.factor < float("inf"):
            raise ModelError(f"RoPE's factor must be at least 1, not {self.factor}")
        if self.rope_type not in ("yarn", "llama3"):
            return
        if (self.original_max_position_embeddings or 0) < 1:
            raise ModelError(
                f"original_max_position_embeddings must be at least 1 for {self.rope_type}, not"
                f" {self.original_max_position_embeddings}"
            )
        if self.rope_type == "llama3":
            if not 0 < self.low_freq_factor < self.high_freq_factor < float("inf"):
                raise ModelError(
                    "low_freq_factor must be above 0 and below high_freq_factor, not"
                    f" {self.low_freq_factor} and {self.high_freq_factor}"
                )
            return
        if self.theta <= 1:
            raise ModelError(f"yarn needs a rope_theta above 1, not {self.theta}")
        if self.beta_fast <= 0 or self.beta_slow <= 0:
            raise ModelError(
                f"beta_fast and beta_slow must be above 0, not {self.beta_fast}, {self.beta_slow}"
            )


def read_rope(
    raw: Mapping[str, Any], rope_types: Collection[str] = tuple(ROPE_FIELDS)
) -> tuple[RopeConfig, list[str]]:
    """Read the settings of RoPE, in either spelling.

    Args:
        raw: checked content of config.json, with the family's defaults.
        rope_types: types of RoPE that the family supports.

    Returns:
        The settings, and the names of fields that are ignored.

    Raises:
        ModelError: the type of RoPE is not supported, a value is wrong, or the spellings differ.
    """
    spellings = [name for name in ("rope_scaling", "rope_parameters") if raw.get(name)]
    if not spellings:
        return _read_object({}, "", raw, rope_types)
    read = [_read_object(raw[name], f"{name}.", raw, rope_types) for name in spellings]
    if len({rope for rope, _ in read}) > 1:
        raise ModelError("rope_scaling and rope_parameters differ; keep the one that holds")
    return read[0][0], [name for _, ignored in read for name in ignored]


def _read_object(
    fields: Mapping[str, Any], within: str, raw: Mapping[str, Any], rope_types: Collection[str]
) -> tuple[RopeConfig, list[str]]:
    """Return the settings in one spelling."""
    nested = [k for k, v in fields.items() if k in LAYER_TYPES or isinstance(v, dict)]
    if nested:
        raise ModelError(
            f"{within}{nested[0]} is another RoPE for some layers; one for all layers is computed"
        )
    rope_type = fields.get("rope_type", fields.get("type", "default"))
    if type(rope_type) is not str or rope_type not in rope_types:
        known = ", ".join(rope_types)
        raise ModelError(f"{within}rope_type {shown(rope_type)} is not supported; {known} are")
    types = ROPE_FIELDS[rope_type]
    check_types(fields, types, within)
    if fields.get("partial_rotary_factor", 1) != 1:
        raise ModelError(f"{within}partial_rotary_factor other than 1 is not supported")
    ignored = [within + name for name in fields if name not in (*types, "partial_rotary_factor")]
    theta = float(fields.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    if rope_type == "default":
        return RopeConfig(theta=theta), ignored
    if "factor" not in fields:
        raise ModelError(f"{within}rope_type {rope_type!r} needs a factor")
    if rope_type == "linear":
        return RopeConfig(theta=theta, rope_type="linear", factor=float(fields["factor"])), ignored
    if rope_type == "llama3":
        return _read_llama3(fields, within, raw, theta), ignored
    context = raw.get("max_position_embeddings", 32_768)
    original = _original_context(fields, raw)
    numbers = {
        name: float(fields[name])
        for name in (
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
        )
        if fields.get(name) is not None and (fields[name] or not name.startswith("beta"))
    }
    rope = RopeConfig(
        theta=theta,
        rope_type=cast(RopeType, rope_type),
        original_max_position_embeddings=original,
        truncate=bool(fields.get("truncate", True)),
        **{"factor": context / max(original, 1)} | numbers,
    )
    return rope, ignored


def _original_context(fields: Mapping[str, Any], raw: Mapping[str, Any]) -> int:
    """Return the context before stretching; the outer field wins, as in transformers."""
    name = "original_max_position_embeddings"
    return raw.get(name, fields.get(name, raw.get("max_position_embeddings", 32_768)))


def _read_llama3(
    fields: Mapping[str, Any], within: str, raw: Mapping[str, Any], theta: float
) -> RopeConfig:
    """Read Llama 3's scaling."""
    missing = [name for name in ("low_freq_factor", "high_freq_factor") if name not in fields]
    if missing:
        raise ModelError(f"{within}rope_type 'llama3' needs {', '.join(missing)}")
    return RopeConfig(
        theta=theta,
        rope_type="llama3",
        factor=float(fields["factor"]),
        original_max_position_embeddings=_original_context(fields, raw),
        low_freq_factor=float(fields["low_freq_factor"]),
        high_freq_factor=float(fields["high_freq_factor"]),
    )
