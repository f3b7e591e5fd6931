"""The figures of latents as files and as a table.

`scores.json` holds the settings and the chosen latents. `NAME/CATEGORY_L_LAYER.json` holds all
active latents of an autoencoder in one category, by their scores for each group:

    {"known": {"0": {"layer": 9, "latent_idx": 3801, "score": 0.71, "freq_acts_known": 0.75,
                     "freq_acts_unknown": 0.04, "mean_features_acts": 12.5}, "1": ...},
     "unknown": {...}}
"""

import json
import math
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from extraction.printable import printable
from extraction.report.markup import number
from extraction.storage import open_storage
from extraction.version import __version__
from qwen_hooks.hook_point_table import entries
from sae.files import disk_errors_told
from sae.scores.choice import Choice, HalfFigures
from sae.scores.figures import LatentFigures
from sae.scores.run import ScoredLatents, Scores
from sae.scores.settings import Metric

SCORES_FILE = "scores.json"

SHOWN = (
    "frequency_first", "frequency_second", "frequency_difference", "relative_difference",
    "mean_first", "mean_second", "mean_difference", "welch_t", "p", "auroc", "auroc_error",
)  # fmt: skip
"""Figures of a latent in scores.json, attributes of `LatentFigures`."""

COLUMNS = ("frequency_first", "frequency_second", "mean_difference", "welch_t", "auroc")
"""Figures in the printed table."""


def as_json(scores: Scores) -> dict[str, Any]:
    """Return the settings and the chosen latents as JSON values."""
    settings = scores.settings
    return {
        "software": f"qwen-activation-extraction {__version__}",
        "groups": list(settings.group_names),
        "categories": list(scores.categories),
        **{
            name: getattr(settings, name)
            for name in (
                "activations_dir", "second_activations_dir", "background_dir", "labels_file",
                "label_field", "category_field", "metric", "background_frequency", "test_fraction",
                "random_seed",
            )
        },
        **settings.filters,
        "rows_left_out": scores.left_out,
        "samples_without_label": scores.unlabelled,
        "autoencoders": [_autoencoder(one, settings.metric) for one in scores.autoencoders],
    }  # fmt: skip


def _autoencoder(one: ScoredLatents, metric: Metric) -> dict[str, Any]:
    halves = {"selection": one.selection, "test": one.test}
    return {
        "name": one.scored.name,
        "address": one.scored.address,
        "hook_point": one.scored.hook_point,
        "d_sae": one.scored.sae.d_sae,
        "rows_not_finite": one.not_finite,
        "rows": {
            half: {category: list(f.rows) for category, f in found.categories.items()}
            for half, found in halves.items()
            if found is not None
        },
        "latents_in_background": None
        if one.background is None
        else int((one.background > 0).sum()),
        "latents": {
            choice.group: [
                _latent(one, choice, place, metric) for place in range(len(choice.latents))
            ]
            for choice in one.choices
        },
    }


def _latent(one: ScoredLatents, choice: Choice, place: int, metric: Metric) -> dict[str, Any]:
    """Return the figures of one chosen latent; `first` is the group that it was chosen for."""
    latent = int(choice.latents[place])
    told: dict[str, Any] = {"latent": latent}
    if one.background is not None:
        told["background_frequency"] = _value(one.background[latent])
    told["selection"] = _half(choice.selection, latent, metric)
    told["selection"]["q"] = _value(choice.selection.pooled.q[latent])
    if choice.test is not None and choice.test_q is not None:
        told["test"] = _half(choice.test, latent, metric)
        told["test"]["q"] = _value(choice.test_q[place])
    return told


def _half(half: HalfFigures, latent: int, metric: Metric) -> dict[str, Any]:
    by_category = {
        name: _value(getattr(figures, metric)[latent]) for name, figures in half.categories.items()
    }
    return {
        "score": _value(half.scores(metric)[latent]),
        "score_by_category": by_category,
        **{name: _value(getattr(half.pooled, name)[latent]) for name in SHOWN},
    }


