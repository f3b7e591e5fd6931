"""Rotary position embedding's settings, read from a Hugging Face `config.json`.

Both spellings of transformers are read: `rope_theta` + `rope_scaling` (before version 5) and
`rope_parameters` (from 5 on).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, cast

from qwen_hooks.config_fields import ROPE_FIELDS, check_types, shown
from qwen_hooks.errors import ModelError

RopeType = Literal["default", "linear", "yarn"]
LAYER_TYPES = ("full_attention", "sliding_attention")


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

    def __post_init__(self):
        if not 0 < self.theta < float("inf"):
            raise ModelError(f"rope_theta must be a finite number above 0, not {self.theta}")
        if not 1 <= self.factor < float("inf"):
            raise ModelError(f"RoPE's factor must be at least 1, not {self.factor}")
        if self.rope_type != "yarn":
            return
        if self.theta <= 1:
            raise ModelError(f"yarn needs a rope_theta above 1, not {self.theta}")
        if (self.original_max_position_embeddings or 0) < 1:
            raise ModelError(
                "original_max_position_embeddings must be at least 1 for yarn, not"
                f" {self.original_max_position_embeddings}"
            )
        if self.beta_fast <= 0 or self.beta_slow <= 0:
            raise ModelError(
                f"beta_fast and beta_slow must be above 0, not {self.beta_fast}, {self.beta_slow}"
            )


def read_rope(raw: Mapping[str, Any]) -> tuple[RopeConfig, list[str]]:
    """Read the settings of RoPE, in either spelling.

    Args:
        raw: content of config.json, its own fields checked.

    Returns:
        The settings, and the names of fields that are ignored.

    Raises:
        ModelError: a type of RoPE that is not computed, a wrong value, or spellings that differ.
    """
    spellings = [name for name in ("rope_scaling", "rope_parameters") if raw.get(name)]
    if not spellings:
        return _read_object({}, "", raw)
    read = [_read_object(raw[name], f"{name}.", raw) for name in spellings]
    if len({rope for rope, _ in read}) > 1:
        raise ModelError("rope_scaling and rope_parameters differ; keep the one that holds")
    return read[0][0], [name for _, ignored in read for name in ignored]


def _read_object(
    fields: Mapping[str, Any], within: str, raw: Mapping[str, Any]
) -> tuple[RopeConfig, list[str]]:
    """One spelling's settings."""
    nested = [k for k, v in fields.items() if k in LAYER_TYPES or isinstance(v, dict)]
    if nested:
        raise ModelError(
            f"{within}{nested[0]} is another RoPE for some layers; one for all layers is computed"
        )
    rope_type = fields.get("rope_type", fields.get("type", "default"))
    if type(rope_type) is not str or rope_type not in ROPE_FIELDS:
        known = ", ".join(ROPE_FIELDS)
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
    context = raw.get("max_position_embeddings", 32_768)
    # The outer field wins, as in transformers.
    original = raw.get(
        "original_max_position_embeddings", fields.get("original_max_position_embeddings", context)
    )
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
