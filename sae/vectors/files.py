"""Directions in a file: safetensors, one float32 tensor `[d]` for each name.

The header's metadata hold, under each tensor's name, a JSON object about it:

    {"kind": "decoder_row", "hook_point": "layer_12", "norm": 1.0, "model_name": "Qwen/Qwen2-0.5B",
     "weights_sha256": "12ab...", "sae": "saes/layer_12", "latent": 3801}

`kind` is `decoder_row` or `mean_difference`, `hook_point` where the direction belongs, `norm` the
tensor's norm, `weights_sha256` the digest of the model's weights, null where it is not known. What
else there is depends on the kind. Beside them, `weights_sha256` is that digest as it is, as all
directions of a file are for one model, and `software` a JSON text.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extraction.documents import read_json
from extraction.errors import StoreError, first_line
from extraction.storage.names import check_hook_point
from extraction.version import __version__
from sae.files import disk_errors_told
from sae.files.hook_names import canonical_name
from sae.files.sae_format import read_tensors_and_texts
from sae.files.single_file import single_file

SOFTWARE, WEIGHTS = "software", "weights_sha256"
"""Keys of the header's metadata that are no names of directions."""

FIELDS = ("kind", "hook_point", "model_name", "weights_sha256")
"""Metadata of every direction, beside its norm."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Vector:
    """A direction at a hook point.

    Attributes:
        name: its name.
        values: `[d]` float32, finite and not all 0.
        hook_point: canonical name of the hook point that it belongs to.
        kind: `decoder_row`, `mean_difference`, or another text.
        model_name: name of the model; None if it is not known.
        weights_sha256: digest of the model's weights, as runs record it; None if it is not known.
        details: further JSON values, such as `latent`.

    Raises:
        StoreError: the values cannot be a direction, or a text is missing.
    """

    name: str
    values: np.ndarray
    hook_point: str
    kind: str
    model_name: str | None = None
    weights_sha256: str | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if (
            not self.name
            or self.name in (SOFTWARE, WEIGHTS, "__metadata__")
            or not self.name.isprintable()
        ):
            raise StoreError(f"{self.name!r:.100} cannot be the name of a vector")
        values = self.values
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim != 1:
            kind = (
                f"{values.dtype} {list(values.shape)}" if hasattr(values, "shape") else "no array"
            )
            raise StoreError(f"vector {self.name!r:.100} is {kind}; float32 [d] is needed")
        if not np.isfinite(values).all():
            raise StoreError(f"vector {self.name!r:.100} has numbers that are not finite")
        if not values.any():
            raise StoreError(f"vector {self.name!r:.100} is 0, and has no direction")
        for field in ("hook_point", "kind"):
            if type(getattr(self, field)) is not str:
                raise StoreError(f"vector {self.name!r:.100} does not name its {field}")
        hook_point = canonical_name(self.hook_point) or self.hook_point
        try:
            object.__setattr__(self, "hook_point", check_hook_point(hook_point))
        except StoreError:
            raise StoreError(
                f"vector {self.name!r:.100}: {hook_point!r:.100} is no name of a hook point"
            ) from None
        for field in ("model_name", "weights_sha256"):
            if type(getattr(self, field)) not in (str, type(None)):
                raise StoreError(f"vector {self.name!r:.100}: {field} is no text")

    @property
    def norm(self) -> float:
        """Norm of the values."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def __repr__(self) -> str:
        return (
            f"Vector({self.name!r}: {self.kind} [{len(self.values)}] at {self.hook_point}, norm"
            f" {self.norm:.4g})"
        )


def save_vectors(vectors: Sequence[Vector], address: str | Path) -> None:
    """Write directions to a file; a file of the same name is replaced, in one step.

    Args:
        vectors: the directions, each of another name.
        address: path of the file, or its address in a bucket.

    Raises:
        StoreError: two have one name or are for models of different weights, there is none, or the
            address cannot be used.
        StorageUnavailableError: the disk is full, or fails.
    """
    from safetensors.numpy import save

    if not vectors:
        raise StoreError("there is no vector to save")
    metadata = {SOFTWARE: json.dumps(f"qwen-activation-extraction {__version__}")}
    digests = sorted({v.weights_sha256 for v in vectors if v.weights_sha256 is not None})
    if len(digests) > 1:
        told = " and ".join(digest[:12] for digest in digests)
        raise StoreError(f"the vectors are for models of different weights, {told}; use two files")
    if digests:
        metadata[WEIGHTS] = digests[0]
    for vector in vectors:
        if vector.name in metadata:
            raise StoreError(f"two vectors have the name {vector.name!r:.100}")
        entry = {
            "kind": vector.kind,
            "hook_point": vector.hook_point,
            "norm": vector.norm,
            "model_name": vector.model_name,
            "weights_sha256": vector.weights_sha256,
            **vector.details,
        }
        try:
            metadata[vector.name] = json.dumps(entry, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            told = first_line(error)
            raise StoreError(f"the details of {vector.name!r:.100} are not JSON: {told}") from None
    data = save({v.name: np.ascontiguousarray(v.values) for v in vectors}, metadata)
    storage, file = single_file(address, writable=True)
    with disk_errors_told(storage, "written"):
        storage.replace(file, data)


def load_vectors(address: str | Path) -> dict[str, Vector]:
    """Return the directions of a file, by their names. Nothing in the file is run.

        load_vectors("vectors.safetensors")["latent_3801"].values  # [d] float32

    Args:
        address: path of the file, or its address in a bucket.

    Raises:
        StoreError: there is no such file, it is damaged, or holds something else.
    """
    storage, file = single_file(address, writable=False)
    where = f"{storage.address}/{file}"
    try:
        tensors, texts = read_tensors_and_texts(storage, file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise StoreError(f"{where}: there is no such file") from None
    found = {}
    for tensor, values in tensors.items():
        try:
            found[tensor] = _vector(tensor, values, texts.get(tensor))
        except StoreError as error:
            raise StoreError(f"{where}: {error}") from None
    if not found:
        raise StoreError(f"{where} holds no vector")
    return found


def _vector(name: str, values: np.ndarray, text: str | None) -> Vector:
    """Return a direction from its tensor and its metadata."""
    if text is None:
        raise StoreError(f"the header says nothing about {name!r:.100}, so it is no vector of ours")
    try:
        entry = read_json(text)
    except ValueError as error:
        raise StoreError(f"metadata of {name!r:.100} are not JSON: {first_line(error)}") from None
    if type(entry) is not dict:
        raise StoreError(f"metadata of {name!r:.100} are no JSON object")
    fields: dict[str, Any] = {field: entry.get(field) for field in FIELDS}
    details = {key: value for key, value in entry.items() if key not in (*FIELDS, "norm")}
    vector = Vector(name=name, values=values, details=details, **fields)
    norm: Any = entry.get("norm")
    if type(norm) not in (int, float) or not math.isclose(norm, vector.norm, rel_tol=1e-3):
        raise StoreError(f"{name!r:.100} has norm {vector.norm:.6g}, {norm!r:.60} by its metadata")
    return vector
