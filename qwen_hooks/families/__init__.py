"""The model families, by `model_type` of config.json: one file for each, and one line here."""

from qwen_hooks.families.family import Family
from qwen_hooks.families.gemma2 import GEMMA2
from qwen_hooks.families.llama import LLAMA
from qwen_hooks.families.qwen2 import QWEN2
from qwen_hooks.families.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (QWEN2, QWEN3, LLAMA, GEMMA2)
}

__all__ = ["FAMILIES", "Family"]
