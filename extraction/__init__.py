"""From arrays to durable files and back; needs numpy and google-crc32c, never JAX.

`run/` describes a run, `writing/` commits rows to it, `reading/` reads them, `formats/` and
`storage/` define and hold the files, `exports/` writes files for other tools. `maintenance/`
verifies, repairs, merges, converts and inspects runs; `python -m extraction` lists these commands.
"""

import importlib
from typing import TYPE_CHECKING, Any

from extraction.version import __version__

if TYPE_CHECKING:
    from extraction.errors import ExistingRunError, StoreError
    from extraction.maintenance.verify import verify
    from extraction.reading.dataset import ActivationDataset
    from extraction.run.rows import RowBlock
    from extraction.writing.activation_writer import ActivationWriter
    from extraction.writing.extractor import ActivationExtractionConfig, ActivationExtractor
    from extraction.writing.saved_arrays import save_activations

__all__ = [
    "ActivationDataset",
    "ActivationExtractionConfig",
    "ActivationExtractor",
    "ActivationWriter",
    "ExistingRunError",
    "RowBlock",
    "StoreError",
    "__version__",
    "save_activations",
    "verify",
]

_MODULES = {
    "ActivationDataset": "reading.dataset",
    "ActivationExtractionConfig": "writing.extractor",
    "ActivationExtractor": "writing.extractor",
    "ActivationWriter": "writing.activation_writer",
    "ExistingRunError": "errors",
    "RowBlock": "run.rows",
    "StoreError": "errors",
    "save_activations": "writing.saved_arrays",
    "verify": "maintenance.verify",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that a command can react to ctrl-C before numpy is loaded."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
