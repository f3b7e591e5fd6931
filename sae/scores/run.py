"""`python -m sae score`: autoencoders and two groups of rows in, figures of latents out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from extraction.errors import StoreError
from extraction.progress import Progress, silent
from extraction.reading.dataset import ActivationDataset
from extraction.run.rows import RowBlock
from extraction.setting_names import setting
from extraction.storage import open_storage
from inference.errors import InputError
from sae.files import load
from sae.fitting import check_weights, check_width, hook_point_of, names_of
from sae.scores.choice import Choice, HalfFigures, chosen
from sae.scores.labels import NO_CATEGORY, Labels, labels_of, test_halves
from sae.scores.latent_sums import LatentSums
from sae.scores.parts import ReadSums, all_parts, save_part
from sae.scores.row_groups import CellSums, Scored, read_cells
from sae.scores.settings import ScoreSettings

PROCESS_SETTINGS = ("output_dir", "part")
"""Settings in which the processes that share an output may differ."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScoredLatents:
    """An autoencoder and the figures of its latents.

    Attributes:
        scored: the autoencoder.
        selection: figures of the tasks that latents were chosen on, first group against second.
        test: figures of the other tasks; None if all were for the choice.
        background: `[d_sae]`, frequencies in the background's rows; None without one.
        choices: chosen latents of each group.
        not_finite: rows that were left out, as they or their latents are not finite.
    """

    scored: Scored
    selection: HalfFigures
    test: HalfFigures | None
    background: np.ndarray | None
    choices: Sequence[Choice]
    not_finite: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """The results of a command.

    Attributes:
        settings: the settings.
        categories: names of the categories.
        left_out: number of rows that each filter left out, by the run's address.
        unlabelled: samples that lack a label, by the run's address.
        autoencoders: the autoencoders, in their order.
    """

    settings: ScoreSettings
    categories: Sequence[str]
    left_out: Mapping[str, Mapping[str, int]]
    unlabelled: Mapping[str, int]
    autoencoders: Sequence[ScoredLatents]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """A run whose rows are read."""

    address: str
    dataset: ActivationDataset
    labels: Labels | None
    group: int


def score(settings: ScoreSettings, progress: Progress = silent) -> Scores | None:
    """Return the figures of latents in two groups of rows; None while other parts are not read.

    Args:
        settings: autoencoders, rows and groups.
        progress: told about rows.

    Raises:
        StoreError: there is no such autoencoder or run, or they do not fit each other.
        InputError: the labels do not divide the rows into two groups.
    """
    if settings.output_dir is not None:
        open_storage(settings.output_dir)  # refuses what it is before anything is computed
    scored = [
        _loaded(name, address, settings.hook_point)
        for name, address in zip(names_of(settings.saes), settings.saes, strict=True)
    ]
    runs = _runs(settings, scored)
    background = None
    if settings.background_dir is not None:
        background = _opened(settings.background_dir, scored)
    categories = sorted({name for run in runs for name in _categories(run)})
    sums: ReadSums | None = _read(runs, background, scored, categories, settings, progress)
    if settings.part is not None:
        assert settings.output_dir is not None
        storage, about = open_storage(settings.output_dir), _about(settings, runs, categories)
        save_part(sums, storage, settings.parts, about)
        sums = all_parts(sums, storage, settings.parts, about)
        if sums is None:
            return None
    _refuse_empty(next(iter(sums.cells.values())), categories, settings)
    if not all(one.rows for one in sums.background.values()):
        raise StoreError(f"{settings.background_dir} has no rows that the filters leave")
    frequencies = {name: one.frequency for name, one in sums.background.items()}
    return Scores(
        settings=settings,
        categories=categories,
        left_out=sums.left_out,
        unlabelled={run.address: run.labels.unlabelled for run in runs if run.labels},
        autoencoders=[
            _scored_latents(
                one,
                sums.cells[one.name],
                categories,
                frequencies.get(one.name),
                sums.not_finite[one.name],
                settings,
            )
            for one in scored
        ],
    )


def _loaded(name: str, address: str, hook_point: str | None) -> Scored:
    sae = load(address)
    hook = hook_point_of(sae, address, hook_point)
    return Scored(name=name, address=address, sae=sae, hook_point=hook)


def _opened(address: str, scored: Sequence[Scored]) -> ActivationDataset:
    """Return the rows of a run, which fits all autoencoders."""
    hooks = sorted({one.hook_point for one in scored})
    dataset = ActivationDataset(address, hooks)
    stored = dict(zip(hooks, dataset.hook_points, strict=True))
    for one in scored:
        check_width(one.address, one.sae.d_in, one.hook_point, dataset, stored)
        check_weights(one.address, one.sae, address)
    return dataset


