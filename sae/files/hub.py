"""Autoencoders on the Hugging Face hub, `hf://owner/name/folder`, downloaded into a cache."""

import re
from pathlib import Path

from extraction.errors import StoreError, first_line
from extraction.writing.places import cache_folder

ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?((?:/[\w.=+-]+)*)/?")

EACH_LAYER = ["*/*", "layer*.sae.pt"]
"""Files that are not downloaded with a whole repository: those in folders, and of each layer."""


def is_on_hub(address: object) -> bool:
    """Return whether an address is one of the hub."""
    return str(address).startswith("hf://")


def downloaded(address: str) -> Path:
    """Download the files of an address, unless they are in the cache, and return their place.

    Args:
        address: `hf://owner/name`, then `@` and a branch, tag or commit unless it is the main
            branch, then the folder or the file in the repository.

    Raises:
        StoreError: the address is none, or its files cannot be downloaded.
    """
    match = ADDRESS.fullmatch(address)
    if match is None or {"..", "."} & set(address.split("/")):
        raise StoreError(
            f"{address} is no address on the hub, such as"
            " hf://google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
        )
    from huggingface_hub import snapshot_download

    name, revision, within = match[1], match[2], match[3].strip("/")
    place = cache_folder() / "hub" / name / (revision or "main")
    chosen = [within, f"{within}/*"] if within else None
    left_out = None if within else EACH_LAYER
    try:
        snapshot_download(
            name,
            revision=revision,
            allow_patterns=chosen,
            ignore_patterns=left_out,
            local_dir=place,
        )
    except (OSError, RuntimeError, ValueError) as error:  # what the hub client raises
        raise StoreError(f"{address} cannot be downloaded: {first_line(error)}") from None
    if not (place / within).exists():
        raise StoreError(f"{address}: the repository {name} has no {within or 'files'}")
    return place / within
