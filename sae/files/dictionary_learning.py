"""Folders of dictionary_learning: `ae.pt`, a state dict of torch, and `config.json`.

`trainer.dict_class` of the configuration names one of its classes (saprmarks/dictionary_learning,
`dictionary.py` and `trainers/`):

    AutoEncoder              standard; subtracts its `bias` from rows
    AutoEncoderNew           standard; subtracts nothing
    AutoEncoderTopK          topk
    BatchTopKSAE, MatryoshkaBatchTopKSAE    jumprelu with one threshold for all latents
    JumpReluAutoEncoder      jumprelu; subtracts nothing

dictionary_learning's own loader gives the decoder of an AutoEncoder unit norm, so its latents are
those here times the norms. An autoencoder is written as AutoEncoderNew, AutoEncoderTopK or
JumpReluAutoEncoder, with `b_dec` folded into the encoder's bias or out of it.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.storage import Storage
from extraction.storage.bounded import get_at_most
from sae.autoencoder import SparseAutoencoder
from sae.files.hook_names import spellings
from sae.files.sae_format import (
    MOST_WEIGHT_BYTES,
    SaeFormat,
    as_weights,
    described,
    json_bytes,
    made,
    read_json,
)
from sae.files.torch_file import read_torch_file, torch_file
from sae.folds import fold_b_dec, fold_decoder_norm, unfold_b_dec

CONFIG, WEIGHTS = "config.json", "ae.pt"

LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
"""Weights of torch's linear layers, whose matrices are transposed."""

PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}

CLASSES: Mapping[str, tuple[str, bool, Mapping[str, str]]] = {
    "AutoEncoder": ("standard", True, {**LINEAR, "b_dec": "bias"}),
    "AutoEncoderNew": ("standard", False, {**LINEAR, "b_dec": "decoder.bias"}),
    "AutoEncoderTopK": ("topk", True, {**LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": ("jumprelu", True, {**LINEAR, "b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True, {**PLAIN, "threshold": "threshold"}),
    "JumpReluAutoEncoder": ("jumprelu", False, {**PLAIN, "threshold": "threshold"}),
}
"""Architecture, whether b_dec is subtracted from rows, and names of the tensors of each class."""

COUNTS = ("k", "group_sizes", "threshold")
"""Tensors that a class may have besides and that latents do not depend on; k is checked."""

WRITTEN = {
    "standard": "AutoEncoderNew",
    "topk": "AutoEncoderTopK",
    "jumprelu": "JumpReluAutoEncoder",
}

SUBMODULES = {
    "resid_post": "layer_{i}",
    "attn_out": "layers.{i}.attention",
    "mlp_out": "layers.{i}.mlp",
}
"""First part of `submodule_name` (`resid_post_layer_12`), and the hook point that it means."""


def _read(storage: Storage) -> SparseAutoencoder:
    config = read_json(storage, CONFIG)
    trainer = config.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    kind = trainer.get("dict_class")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise StoreError(
            f"{storage.address}/{CONFIG}: trainer.dict_class is {kind!r:.60}; read are"
            f" {', '.join(CLASSES)}"
        )
    architecture, subtracts, names = CLASSES[kind]
    where = f"{storage.address}/{WEIGHTS}"
    try:
        tensors = read_torch_file(get_at_most(storage, WEIGHTS, MOST_WEIGHT_BYTES))
    except StoreError as error:
        raise StoreError(f"{where}: {error}") from None
    if not set(names.values()) <= tensors.keys() <= {*names.values(), *COUNTS}:
        raise StoreError(
            f"{where} has the tensors {', '.join(sorted(tensors))[:200]}; {kind} has"
            f" {', '.join(sorted(names.values()))}"
        )
    weights = {
        name: as_weights(tensors[stored], f"{where}: {stored}") for name, stored in names.items()
    }
    if names["W_enc"] == LINEAR["W_enc"]:
        for name in ("W_enc", "W_dec"):
            weights[name] = np.ascontiguousarray(weights[name].T)
    if "threshold" in weights and not weights["threshold"].ndim:
        weights["threshold"] = np.full_like(weights["b_enc"], weights["threshold"])
    return made(
        storage.address,
        architecture=architecture,
        **weights,
        k=_k(where, trainer, tensors) if architecture == "topk" else None,
        apply_b_dec_to_input=subtracts,
        metadata=_metadata(config, trainer),
    )


def _k(where: str, trainer: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> int:
    """Return k, of the tensors, or of the configuration if they have none."""
    told, stored = trainer.get("k"), tensors.get("k")
    if stored is None:
        if type(told) is not int:
            raise StoreError(f"{where} has no k, and trainer.k in {CONFIG} is {told!r:.60}")
        return told
    if stored.ndim or stored.dtype.kind != "i" or told not in (None, int(stored)):
        raise StoreError(f"{where}: k is {stored!r:.60}, and trainer.k in {CONFIG} {told!r:.60}")
    return int(stored)


def _metadata(config: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return our metadata, if we wrote the files, else what the configuration tells."""
    ours = config.get("metadata")
    if isinstance(ours, dict):
        return ours
    found: dict[str, Any] = {"dictionary_learning": dict(config)}
    if isinstance(trainer.get("lm_name"), str):
        found["model_name"] = trainer["lm_name"]
    name = trainer.get("submodule_name")
    match = re.fullmatch(r"(\w+)_layer_(\d{1,6})", name) if isinstance(name, str) else None
    if match and match[1] in SUBMODULES:
        found |= spellings(SUBMODULES[match[1]].format(i=int(match[2])))
    return found


def _written(sae: SparseAutoencoder) -> Mapping[str, bytes]:
    if sae.d_in != sae.d_out:
        raise StoreError(
            f"dictionary_learning has no transcoders from width {sae.d_in} to {sae.d_out}"
        )
    kind = WRITTEN[sae.architecture]
    _, subtracts, names = CLASSES[kind]
    if sae.rescale_acts_by_decoder_norm:
        sae = fold_decoder_norm(sae)
    sae = unfold_b_dec(sae) if subtracts else fold_b_dec(sae)
    arrays = {
        stored: array.T if stored in ("encoder.weight", "decoder.weight") else array
        for name, stored in names.items()
        for array in (sae.arrays()[name],)
    }
    trainer: dict[str, Any] = {
        "dict_class": kind,
        "activation_dim": sae.d_in,
        "dict_size": sae.d_sae,
        "lm_name": sae.metadata.get("model_name"),
        "layer": _layer(sae.metadata),
        "submodule_name": sae.metadata.get("hf_hook_name"),
    }
    if sae.k is not None:
        trainer["k"] = sae.k
        arrays |= {"k": np.array(sae.k, np.int32), "threshold": np.array(-1, np.float32)}
    config = {"trainer": trainer, "buffer": {}, "metadata": described(sae)}
    return {WEIGHTS: torch_file(arrays), CONFIG: json_bytes(config)}


def _layer(metadata: Mapping[str, Any]) -> int | None:
    number = re.search(r"\d{1,6}", str(metadata.get("hook_point")))
    return int(number[0]) if number else None


DICTIONARY_LEARNING = SaeFormat(
    name="dictionary_learning", files=frozenset({CONFIG, WEIGHTS}), read=_read, written=_written
)
