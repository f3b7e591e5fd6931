"""Tokens in, activations out.

Read in this order: `simple_extraction_inference`, then what it uses: `settings`, `tasks`,
`samples`, `arc`, `arc_grids`, `token_choice`, `outputs`, `buckets`, `pretrained`.
"""

import os

# Without torch, transformers warns at import that it has no models; none of them is used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
