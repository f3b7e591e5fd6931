"""Gemma Scope (Gemma 2) and Gemma Scope 2 (Gemma 3): one file of weights, JumpReLU, read only.

    google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82/params.npz
    google/gemma-scope-2-1b-pt/resid_post/layer_12_width_16k_l0_medium/params.safetensors

    W_enc [d_in, d_sae]   W_dec [d_sae, d_out]   b_enc   b_dec   threshold [d_sae]

The second spells the names in lower case and may have a `config.json`. `b_dec` is not subtracted
from rows. Which model, hook point and layer (the number of the block, from 0) an autoencoder is of
stands in the folders' names, or in that file.
"""

import re
from collections.abc import Mapping
from typing import Any

from extraction.errors import StoreError, first_line
from extraction.formats.npz_arrays import read_npz
from extraction.storage import Storage
from extraction.storage.bounded import get_at_most
from sae.autoencoder import SparseAutoencoder
from sae.files.hook_names import canonical_name, spellings
from sae.files.sae_format import (
    MOST_WEIGHT_BYTES,
    SaeFormat,
    as_weights,
    made,
    named_tensors,
    read_json,
    read_tensors,
)

WEIGHTS, WEIGHTS_2, CONFIG_2 = "params.npz", "params.safetensors", "config.json"
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
SKIP = "affine_skip_connection"

MODULES: Mapping[str, tuple[str, str | None]] = {
    "res": ("model.layers.{i}", None),
    "att": ("model.layers.{i}.self_attn.o_proj.input", None),
    "mlp": ("model.layers.{i}.post_feedforward_layernorm", None),
    "transcoders": (
        "model.layers.{i}.pre_feedforward_layernorm",
        "model.layers.{i}.post_feedforward_layernorm",
    ),
}
"""Hugging Face's names of the values that are read and reconstructed, by the repository's kind."""


def _read(storage: Storage) -> SparseAutoencoder:
    where = f"{storage.address}/{WEIGHTS}"
    if re.search(r"gemma-scope-[^/]*/(.*/)?embedding(?=/|$)", storage.address):
        raise StoreError(f"{where}: an autoencoder of Gemma's scaled embeddings is not read")
    try:
        found = read_npz(get_at_most(storage, WEIGHTS, MOST_WEIGHT_BYTES))
    except StoreError as error:
        raise StoreError(f"{where}: {error}") from None
    except Exception as error:  # whatever damaged bytes raise
        raise StoreError(f"{where} is damaged: {first_line(error)}") from None
    # Some files spell W_enc and W_dec in lower case.
    stored = {name: name if name in found else name.lower() for name in NAMES}
    arrays = named_tensors(found, stored, where)
    arrays = {name: as_weights(array, f"{where}: {name}") for name, array in arrays.items()}
    return made(
        storage.address,
        architecture="jumprelu",
        **arrays,
        apply_b_dec_to_input=False,
        metadata=_told_by_folders(storage.address),
    )


def _told_by_folders(address: str) -> dict[str, Any]:
    found: dict[str, Any] = {"source": f"Gemma Scope, {address}"}
    kind = re.search(r"gemma-scope-(\w+)-(pt|it)-(res|att|mlp|transcoders)(?=/|$)", address)
    layer = re.search(r"/layer_(\d{1,6})(?=/|$)", address)
    if kind is None:
        return found
    found["model_name"] = f"google/gemma-2-{kind[1]}{'-it' if kind[2] == 'it' else ''}"
    if layer is not None:
        read, target = (
            name and canonical_name(name.format(i=layer[1])) for name in MODULES[kind[3]]
        )
        found |= spellings(read) if read else {}
        found |= spellings(target, "_out") if target else {}
    return found


def _read_2(storage: Storage) -> SparseAutoencoder:
    where = f"{storage.address}/{WEIGHTS_2}"
    tensors = read_tensors(storage, WEIGHTS_2)
    if SKIP in tensors:
        raise StoreError(f"{where} has {SKIP}: a transcoder with a skip connection is not read")
    weights = named_tensors(tensors, {name: name.lower() for name in NAMES}, where)
    metadata: dict[str, Any] = {"source": f"Gemma Scope 2, {storage.address}"}
    if CONFIG_2 in storage.names():
        config = read_json(storage, CONFIG_2)
        architecture = config.get("architecture", "jump_relu")
        if architecture != "jump_relu":
            raise StoreError(
                f"{storage.address}/{CONFIG_2}: architecture {architecture!r:.60} is not read;"
                " jump_relu is"
            )
        metadata |= _told_by_config(config)
    return made(
        storage.address,
        architecture="jumprelu",
        **weights,
        apply_b_dec_to_input=False,
        metadata=metadata,
    )


def _told_by_config(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"gemma_scope_2": dict(config)}
    if isinstance(config.get("model_name"), str):
        found["model_name"] = config["model_name"]
    read, target = (config.get(f"hf_hook_point_{end}") for end in ("in", "out"))
    for name, ending in ((read, ""), (target if target != read else None, "_out")):
        canonical = canonical_name(str(name).removesuffix(".output")) if name else None
        found |= spellings(canonical, ending) if canonical else {}
    return found


GEMMA_SCOPE = SaeFormat(name="gemma_scope", files=frozenset({WEIGHTS}), read=_read)
GEMMA_SCOPE_2 = SaeFormat(name="gemma_scope_2", files=frozenset({WEIGHTS_2}), read=_read_2)
