"""`metadata.json`: the content of a run's folder, in the form of founding document 004.

`n_samples` counts the rows of a file, `total_samples` the rows per layer. Further keys say how many
samples there are, whether the run is complete, and how it was made.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from extraction.errors import StoreError
from extraction.formats.pickle_format import layer_field
from extraction.run_layout import METADATA_FILE
from extraction.storage import Storage
from extraction.storage.bounded import LARGEST_DOCUMENT, get_at_most

SCHEMA_VERSION = 1

LARGEST_ENTRY = 1024
"""Most bytes of a file's entry in `metadata.json`."""

MOST_IN_A_BUCKET = 1_000_000
"""Most files assumed for a `metadata.json` in a bucket, where counting them is slow."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BatchFile:
    """One published file of a batch.

    Attributes:
        batch_id: number of the batch, from 1; the same for all its hook points.
        hook_point: its name, `layer_6`.
        file: name within the folder.
        n_samples: number of its rows.
    """

    batch_id: int
    hook_point: str
    file: str
    n_samples: int


def get_metadata(storage: Storage) -> bytes:
    """Return the content of `metadata.json`, unless it is too large for its number of files.

    Raises:
        FileNotFoundError: there is none.
        TooLargeError: it is larger than any for as many files as the folder holds.
    """
    listed = len(storage.names()) if storage.is_local else MOST_IN_A_BUCKET
    return get_at_most(storage, METADATA_FILE, LARGEST_DOCUMENT + listed * LARGEST_ENTRY)


def metadata_document(
    *,
    model_name: str,
    hook_points: tuple[str, ...],
    hidden_dim: int,
    batches: list[BatchFile],
    total_sequences: int,
    complete: bool,
    file_format: str,
    run: Mapping[str, Any],
    dtype: str = "float32",
    more: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the file's content, UTF-8 JSON.

    Args:
        model_name: name of the model, as the user gave it.
        hook_points: captured hook points.
        hidden_dim: width of the residual stream.
        batches: all published files.
        total_sequences: number of samples that have rows.
        complete: whether all batches exist.
        file_format: format of the batches.
        run: settings and versions that the run was made with.
        dtype: dtype of the stored activations.
        more: further keys.
    """
    first = hook_points[0] if hook_points else None
    document = {
        "model_name": model_name,
        "layers_extracted": [layer_field(name) for name in hook_points],
        "hidden_dim": hidden_dim,
        "total_samples": sum(b.n_samples for b in batches if b.hook_point == first),
        "batches": [
            {
                "batch_id": b.batch_id,
                "layer": b.hook_point,
                "file": b.file,
                "n_samples": b.n_samples,
            }
            for b in batches
        ],
        "schema_version": SCHEMA_VERSION,
        "complete": complete,
        "total_sequences": total_sequences,
        "format": file_format,
        "dtype": dtype,
        "run": dict(run),
        **(more or {}),
    }
    try:
        return _dump(document)
    except TypeError as error:
        raise StoreError(f"model_name and run must be valid in JSON: {error}") from None


def _dump(document: dict[str, Any]) -> bytes:
    """Return indented JSON with one line for each batch, which is twenty times as fast."""
    batches = ",\n".join(
        f"    {json.dumps(batch, ensure_ascii=False)}" for batch in document["batches"]
    )
    text = json.dumps(document | {"batches": []}, indent=2, ensure_ascii=False)
    if batches:
        text = text.replace('\n  "batches": []', f'\n  "batches": [\n{batches}\n  ]', 1)
    return (text + "\n").encode()
