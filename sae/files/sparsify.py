"""Folders of EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, always topk.

    encoder.weight [d_sae, d_in]   encoder.bias [d_sae]   W_dec [d_sae, d_in]   b_dec [d_in]

(EleutherAI/sparsify, `sparse_coder.py`.) An SAE subtracts `b_dec` from rows, a transcoder does not.
A folder of sparsify is named after the module whose output it is about: `layers.12`,
`layers.12.mlp`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.storage import Storage
from sae.autoencoder import SparseAutoencoder
from sae.files.hook_names import canonical_name, spellings
from sae.files.sae_format import (
    SaeFormat,
    described,
    json_bytes,
    made,
    named_tensors,
    read_json,
    read_tensors,
    tensor_bytes,
)
from sae.folds import fold_decoder_norm, unfold_b_dec

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"

METADATA = "metadata.json"
"""A file of our own, since sparsify prints fields of `cfg.json` that it does not know."""

NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}

SAME_NORM = 1e-4
"""Largest difference from 1 of the norms of a decoder that counts as normalized."""


def _read(storage: Storage) -> SparseAutoencoder:
    config = read_json(storage, CONFIG)
    where = f"{storage.address}/{CONFIG}"
    unlike = {"activation": "topk", "signed": False, "skip_connection": False}
    for field, value in unlike.items():
        if config.get(field, value) != value:
            raise StoreError(f"{where}: {field} is {config[field]!r:.60}; read is only {value!r}")
    transcode, k = config.get("transcode", False), config.get("k", 32)
    if type(transcode) is not bool or type(k) is not int:
        raise StoreError(f"{where}: k is {k!r:.60} and transcode {transcode!r:.60}")
    tensors = read_tensors(storage, WEIGHTS)
    weights = named_tensors(tensors, NAMES, f"{storage.address}/{WEIGHTS}")
    return made(
        storage.address,
        architecture="topk",
        **weights | {"W_enc": np.ascontiguousarray(weights["W_enc"].T)},
        k=k,
        apply_b_dec_to_input=not transcode,
        metadata=_metadata(storage, config, transcode),
    )


def _metadata(storage: Storage, config: Mapping[str, Any], transcode: bool) -> dict[str, Any]:
    """Return our metadata, if we wrote the files, else what configuration and folder tell."""
    if METADATA in storage.names():
        return read_json(storage, METADATA)
    found: dict[str, Any] = {"sparsify": dict(config)}
    module = storage.address.rstrip("/").rpartition("/")[2]
    hook_point = canonical_name(f"model.{module}")
    if hook_point is not None:
        found |= spellings(hook_point, "_out" if transcode else "")
    return found


def _written(sae: SparseAutoencoder) -> Mapping[str, bytes]:
    if sae.architecture != "topk":
        kept = "the thresholds of jumprelu" if sae.threshold is not None else "a plain relu"
        raise StoreError(
            f"sparsify cannot hold {sae.architecture}: it keeps the k largest latents of a row, and"
            f" has no place for {kept}"
        )
    if sae.d_in != sae.d_out:
        raise StoreError(f"sparsify has no transcoders from width {sae.d_in} to {sae.d_out}")
    if sae.rescale_acts_by_decoder_norm:
        sae = fold_decoder_norm(sae)
    transcode = "hook_name_out" in sae.metadata and not sae.apply_b_dec_to_input
    if not transcode:
        sae = unfold_b_dec(sae)
    norms = np.linalg.norm(sae.W_dec, axis=1)
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_in),
        "normalize_decoder": bool(np.abs(norms - 1).max() < SAME_NORM),
        "num_latents": sae.d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": transcode,
        "d_in": sae.d_in,
    }
    arrays = {stored: sae.arrays()[name] for name, stored in NAMES.items()}
    weights = tensor_bytes(arrays | {"encoder.weight": sae.W_enc.T})
    return {WEIGHTS: weights, METADATA: json_bytes(described(sae)), CONFIG: json_bytes(config)}


SPARSIFY = SaeFormat(
    name="sparsify", files=frozenset({CONFIG, WEIGHTS}), read=_read, written=_written
)
