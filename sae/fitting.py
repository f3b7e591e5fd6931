"""Which rows an autoencoder is for, and whether a run has them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from extraction.errors import StoreError
from extraction.reading.dataset import ActivationDataset
from extraction.run.identity import read_identity
from extraction.setting_names import setting
from extraction.storage import open_storage
from inference.errors import InputError
from sae.autoencoder import SparseAutoencoder
from sae.files.hook_names import canonical_name


def names_of(addresses: Sequence[str]) -> list[str]:
    """Return a short name of each autoencoder: the last part of its address, if that is unique.

    Raises:
        InputError: an address is there twice.
    """
    short = [address.rstrip("/").rpartition("/")[2] or address for address in addresses]
    if len(set(addresses)) < len(addresses):
        (address, _), *_ = Counter(addresses).most_common(1)
        raise InputError(f"{address} is given twice")
    times = Counter(short)
    return [
        name if times[name] == 1 else address
        for name, address in zip(short, addresses, strict=True)
    ]


def hook_point_of(sae: SparseAutoencoder, address: str, given: str | None) -> str:
    """Return the hook point whose rows an autoencoder encodes.

    Args:
        sae: the autoencoder.
        address: its address, for the message.
        given: the setting `hook_point`; None: what the metadata say.

    Raises:
        InputError: neither says.
    """
    hook_point = named_hook_point(sae) if given is None else canonical_name(given) or given
    if hook_point is None:
        raise InputError(
            f"{address} does not say which hook point it is of; give {setting('hook_point')}"
        )
    return hook_point


def named_hook_point(sae: SparseAutoencoder, ending: str = "") -> str | None:
    """Return the hook point that an autoencoder's metadata name; None if they name none.

    Args:
        sae: the autoencoder.
        ending: `_out` for the hook point that a transcoder reconstructs.
    """
    for key in (f"hook_point{ending}", f"hook_name{ending}"):
        name = sae.metadata.get(key)
        if isinstance(name, str):
            return canonical_name(name) or name
    return None


def check_width(
    address: str, width: int, hook: str, dataset: ActivationDataset, stored: Mapping[str, str]
) -> None:
    """Refuse an autoencoder whose width is not that of a hook point's rows.

    Args:
        address: address of the autoencoder.
        width: its width.
        hook: the hook point.
        dataset: rows of the hook point.
        stored: names of hook points in the run.

    Raises:
        StoreError: the widths differ.
    """
    there = dataset.info.width[stored[hook]]
    if there != width:
        raise StoreError(
            f"{address} is for rows of width {width}, and {hook} of"
            f" {dataset.info.model_name!r} has rows of width {there}"
        )


def check_weights(address: str, sae: SparseAutoencoder, activations_dir: str) -> None:
    """Refuse an autoencoder of another model's rows, where it and the run say of which.

    Args:
        address: address of the autoencoder.
        sae: the autoencoder.
        activations_dir: address of the run.

    Raises:
        StoreError: the digests of the weights differ.
    """
    identity = read_identity(open_storage(activations_dir, writable=False))
    there = None if identity is None else identity.fingerprint.get("weights_sha256")
    own = sae.metadata.get("weights_sha256")
    if isinstance(own, str) and isinstance(there, str) and own != there:
        assert identity is not None
        raise StoreError(
            f"{address} was trained on rows of {sae.metadata.get('model_name')!r} with weights"
            f" {own:.12}, and {activations_dir} has rows of {identity.model_name!r} with weights"
            f" {there:.12}; take an autoencoder of that model"
        )
