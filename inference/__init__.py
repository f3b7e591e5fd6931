"""Tokens in, activations out.

    from inference import load_model, capture, extract

inputs/     tasks, data sets, chats: anything -> samples as token ids, with the positions to keep
settings/   every setting, its flag and its checks
engine/     plan, mesh, compiled programs, loop, self-check: samples -> results
planner/    what a run will take, before it runs
unit_run, outputs   what is written, and how a run is resumed
captures, extractions   the same from Python, into memory or into files

`simple_extraction_inference` and `distributed_inference_with_activations` are the commands;
`engine/simple_run.py` is the shortest way from a prompt to rows, and a good place to begin reading.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from extraction.version import __version__

if TYPE_CHECKING:
    from inference.captures import Captured, capture
    from inference.engine.activation_store import ActivationStore
    from inference.engine.language_model import LanguageModel, load_model
    from inference.errors import InputError
    from inference.extractions import ExtractedRun, extract

__all__ = [
    "ActivationStore",
    "Captured",
    "ExtractedRun",
    "InputError",
    "LanguageModel",
    "__version__",
    "capture",
    "extract",
    "load_model",
]

_MODULES = {
    "ActivationStore": "engine.activation_store",
    "Captured": "captures",
    "ExtractedRun": "extractions",
    "InputError": "errors",
    "LanguageModel": "engine.language_model",
    "capture": "captures",
    "extract": "extractions",
    "load_model": "engine.language_model",
}

# Without torch, transformers warns at import that it has no models; none of them is used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def __getattr__(name: str) -> Any:
    """Import a name on first use: JAX takes seconds to import, and a refusal does not need it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
