"""Qwen-Scope: a file of torch for each layer, `layer12.sae.pt`, TopK, read only and without torch.

    Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50/layer12.sae.pt

    W_enc [d_sae, d_in]   W_dec [d_in, d_sae]   b_enc [d_sae]   b_dec [d_in]

There is no configuration: k is the number behind `L0_` in the repository's name, so a folder must
keep that name. `b_dec` is not subtracted from rows, which are the output of the block.
"""

import re
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.storage import Storage
from extraction.storage.bounded import get_at_most
from sae.autoencoder import SparseAutoencoder
from sae.files.hook_names import spellings
from sae.files.sae_format import MOST_WEIGHT_BYTES, SaeFormat, as_weights, made, named_tensors
from sae.files.torch_file import read_torch_file

FILE = re.compile(r"layer(\d{1,6})\.sae\.pt")
REPOSITORY = re.compile(r"SAE-Res-([\w.-]+?)-W\d+K-L0_(\d{1,6})(?=/|$)")
NAMES = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}


def _read(storage: Storage) -> SparseAutoencoder:
    files = [name for name in storage.names() if FILE.fullmatch(name)]
    if len(files) > 1:
        raise StoreError(
            f"{storage.address} holds {len(files)} autoencoders; give the address of one,"
            f" {storage.address}/{files[0]}"
        )
    return _read_file(storage, files[0])


def _read_file(storage: Storage, name: str) -> SparseAutoencoder:
    where = f"{storage.address}/{name}"
    repository = REPOSITORY.search(storage.address)
    if repository is None:
        raise StoreError(
            f"{where}: its folder must have the repository's name, such as"
            " SAE-Res-Qwen3-8B-Base-W64K-L0_50, which tells how many latents are active"
        )
    try:
        tensors = read_torch_file(get_at_most(storage, name, MOST_WEIGHT_BYTES))
    except StoreError as error:
        raise StoreError(f"{where}: {error}") from None
    found = named_tensors(tensors, NAMES, where)
    weights: dict[str, Any] = {
        key: as_weights(array, f"{where}: {key}") for key, array in found.items()
    }
    for key in ("W_enc", "W_dec"):
        weights[key] = np.ascontiguousarray(weights[key].T)
    file = FILE.fullmatch(name)
    assert file is not None
    return made(
        where,
        architecture="topk",
        **weights,
        k=int(repository[2]),
        apply_b_dec_to_input=False,
        metadata={
            "source": f"Qwen-Scope, {where}",
            "model_name": f"Qwen/{repository[1]}",
            **spellings(f"layer_{int(file[1])}"),
        },
    )


QWEN_SCOPE = SaeFormat(
    name="qwen_scope", files=frozenset(), read=_read, file=FILE, read_file=_read_file
)
