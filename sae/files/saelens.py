"""SAELens' folders, version 6: `cfg.json`, `sae_weights.safetensors`, `sparsity.safetensors`.

They are this project's own format. What SAELens does not know stands in `metadata`, which it keeps.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.storage import Storage
from sae.autoencoder import SparseAutoencoder
from sae.files.sae_format import SaeFormat, read_json, read_tensors

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"

VERSION = "6.54.12"
"""Version of SAELens whose folders these are; from 6.0.0 on it reads nested metadata."""

DENSITIES = "densities"
"""Metadata whose logarithms stand in `sparsity.safetensors`, and which is not written to JSON."""

TRANSCODERS = {"transcoder": "standard", "jumprelu_transcoder": "jumprelu"}
"""SAELens' names of transcoders, and the architecture of their latents."""

FLAGS = {"normalize_activations": "none", "reshape_activations": "none"}


def _read(storage: Storage) -> SparseAutoencoder:
    config = read_json(storage, CONFIG)
    tensors = read_tensors(storage, WEIGHTS)
    name = str(config.get("architecture"))
    architecture = TRANSCODERS.get(name, name)
    for field, value in FLAGS.items():
        if config.get(field, value) not in (value, None):
            raise StoreError(
                f"{storage.address}/{CONFIG}: {field} {config[field]!r} is not supported; fold it"
                " into the weights"
            )
    known = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
    if tensors.keys() - known or not {"W_enc", "W_dec", "b_enc", "b_dec"} <= tensors.keys():
        raise StoreError(
            f"{storage.address}/{WEIGHTS} has the tensors {', '.join(sorted(tensors))}; an"
            f" autoencoder has {', '.join(sorted(known))}"
        )
    metadata = config.get("metadata")
    k = config.get("k")
    try:
        return SparseAutoencoder(
            architecture=architecture,
            **tensors,
            k=k if type(k) is int else None,
            apply_b_dec_to_input=config.get("apply_b_dec_to_input", True) is True,
            rescale_acts_by_decoder_norm=config.get("rescale_acts_by_decoder_norm") is True,
            metadata=metadata if isinstance(metadata, dict) else {},
        )
    except StoreError as error:
        raise StoreError(f"{storage.address}: {error}") from None


def _written(sae: SparseAutoencoder) -> Mapping[str, bytes]:
    from safetensors.numpy import save

    metadata = dict(sae.metadata)
    densities = metadata.pop(DENSITIES, None)
    arrays = {name: np.ascontiguousarray(array) for name, array in sae.arrays().items()}
    files = {WEIGHTS: save(arrays)}
    if densities is not None:
        logarithms = np.log10(np.asarray(densities, np.float64) + 1e-10).astype(np.float32)
        files[SPARSITY] = save({"sparsity": logarithms})
    return files | {CONFIG: json.dumps(_config(sae, metadata), indent=1).encode()}


def _config(sae: SparseAutoencoder, metadata: dict[str, Any]) -> dict[str, Any]:
    architecture = sae.architecture
    transcoder = not sae.apply_b_dec_to_input and bool(metadata.get("hook_name_out"))
    if transcoder:
        names = {inner: name for name, inner in TRANSCODERS.items()}
        if architecture not in names:
            raise StoreError(f"SAELens has no transcoder of architecture {architecture}")
        architecture = names[architecture]
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.W_enc.dtype),
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        **FLAGS,
    }
    if transcoder:
        config["d_out"] = sae.d_out
    if architecture == "topk":
        config["k"] = sae.k
        config["rescale_acts_by_decoder_norm"] = sae.rescale_acts_by_decoder_norm
    # Without this version SAELens takes the file for an old one, and drops the metadata.
    version = str(metadata.get("sae_lens_version", VERSION))
    config["metadata"] = metadata | {"sae_lens_version": version}
    return config


SAELENS = SaeFormat(
    name="saelens", files=frozenset({CONFIG, WEIGHTS}), read=_read, written=_written
)
