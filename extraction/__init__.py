"""From arrays to durable files and back. Needs numpy and google-crc32c, never JAX.

Writing, in this order: `rows`, `extractor`, `committer`, `commit_log`, `run_identity`, `finalise`,
`upload`. Reading: `reader`. Files: `formats/`, `storage/`. `python -m extraction` checks, mends,
shows, joins, converts, exports and uploads runs; `exports/` has the forms of others.
"""

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
]
