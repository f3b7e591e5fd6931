"""`python -m sae latents`: an autoencoder and a run in, what each latent stands for out."""

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.interruption import stop_flag
from extraction.progress import Progress, silent
from extraction.reading.dataset import ActivationDataset
from extraction.reading.row_filters import RowFilters
from extraction.run.vocabulary import text_of
from extraction.setting_names import setting
from extraction.storage import Storage, open_storage
from inference.errors import InputError
from sae.autoencoder import SparseAutoencoder
from sae.files import load
from sae.fitting import check_weights, check_width, hook_point_of
from sae.latents.contexts import Contexts, contexts_of, known_ids
from sae.latents.examples import Examples, examples_of
from sae.latents.latent_pass import SAMPLE_OF_RANGES, LatentPass
from sae.latents.lens import LogitLens, Neighbours, logit_lens, neighbours_of
from sae.latents.saved_pass import load_pass, save_pass
from sae.latents.settings import LatentsSettings
from sae.scores.of_rows import encoded

SAVE_SECONDS = 60


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """What is known of each latent.

    Attributes:
        settings: the settings.
        sae: the autoencoder.
        hook_point: name of its hook point.
        model_name: name of the run's model.
        found: sums and kept rows of the pass.
        examples: rows that are shown.
        contexts: tokens around them.
        texts: text of the token ids of the contexts; without those that the run does not record.
        neighbours: latents of similar decoder rows.
        lens: the logit lens; None without a model.
    """

    settings: LatentsSettings
    sae: SparseAutoencoder
    hook_point: str
    model_name: str
    found: LatentPass
    examples: Examples
    contexts: Contexts
    texts: Mapping[int, str]
    neighbours: Neighbours
    lens: LogitLens | None


def describe(settings: LatentsSettings, progress: Progress = silent) -> Latents | None:
    """Return what is known of each latent; None while other parts are not read.

    Args:
        settings: autoencoder, rows, and what is shown.
        progress: told about rows.

    Raises:
        StoreError: there is no such autoencoder or run, or they do not fit each other.
        InputError: there is no such latent, or the model does not fit.
        ModelError: the model cannot be used.
        Interrupted: the command was stopped; the pass is saved.
    """
    output = open_storage(settings.output_dir)  # refuses what it is before anything is computed
    sae = load(settings.sae)
    hook = hook_point_of(sae, settings.sae, settings.hook_point)
    beyond = [number for number in settings.latents or () if number >= sae.d_sae]
    if beyond:
        raise InputError(
            f"{setting('latents', beyond[0])}: {settings.sae} has latents 0 to {sae.d_sae - 1}"
        )
    dataset = ActivationDataset(settings.activations_dir, [hook])
    if not len(dataset):
        raise StoreError(f"{settings.activations_dir} has no rows")
    check_width(settings.sae, sae.d_in, hook, dataset, {hook: dataset.hook_points[0]})
    check_weights(settings.sae, sae, settings.activations_dir)
    new = _empty_pass(sae, settings)
    lens = logit_lens(settings, sae, new.numbers)
    about = _about(settings, sae, hook, dataset)
    found = _all_parts(
        _read(new, sae, dataset, output, settings, about, progress),
        sae,
        dataset,
        output,
        settings,
        about,
    )
    if found is None:
        return None
    if not found.rows:
        raise StoreError(f"{settings.activations_dir} has no finite rows that the filters leave")
    examples = examples_of(found, settings.ranges, settings.rows_per_range)
    run = open_storage(settings.activations_dir, writable=False)
    contexts = contexts_of(examples, found.numbers, sae, dataset, run, settings.context, progress)
    vocabulary = dataset.keys(slice(0, 0)).vocabulary or {}
    texts = {
        int(token): text_of(vocabulary[int(token)])
        for token in known_ids(contexts)
        if int(token) in vocabulary
    }
    return Latents(
        settings=settings,
        sae=sae,
        hook_point=hook,
        model_name=dataset.info.model_name,
        found=found,
        examples=examples,
        contexts=contexts,
        texts=texts,
        neighbours=neighbours_of(sae, found.numbers, settings.nearest),
        lens=lens,
    )


def _empty_pass(sae: SparseAutoencoder, settings: LatentsSettings) -> LatentPass:
    return LatentPass(
        settings.latents,
        sae.d_sae,
        top=settings.top,
        sampled=SAMPLE_OF_RANGES * settings.ranges * settings.rows_per_range,
        seed=settings.random_seed,
    )


def _about(
    settings: LatentsSettings, sae: SparseAutoencoder, hook: str, dataset: ActivationDataset
) -> dict[str, Any]:
    """Return what must be the same for a pass to go on, and in all parts."""
    digest = hashlib.sha256()
    for name, array in sae.arrays().items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update(repr((sae.architecture, sae.k, sae.apply_b_dec_to_input)).encode())
    digest.update(repr(sae.rescale_acts_by_decoder_norm).encode())
    deciding = {
        entry.name: getattr(settings, entry.name)
        for entry in dataclasses.fields(settings)
        if entry.metadata["decides"] == "rows"
    }
    run = [dataset.info.run_id, len(dataset)]
    own = {"sae": digest.hexdigest(), "activations_dir": run, "hook_point": hook}
    return {**deciding, **own, "parts": settings.parts[1]}


def _read(
    found: LatentPass,
    sae: SparseAutoencoder,
    dataset: ActivationDataset,
    output: Storage,
    settings: LatentsSettings,
    about: Mapping[str, Any],
    progress: Progress,
) -> LatentPass:
    """Read this part of the rows into a pass, from where a saved one stands."""
    part, total = settings.parts, len(dataset)
    begin = load_pass(found, output, part, about) if settings.resume else None
    next_row = begin or 0
    latest = time.monotonic()
    with stop_flag() as stop:
        for file in dataset.kept_files(RowFilters(**settings.filters), part=part, start=next_row):
            if next_row <= file.first:  # else the command before counted them
                found.left_out.update(file.left_out)
            first = int(np.searchsorted(file.numbers, next_row))
            numbers, (rows,) = file.numbers[first:], file.rows.values()
            for some, latents, finite in encoded(sae, rows[first:]):
                found.add(numbers[some], latents, finite)
                next_row = int(numbers[some][-1]) + 1
                if stop.is_set() or time.monotonic() - latest > SAVE_SECONDS:
                    save_pass(found, next_row, output, part, about)
                    latest = time.monotonic()
                stop.check()
                progress("rows read", next_row, total)
            next_row = file.end
    found.settle()
    save_pass(found, total, output, part, about)
    return found


def _all_parts(
    found: LatentPass,
    sae: SparseAutoencoder,
    dataset: ActivationDataset,
    output: Storage,
    settings: LatentsSettings,
    about: Mapping[str, Any],
) -> LatentPass | None:
    """Return the pass over all rows; None if another part is not finished."""
    number, parts = settings.parts
    if parts == 1:
        return found
    whole = _empty_pass(sae, settings)
    for other in range(parts):  # always in this order, so the results are the same
        one = found
        if other != number:
            one = _empty_pass(sae, settings)
            if load_pass(one, output, (other, parts), about) != len(dataset):
                return None
        whole.merge(one)
    return whole
