"""From arrays to durable files and back. Needs numpy and google-crc32c, never JAX.

Writing, in this order: `rows`, `extractor`, `committer`, `commit_log`, `run_identity`, `finalise`,
`upload`. Reading: `reader`. Files: `formats/`, `storage/`. `python -m extraction` checks, mends,
shows, joins, converts, exports and uploads runs; `exports/` has the forms of others.
"""

import importlib
from typing import TYPE_CHECKING, Any

from extraction.version import __version__

if TYPE_CHECKING:
    from extraction.errors import ExistingRunError, StoreError
    from extraction.extractor import ActivationExtractionConfig, ActivationExtractor
    from extraction.reader import ActivationDataset
    from extraction.rows import RowBlock

__all__ = [
    "ActivationDataset",
    "ActivationExtractionConfig",
    "ActivationExtractor",
    "ExistingRunError",
    "RowBlock",
    "StoreError",
    "__version__",
]

_MODULES = {
    "ActivationDataset": "reader",
    "ActivationExtractionConfig": "extractor",
    "ActivationExtractor": "extractor",
    "ExistingRunError": "errors",
    "RowBlock": "rows",
    "StoreError": "errors",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: a command is to react to ctrl-C before numpy is loaded."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
