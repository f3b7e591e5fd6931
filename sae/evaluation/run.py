"""`python -m sae evaluate`: autoencoders, rows and texts in, figures and a page out."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from extraction import documents
from extraction.errors import StoreError
from extraction.interruption import stop_flag
from extraction.progress import Progress, silent
from extraction.reading.dataset import ActivationDataset
from extraction.reading.row_filters import limits_above
from extraction.run.statistics import RowStatistics, StatisticsSum
from extraction.storage import open_storage
from extraction.storage.bounded import get_at_most
from extraction.version import __version__
from inference.errors import InputError
from sae.autoencoder import SparseAutoencoder
from sae.evaluation.rows import RowEvaluation, RowEvaluator
from sae.evaluation.settings import EvaluateSettings
from sae.files import load
from sae.fitting import check_weights, check_width, hook_point_of, named_hook_point, names_of

if TYPE_CHECKING:
    from sae.evaluation.model import ModelFigures

BATCH_ROWS = 4096
METRICS_FILE, MOST_METRICS_BYTES = "metrics.jsonl", 1 << 28
EVALUATION_FILE, PAGE_FILE = "evaluation.json", "training.html"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """An autoencoder and its figures.

    Attributes:
        name: name in tables: the last part of its address, or all of it if that is not unique.
        address: where it was read.
        sae: the autoencoder.
        hook_point: name of its hook point.
        target: name of the hook point that a transcoder reconstructs; None for others.
        rows: figures of rows.
        model: figures in the model; None without one, and for a transcoder.
        metrics: lines of the training's `metrics.jsonl`; empty without one.
        trained_on: whether these rows are those of its training.
    """

    name: str
    address: str
    sae: SparseAutoencoder
    hook_point: str
    target: str | None
    rows: RowEvaluation
    model: "ModelFigures | None"
    metrics: Sequence[Mapping[str, Any]]
    trained_on: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """All figures of a command.

    Attributes:
        settings: the settings.
        run_id: id of the run with the rows; None if its folder does not say.
        left_out: number of rows that each filter left out.
        autoencoders: the autoencoders, in their order.
    """

    settings: EvaluateSettings
    run_id: str | None
    left_out: Mapping[str, int]
    autoencoders: Sequence[Evaluated]

    def as_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "software": f"qwen-activation-extraction {__version__}",
            "activations_dir": self.settings.activations_dir,
            "run_id": self.run_id,
            "rows_left_out": dict(self.left_out),
            "max_norm_multiple": self.settings.max_norm_multiple,
            "model_path": self.settings.model_path,
            "texts": self.settings.inputs or None,
            "autoencoders": [
                {
                    "name": one.name,
                    "address": one.address,
                    "architecture": one.sae.architecture,
                    "d_sae": one.sae.d_sae,
                    "k": one.sae.k,
                    "hook_point": one.hook_point,
                    "target_hook_point": one.target,
                    "trained_on_these_rows": one.trained_on,
                    "rows": one.rows.as_json(),
                    "model": None if one.model is None else dataclasses.asdict(one.model),
                }
                for one in self.autoencoders
            ],
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Candidate:
    """An autoencoder before it is evaluated; `target` is that of `Evaluated`."""

    name: str
    address: str
    sae: SparseAutoencoder
    hook_point: str
    target: str | None

    @property
    def hook_points(self) -> list[str]:
        return [self.hook_point, *([] if self.target is None else [self.target])]


def evaluate(settings: EvaluateSettings, progress: Progress = silent) -> Evaluation:
    """Return the figures of autoencoders on rows and, with a model and texts, in the model.

    Args:
        settings: autoencoders, rows, and perhaps a model and texts.
        progress: told about rows and texts.

    Raises:
        StoreError: there is no such autoencoder or run, or they do not fit each other.
        InputError: the texts cannot be used.
        ModelError: the model cannot be used.
    """
    if settings.output_dir is not None:
        open_storage(settings.output_dir)  # refuses what it is before anything is computed
    candidates = [
        _candidate(name, address, settings)
        for name, address in zip(names_of(settings.saes), settings.saes, strict=True)
    ]
    hooks = sorted({hook for one in candidates for hook in one.hook_points})
    dataset = ActivationDataset(settings.activations_dir, hooks)
    stored = dict(zip(hooks, dataset.hook_points, strict=True))
    for one in candidates:
        for hook, width in zip(one.hook_points, (one.sae.d_in, one.sae.d_out), strict=False):
            check_width(one.address, width, hook, dataset, stored)
        check_weights(one.address, one.sae, settings.activations_dir)
    limits = _limits(dataset, settings.max_norm_multiple)
    found, left_out = _on_rows(candidates, dataset, stored, limits, settings, progress)
    in_model: Mapping[str, "ModelFigures"] = {}
    if settings.model_path is not None:
        from sae.evaluation.model import Spliced  # and JAX, which takes seconds
        from sae.evaluation.texts import in_model_of

        spliced = {
            one.name: Spliced(one.sae, one.hook_point, limits[stored[one.hook_point]])
            for one in candidates
            if one.target is None
        }
        in_model = in_model_of(settings, spliced, progress)
    run_id = dataset.info.run_id
    return Evaluation(
        settings=settings,
        run_id=run_id,
        left_out=left_out,
        autoencoders=[
            Evaluated(
                name=one.name,
                address=one.address,
                sae=one.sae,
                hook_point=one.hook_point,
                target=one.target,
                rows=found[one.name],
                model=in_model.get(one.name),
                metrics=_metrics(one.address),
                trained_on=run_id is not None and one.sae.metadata.get("run_id") == run_id,
            )
            for one in candidates
        ],
    )


def _candidate(name: str, address: str, settings: EvaluateSettings) -> _Candidate:
    sae = load(address)
    hook_point = hook_point_of(sae, address, settings.hook_point)
    target = named_hook_point(sae, "_out")
    if target == hook_point:
        target = None
    if target is None and sae.d_in != sae.d_out:
        raise InputError(f"{address} is a transcoder, and does not say of which hook point")
    return _Candidate(name=name, address=address, sae=sae, hook_point=hook_point, target=target)


def _limits(dataset: ActivationDataset, multiple: float) -> dict[str, float | None]:
    """Return the norm above which a row is a sink, of each hook point of the run."""
    statistics = dataset.info.statistics
    if all("median_norm" in statistics.get(hook, {}) for hook in dataset.hook_points):
        medians = {hook: statistics[hook]["median_norm"] for hook in dataset.hook_points}
        return limits_above(medians, multiple)
    sums = {hook: StatisticsSum() for hook in dataset.hook_points}
    for batch in dataset.batches(BATCH_ROWS):
        for total, rows in zip(sums.values(), batch.values(), strict=True):
            total.add(RowStatistics.of(rows))
    totals = {hook: total.total() for hook, total in sums.items()}
    return limits_above(
        {h: t.median_norm() if t.values else None for h, t in totals.items()}, multiple
    )


def _on_rows(
    candidates: Sequence[_Candidate],
    dataset: ActivationDataset,
    stored: Mapping[str, str],
    limits: Mapping[str, float | None],
    settings: EvaluateSettings,
    progress: Progress,
) -> tuple[dict[str, RowEvaluation], dict[str, int]]:
    """Return the figures of one read of the rows, and the rows that the filters left out."""
    evaluators = {
        one.name: RowEvaluator(one.sae, limits[stored[one.hook_point]]) for one in candidates
    }
    most = int(settings.row_limit) if settings.row_limit else len(dataset)
    stream = dataset.batches(
        min(BATCH_ROWS, most),
        shuffle_seed=None if settings.row_limit is None else 0,
        exclude_special=settings.exclude_special,
        skip_first=settings.skip_first,
    )
    rows = 0
    with stream, stop_flag() as stop:
        for batch in itertools.islice(stream, -(-most // BATCH_ROWS)):
            stop.check()
            batch = {hook: values[: most - rows] for hook, values in batch.items()}
            for one in candidates:
                wanted = None if one.target is None else batch[one.target]
                evaluators[one.name].add(batch[one.hook_point], wanted)
            rows += len(next(iter(batch.values())))
            progress("rows evaluated", rows, most)
    if not rows:
        raise StoreError(f"{settings.activations_dir} has no rows to evaluate on")
    return {name: one.result() for name, one in evaluators.items()}, dict(stream.left_out)


def _metrics(address: str) -> list[dict[str, Any]]:
    """Return the lines of the training of an autoencoder, if they are beside it."""
    parent, _, name = address.rstrip("/").rpartition("/")
    if parent.endswith(":/"):  # a whole bucket, which has nothing beside it
        return []
    storage = open_storage(parent or ".", writable=False)
    try:
        lines = get_at_most(storage, METRICS_FILE, MOST_METRICS_BYTES).splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            read = documents.read_json(line)
        except ValueError:
            continue  # an unfinished line of a training that was killed
        if isinstance(read, dict) and read.get("autoencoder") == name:
            found.append(read)
    return found


def _with_null(value: Any) -> Any:
    """Return JSON values with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _with_null(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_null(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(evaluation: Evaluation) -> list[str]:
    """Write `evaluation.json` and `training.html`, and return their addresses."""
    from sae.evaluation.page import page_of

    assert evaluation.settings.output_dir is not None
    storage = open_storage(evaluation.settings.output_dir)
    text = json.dumps(_with_null(evaluation.as_json()), indent=1, allow_nan=False)
    files = {EVALUATION_FILE: text.encode(), PAGE_FILE: page_of(evaluation).encode()}
    for name, data in files.items():
        storage.replace(name, data)
    return [f"{evaluation.settings.output_dir}/{name}" for name in files]
