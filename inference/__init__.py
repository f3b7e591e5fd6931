"""Tokens in, activations out. Modules, in an order to read them in:

simple_extraction_inference             the command that is short and plain; begin here
settings/                               settings and flags
inputs/                                 tasks, data sets, chats: samples as token ids, positions
engine/                                 plan, mesh, compiled programs, loop, self-check
unit_run, outputs                       what is written, and how a run is resumed
distributed_inference_with_activations  the fast command
capture, extract                        the same from Python
"""

import os

from extraction.version import __version__

__all__ = ["__version__"]

# Without torch, transformers warns at import that it has no models; none of them is used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
