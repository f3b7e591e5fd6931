"""`python -m sae vector`: decoder rows of latents, and differences of the means of two groups."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from extraction.errors import StoreError
from extraction.progress import Progress, silent
from extraction.reading.dataset import ActivationDataset
from extraction.run.identity import read_identity
from extraction.run.rows import RowBlock
from extraction.setting_names import setting
from extraction.storage import open_storage
from inference.errors import InputError
from sae.autoencoder import SparseAutoencoder
from sae.files import load
from sae.files.hook_names import canonical_name
from sae.fitting import hook_point_of, named_hook_point
from sae.scores.labels import labels_of
from sae.scores.row_groups import RowsOfCells
from sae.vectors.files import Vector, save_vectors
from sae.vectors.settings import VectorSettings


def decoder_vectors(
    sae: SparseAutoencoder, latents: Sequence[int], *, hook_point: str, address: str = ""
) -> list[Vector]:
    """Return decoder rows as directions, named `latent_3801`.

    Args:
        sae: the autoencoder.
        latents: numbers of latents, from 0.
        hook_point: hook point of the reconstructions.
        address: where the autoencoder was read, for the metadata.

    Raises:
        StoreError: there is no such latent, or its row is 0.
    """
    found = []
    for latent in latents:
        if not 0 <= latent < sae.d_sae:
            raise StoreError(
                f"there is no latent {latent}; {address or 'the autoencoder'} has 0 to"
                f" {sae.d_sae - 1}"
            )
        found.append(
            Vector(
                name=f"latent_{latent}",
                values=sae.W_dec[latent].astype(np.float32),
                hook_point=hook_point,
                kind="decoder_row",
                model_name=_text(sae.metadata.get("model_name")),
                weights_sha256=_text(sae.metadata.get("weights_sha256")),
                details={"sae": address, "latent": int(latent)},
            )
        )
    return found


def make_vectors(settings: VectorSettings, progress: Progress = silent) -> list[Vector]:
    """Return the directions that settings ask for, and write them.

    Args:
        settings: directions and file.
        progress: told about rows.

    Raises:
        StoreError: there is no such autoencoder, latent or run.
        InputError: the labels do not divide the rows into two groups.
    """
    found, hook_point = [], settings.hook_point
    if settings.sae is not None:
        assert settings.latents is not None
        sae = load(settings.sae)
        own = named_hook_point(sae, "_out") or hook_point_of(sae, settings.sae, hook_point)
        found += decoder_vectors(sae, settings.latents, hook_point=own, address=settings.sae)
        hook_point = hook_point or own
    if settings.activations_dir is not None:
        found.append(_mean_difference(settings, hook_point, progress))
    if settings.unit_norm:
        found = [_of_norm_1(vector) for vector in found]
    save_vectors(found, settings.output_file)
    return found


def _mean_difference(
    settings: VectorSettings, hook_point: str | None, progress: Progress
) -> Vector:
    """Return the mean row of the first group less that of the second, float64 until the end."""
    assert settings.activations_dir is not None
    addresses = [settings.activations_dir, settings.second_activations_dir]
    if addresses[0] == addresses[1]:
        raise InputError(
            f"{setting('second_activations_dir')} is {setting('activations_dir')} too; two groups"
            f" of one run need {setting('label_field')}"
        )
    if hook_point is None:
        hook_point = ActivationDataset(settings.activations_dir).hook_points[0]
    hook_point = canonical_name(hook_point) or hook_point
    datasets = [
        (group, address, ActivationDataset(address, [hook_point]))
        for group, address in enumerate(addresses)
        if address is not None
    ]
    weights = _same_model(datasets)
    groups = [_Sum(), _Sum()]
    for group, address, dataset in datasets:
        _add(groups, group, address, dataset, settings, progress)
    names = settings.group_names
    for name, found in zip(names, groups, strict=True):
        if not found.rows:
            raise InputError(f"group {name} has no rows at {hook_point}")
    first, second = (found.total / found.rows for found in groups)
    return Vector(
        name=f"{names[0]}_minus_{names[1]}",
        values=(first - second).astype(np.float32),
        hook_point=hook_point,
        kind="mean_difference",
        model_name=datasets[0][2].info.model_name or None,
        weights_sha256=weights,
        details={
            "activations_dirs": [address for _, address, _ in datasets],
            "label_field": settings.label_field,
            "groups": list(names),
            "rows": [found.rows for found in groups],
            "rows_not_finite": sum(found.not_finite for found in groups),
            **settings.filters,
        },
    )


@dataclasses.dataclass
class _Sum:
    """The sum of a group's rows, float64 `[d]`."""

    total: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1))
    rows: int = 0
    not_finite: int = 0


def _add(
    groups: Sequence[_Sum],
    group: int,
    address: str,
    dataset: ActivationDataset,
    settings: VectorSettings,
    progress: Progress,
) -> None:
    """Add a run's rows to the sums of their groups."""
    labels = None if settings.label_field is None else labels_of(settings, address, group)

    def cell_of(keys: RowBlock) -> np.ndarray:
        if labels is None:
            return np.full(len(keys), group)
        return np.array([-1 if label is None else label[0] for label in labels.of(keys)])

    for rows, cell in RowsOfCells(dataset, cell_of, settings.filters, progress):
        (values,) = (of_hook.astype(np.float64) for of_hook in rows.values())
        finite = np.isfinite(values).all(1)
        for number, found in enumerate(groups):
            of_group = values[finite & (cell == number)]
            found.total = found.total + of_group.sum(0)
            found.rows += len(of_group)
            found.not_finite += int((~finite & (cell == number)).sum())


def _same_model(datasets: Sequence[tuple[int, str, ActivationDataset]]) -> str | None:
    """Return the digest of the weights of the runs' model; None if no run says it.

    Raises:
        StoreError: the runs are of models with other weights, or their rows differ in width.
    """
    digests, widths = {}, {}
    for _, address, dataset in datasets:
        identity = read_identity(open_storage(address, writable=False))
        digest = None if identity is None else identity.fingerprint.get("weights_sha256")
        if isinstance(digest, str):
            digests[address] = digest
        (widths[address],) = dataset.info.width.values()
    for what, found in (("weights", digests), ("width", widths)):
        if len(set(found.values())) > 1:
            told = " and ".join(f"{address} ({value!s:.12})" for address, value in found.items())
            raise StoreError(f"the rows of two groups differ in {what}: {told}")
    return next(iter(digests.values()), None)


def _of_norm_1(vector: Vector) -> Vector:
    values = (vector.values.astype(np.float64) / vector.norm).astype(np.float32)
    details = {**vector.details, "norm_before": vector.norm}
    return dataclasses.replace(vector, values=values, details=details)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
