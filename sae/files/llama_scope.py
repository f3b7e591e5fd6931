"""Llama Scope (OpenMOSS): `hyperparams.json` and `checkpoints/final.safetensors`, read only.

    encoder.weight [d_sae, d_in]   encoder.bias   decoder.weight [d_out, d_sae]   decoder.bias

It was trained on rows times `s = sqrt(d_model) / dataset_average_activation_norm`, and its one
threshold is for rows as they are. So `W_enc = encoder.weight.T` and `b_enc = encoder.bias / s` give
latents of rows as they are, in which the reconstruction is the same. Where the norms of the decoder
count in the selection (`sparsity_include_decoder_norm`), they are folded into the encoder.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.storage import Storage
from sae.autoencoder import SparseAutoencoder
from sae.files.hook_names import canonical_name, spellings
from sae.files.sae_format import SaeFormat, made, named_tensors, read_json, read_tensors

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"

NAMES = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight",
    "b_dec": "decoder.bias",
}


def _read(storage: Storage) -> SparseAutoencoder:
    config = read_json(storage, CONFIG)
    where = f"{storage.address}/{CONFIG}"
    activation = config.get("act_fn")
    if activation not in ("jumprelu", "topk"):
        raise StoreError(f"{where}: act_fn is {activation!r:.60}; read are jumprelu and topk")
    if config.get("use_glu_encoder", False) or not config.get("use_decoder_bias", True):
        raise StoreError(f"{where}: a GLU encoder, or no decoder bias, is not read")
    try:
        tensors = read_tensors(storage, WEIGHTS)
    except FileNotFoundError:
        raise StoreError(f"{storage.address} has {CONFIG}, but no {WEIGHTS}") from None
    found = named_tensors(tensors, NAMES, f"{storage.address}/{WEIGHTS}")
    scale, target_scale = _scales(config, where)
    subtracts = bool(config.get("apply_decoder_bias_to_pre_encoder", False))
    if subtracts and scale != target_scale:  # b_dec in two units: into the encoder's bias
        if found["W_enc"].shape[1:] != found["b_dec"].shape:
            raise StoreError(f"{where}: decoder.bias cannot be subtracted from rows")
        found["b_enc"] = found["b_enc"] - found["W_enc"] @ found["b_dec"]
        subtracts = False
    weights = {
        "W_enc": np.ascontiguousarray(found["W_enc"].T),
        "b_enc": found["b_enc"] / np.float32(scale),
        "W_dec": np.ascontiguousarray(found["W_dec"].T) * np.float32(scale / target_scale),
        "b_dec": found["b_dec"] / np.float32(target_scale),
    }
    if config.get("sparsity_include_decoder_norm", False):
        norms = np.linalg.norm(found["W_dec"], axis=0)
        weights["W_enc"] = weights["W_enc"] * norms  # without a direction: never active
        weights["b_enc"] = weights["b_enc"] * norms
        weights["W_dec"] = weights["W_dec"] / np.where(norms > 0, norms, np.float32(1))[:, None]
    if activation == "topk":
        chosen = {"k": _whole(config, "top_k", where)}
    else:
        threshold = _positive(config.get("jump_relu_threshold"), "jump_relu_threshold", where)
        chosen = {"threshold": np.full_like(weights["b_enc"], threshold)}
    return made(
        storage.address,
        architecture=activation,
        **weights,
        **chosen,
        apply_b_dec_to_input=subtracts,
        metadata=_metadata(config, storage.address),
    )


def _scales(config: Mapping[str, Any], where: str) -> tuple[float, float]:
    """Return what rows and targets were multiplied by."""
    kind = config.get("norm_activation", "none")
    if kind in ("none", "inference"):
        return 1.0, 1.0
    if kind != "dataset-wise":
        raise StoreError(f"{where}: norm_activation is {kind!r:.60}; read is dataset-wise")
    norms = config.get("dataset_average_activation_norm")
    norms = norms if isinstance(norms, dict) else {}
    root = math.sqrt(_whole(config, "d_model", where))
    of_rows = _positive(norms.get("in"), "dataset_average_activation_norm.in", where)
    of_targets = _positive(norms.get("out", of_rows), "dataset_average_activation_norm.out", where)
    return root / of_rows, root / of_targets


def _positive(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise StoreError(f"{where}: {name} must be a number above 0, not {value!r:.60}")
    return float(value)


def _whole(config: Mapping[str, Any], name: str, where: str) -> int:
    if type(config.get(name)) is not int or config[name] < 1:
        raise StoreError(f"{where}: {name} must be a whole number, not {config.get(name)!r:.60}")
    return config[name]


def _metadata(config: Mapping[str, Any], address: str) -> dict[str, Any]:
    found: dict[str, Any] = {"source": f"Llama Scope, {address}", "llama_scope": dict(config)}
    model = re.search(r"Llama3_1-(\d+B)-Base", address)
    if model is not None:
        found["model_name"] = f"meta-llama/Llama-3.1-{model[1]}"
    read, target = (config.get(f"hook_point_{end}") for end in ("in", "out"))
    for name, ending in ((read, ""), (target if target != read else None, "_out")):
        canonical = canonical_name(name) if isinstance(name, str) else None
        found |= spellings(canonical, ending) if canonical else {}
    return found


LLAMA_SCOPE = SaeFormat(name="llama_scope", files=frozenset({CONFIG}), read=_read)