def _runs(settings: ScoreSettings, scored: Sequence[Scored]) -> list[_Run]:
    """Return the runs of both groups, with their labels."""
    addresses = [settings.activations_dir, settings.second_activations_dir]
    if addresses[0] == addresses[1]:
        raise InputError(
            f"{setting('second_activations_dir')} is {setting('activations_dir')} too; two groups"
            f" of one run need {setting('label_field')}"
        )
    found = []
    for group, address in enumerate(addresses):
        if address is None:
            continue
        dataset, labels = _opened(address, scored), None
        if settings.label_field is not None or settings.category_field is not None:
            labels = labels_of(settings, address, group, settings.category_field)
        found.append(_Run(address=address, dataset=dataset, labels=labels, group=group))
    return found


def _categories(run: _Run) -> Sequence[str]:
    return [NO_CATEGORY] if run.labels is None else run.labels.categories


def _read(
    runs: Sequence[_Run],
    background: ActivationDataset | None,
    scored: Sequence[Scored],
    categories: Sequence[str],
    settings: ScoreSettings,
    progress: Progress,
) -> ReadSums:
    """Return the sums of this part of the rows."""
    read = {run.address: _cells(run, scored, categories, settings, progress) for run in runs}
    of_background: Mapping[str, LatentSums] = {}
    if background is not None:
        found = read_cells(
            background,
            scored,
            lambda keys: np.zeros(len(keys), int),
            1,
            settings.filters,
            progress,
            settings.parts,
        )
        of_background = {name: sums for name, (sums,) in found.sums.items()}
    return ReadSums(
        cells={one.name: _together([r.sums[one.name] for r in read.values()]) for one in scored},
        background=of_background,
        left_out={address: found.left_out for address, found in read.items()},
        not_finite={
            one.name: sum(found.not_finite[one.name] for found in read.values()) for one in scored
        },
    )


def _about(
    settings: ScoreSettings, runs: Sequence[_Run], categories: Sequence[str]
) -> dict[str, Any]:
    """Return what must be the same in all parts."""
    own = {name: value for name, value in vars(settings).items() if name not in PROCESS_SETTINGS}
    rows = {run.address: [run.dataset.info.run_id, len(run.dataset)] for run in runs}
    return {**own, "runs": rows, "categories": list(categories)}


def _cells(
    run: _Run,
    scored: Sequence[Scored],
    categories: Sequence[str],
    settings: ScoreSettings,
    progress: Progress,
) -> CellSums:
    """Return a run's sums by half, category and group: `4 * category + 2 * half + group`."""
    number = {name: place for place, name in enumerate(categories)}
    only = None if run.labels else (run.group, NO_CATEGORY)

    def cell_of(keys: RowBlock) -> np.ndarray:
        labels = [only] * len(keys) if run.labels is None else run.labels.of(keys)
        halves = test_halves(keys, settings.random_seed, settings.test_fraction)
        return np.array(
            [
                -1 if label is None else 4 * number[label[1]] + 2 * int(half) + label[0]
                for label, half in zip(labels, halves, strict=True)
            ],
            np.int64,
        )

    cells = 4 * len(categories)
    return read_cells(
        run.dataset, scored, cell_of, cells, settings.filters, progress, settings.parts
    )


def _together(parts: Sequence[Sequence[LatentSums]]) -> list[LatentSums]:
    """Return the sums of each cell over all runs."""
    first, *others = parts
    total = list(first)
    for other in others:
        total = [a + b for a, b in zip(total, other, strict=True)]
    return total


def _refuse_empty(
    cells: Sequence[LatentSums], categories: Sequence[str], settings: ScoreSettings
) -> None:
    """Refuse groups without rows.

    Raises:
        InputError: a group has no row, in a category or in a half.
    """
    halves = ("choice",) if not settings.test_fraction else ("choice", "test")
    for place, category in enumerate(categories):
        of_category = "" if category == NO_CATEGORY else f" of category {category}"
        for group, name in enumerate(settings.group_names):
            rows = [cells[4 * place + 2 * half + group].rows for half in range(2)]
            if not sum(rows):
                raise InputError(f"group {name} has no rows{of_category}; give labels of others")
            for half, count in zip(halves, rows, strict=False):
                if not count:
                    raise InputError(
                        f"group {name} has {sum(rows):,} rows{of_category}, and none of them for"
                        f" the {half}; give another {setting('random_seed')} or"
                        f" {setting('test_fraction')}"
                    )


def _scored_latents(
    scored: Scored,
    cells: Sequence[LatentSums],
    categories: Sequence[str],
    background: np.ndarray | None,
    not_finite: int,
    settings: ScoreSettings,
) -> ScoredLatents:
    def half(number: int) -> HalfFigures:
        places = [4 * place + 2 * number for place in range(len(categories))]
        return HalfFigures.of(categories, [(cells[at], cells[at + 1]) for at in places])

    selection = half(0)
    test = half(1) if settings.test_fraction else None
    allowed = np.ones(scored.sae.d_sae, bool)
    if background is not None:
        allowed = background <= settings.background_frequency
    sides = [(selection, test), (selection.reversed(), test and test.reversed())]
    return ScoredLatents(
        scored=scored,
        selection=selection,
        test=test,
        background=background,
        choices=[
            chosen(name, *side, metric=settings.metric, top=settings.top, allowed=allowed)
            for name, side in zip(settings.group_names, sides, strict=True)
        ],
        not_finite=not_finite,
    )
