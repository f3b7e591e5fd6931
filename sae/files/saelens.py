"""SAELens' folders, version 6: `cfg.json`, `sae_weights.safetensors`, `sparsity.safetensors`.

They are this project's own format. What SAELens does not know stands in `metadata`, which it keeps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.storage import Storage
from sae.autoencoder import ARCHITECTURES, SparseAutoencoder
from sae.files.hook_names import canonical_name, spellings
from sae.files.sae_format import (
    DENSITIES,
    SaeFormat,
    described,
    json_bytes,
    made,
    read_json,
    read_tensors,
    tensor_bytes,
)

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"

VERSION = "6.54.12"
"""Version of SAELens whose folders these are; from 6.0.0 on it reads nested metadata."""

TRANSCODERS = {"transcoder": "standard", "jumprelu_transcoder": "jumprelu"}
"""SAELens' names of transcoders, and the architecture of their latents."""

BEFORE_6 = ("activation_fn", "activation_fn_str")
"""Fields of the time before version 6, when a topk SAE was called standard."""

FLAGS = {"normalize_activations": "none", "reshape_activations": "none"}


def _read(storage: Storage) -> SparseAutoencoder:
    config = read_json(storage, CONFIG)
    name = config.get("architecture", "standard")
    if not isinstance(name, str) or name not in (*ARCHITECTURES, *TRANSCODERS):
        raise StoreError(
            f"{storage.address}/{CONFIG}: architecture {name!r:.60} is not read, only"
            f" {', '.join((*ARCHITECTURES, *TRANSCODERS))}"
        )
    architecture = TRANSCODERS.get(name, name)
    for field in BEFORE_6:
        if config.get(field, "relu") != "relu":
            raise StoreError(
                f"{storage.address}/{CONFIG}: {field} {config[field]!r:.60} is of SAELens before"
                " version 6; load and save it with SAELens 6"
            )
    for field, value in FLAGS.items():
        if config.get(field, value) not in (value, None):
            raise StoreError(
                f"{storage.address}/{CONFIG}: {field} {config[field]!r:.60} is not read; fold it"
                " into the weights"
            )
    tensors = read_tensors(storage, WEIGHTS)
    known = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
    if tensors.keys() - known or not {"W_enc", "W_dec", "b_enc", "b_dec"} <= tensors.keys():
        raise StoreError(
            f"{storage.address}/{WEIGHTS} has the tensors {', '.join(sorted(tensors))[:200]}; an"
            f" autoencoder has {', '.join(sorted(known))}"
        )
    k = config.get("k")
    return made(
        storage.address,
        architecture=architecture,
        **tensors,
        k=k if type(k) is int else None,
        apply_b_dec_to_input=config.get("apply_b_dec_to_input", True) is True,
        rescale_acts_by_decoder_norm=config.get("rescale_acts_by_decoder_norm") is True,
        metadata=_metadata(storage, config),
    )


def _metadata(storage: Storage, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata, with our name of the hook point and densities where they are known."""
    found = config.get("metadata")
    found = dict(found) if isinstance(found, dict) else {}
    for ending in ("", "_out"):
        name = found.get(f"hook_name{ending}")
        hook_point = canonical_name(name) if isinstance(name, str) else None
        if hook_point is not None:
            found = spellings(hook_point, ending) | found
    if SPARSITY in storage.names():
        logarithms = read_tensors(storage, SPARSITY).get("sparsity")
        if logarithms is not None:
            densities = np.maximum(10 ** logarithms.astype(np.float64) - 1e-10, 0)
            found[DENSITIES] = densities.tolist()
    return found


def _written(sae: SparseAutoencoder) -> Mapping[str, bytes]:
    densities = sae.metadata.get(DENSITIES)
    files = {WEIGHTS: tensor_bytes(sae.arrays())}
    if densities is not None:
        logarithms = np.log10(np.asarray(densities, np.float64) + 1e-10).astype(np.float32)
        files[SPARSITY] = tensor_bytes({"sparsity": logarithms})
    return files | {CONFIG: json_bytes(_config(sae, described(sae)))}


def _config(sae: SparseAutoencoder, metadata: dict[str, Any]) -> dict[str, Any]:
    architecture = sae.architecture
    transcoder = not sae.apply_b_dec_to_input and (
        sae.d_in != sae.d_out or bool(metadata.get("hook_name_out"))
    )
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
