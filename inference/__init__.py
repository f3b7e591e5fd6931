"""Tokens in, activations out. Modules, in an order to read them in:

simple_extraction_inference             the command that is short and plain; begin here
settings, input_settings, command_line  flags
tasks, arc, datasets, samples           what is run, as token ids
positions, position_selectors           which tokens' rows are kept
unit_run, outputs                       what is written, and how a run goes on
distributed_inference_with_activations  the fast command
batch_plan, run_loop, generation        its plan, its loop, its program
multihost, memory_estimate, self_check  who runs what; does it fit; is it right
language_model, capture, extract        the same from Python
"""

import os

from extraction.version import __version__

__all__ = ["__version__"]

# Without torch, transformers warns at import that it has no models; none of them is used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
