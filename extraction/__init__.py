"""From arrays to files: buffer, formats, storage. Needs numpy, never JAX.

Read in this order: `rows`, `extractor`, `metadata`, `formats/`, `storage/`.
"""

from extraction.errors import ExistingRunError, StoreError
from extraction.extractor import ActivationExtractionConfig, ActivationExtractor
from extraction.rows import RowBlock

__all__ = [
    "ActivationExtractionConfig",
    "ActivationExtractor",
    "ExistingRunError",
    "RowBlock",
    "StoreError",
]