def _value(value: Any) -> float | None:
    """Return a number of JSON; None for one that is not finite."""
    return float(value) if math.isfinite(value) else None


def layer_file(
    figures: LatentFigures, groups: Sequence[str], layer: int | None, metric: str
) -> str:
    """Return the JSON text of all active latents of an autoencoder in one category.

    Args:
        figures: figures of the category, first group against second.
        groups: names of both groups.
        layer: number of the hook point's block; None before and after the blocks.
        metric: figure that is the score.
    """
    active = np.flatnonzero((figures.frequency_first > 0) | (figures.frequency_second > 0))
    document = {}
    for name, side in zip(groups, (figures, figures.reversed()), strict=True):
        scores = np.nan_to_num(getattr(side, metric)[active], posinf=np.inf, neginf=-np.inf)
        order = active[np.argsort(-scores, kind="stable")]
        document[name] = {
            str(place): {
                "layer": layer,
                "latent_idx": latent,
                "score": _value(getattr(side, metric)[latent]),
                f"freq_acts_{groups[0]}": _value(figures.frequency_first[latent]),
                f"freq_acts_{groups[1]}": _value(figures.frequency_second[latent]),
                "mean_features_acts": _value(side.mean_first[latent]),
            }
            for place, latent in enumerate(order.tolist())
        }
    return json.dumps(document, indent=1, allow_nan=False)


def write(scores: Scores) -> list[str]:
    """Write `scores.json` and the files of all latents, and return their addresses.

    Raises:
        StoreError: the output cannot be used.
        StorageUnavailableError: the disk is full, or fails.
    """
    settings = scores.settings
    assert settings.output_dir is not None
    storage = open_storage(settings.output_dir)
    names = []
    for one in scores.autoencoders:
        _, layer = entries(one.scored.hook_point)
        place = one.scored.hook_point if layer is None else f"L_{layer}"
        folder = urllib.parse.quote(one.scored.name, safe=" ")
        for category, figures in one.selection.categories.items():
            name = f"{folder}/{urllib.parse.quote(category, safe=' ')}_{place}.json"
            text = layer_file(figures, settings.group_names, layer, settings.metric)
            with disk_errors_told(storage, "written"):
                storage.replace(name, text.encode())
            names.append(name)
    text = json.dumps(as_json(scores), indent=1, allow_nan=False)
    with disk_errors_told(storage, "written"):
        storage.replace(SCORES_FILE, text.encode())
    return [f"{settings.output_dir}/{name}" for name in (*names, SCORES_FILE)]


def text_table(scores: Scores) -> str:
    """Return the chosen latents, one line for each; figures are of the test, if there is one."""
    return "\n".join(line for one in scores.autoencoders for line in _lines(scores, one))


def _lines(scores: Scores, one: ScoredLatents) -> Iterator[str]:
    tested = "test" if one.test is not None else "selection"
    for choice in one.choices:
        half = choice.selection if choice.test is None else choice.test
        rows = " and ".join(f"{count:,}" for count in half.pooled.rows)
        (other,) = (name for name in scores.settings.group_names if name != choice.group)
        yield printable(
            f"{one.scored.name}: latents of {choice.group} against {other}, on {rows} rows"
        )
        cells = [["latent", "score", f"score ({tested})", *COLUMNS, "q"]]
        score = choice.selection.scores(scores.settings.metric)
        again = half.scores(scores.settings.metric)
        q = choice.selection.pooled.q[choice.latents] if choice.test_q is None else choice.test_q
        for place, latent in enumerate(choice.latents.tolist()):
            figures = [getattr(half.pooled, name)[latent] for name in COLUMNS]
            values = (score[latent], again[latent], *figures, q[place])
            cells.append([f"{latent:,}", *(number(_value(value)) for value in values)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            yield "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
