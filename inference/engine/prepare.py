"""From settings to samples that are ready to run, for both commands and the planner."""

import dataclasses
from collections.abc import Sequence
from typing import Generic, TypeVar

from extraction.formats import FORMATS
from inference.engine.plan import SAVE_EVERY, PlannedSample, rows_per_file
from inference.engine.pretrained import Pretrained, open_pretrained
from inference.inputs.positions import Positions
from inference.inputs.samples import Sample, read_samples, reason_to_skip
from inference.inputs.steering import Steering, read_steering
from inference.inputs.tasks import Task
from inference.settings.commands import ExtractionSettings
from qwen_hooks.config import QwenConfig
from qwen_hooks.hook_points import hook_widths
from qwen_hooks.interventions import Interventions

SettingsT = TypeVar("SettingsT", bound=ExtractionSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared(Generic[SettingsT]):
    """Inputs of a run, checked before any weights are read.

    Attributes:
        settings: settings of the run, with automatic values filled in.
        tasks: tasks of the samples.
        pretrained: the model.
        samples: samples, in order.
        reasons: why each sample is skipped; None if it runs.
        positions: selectors of the tokens whose activations are kept.
        planned: number of tokens and rows of each sample.
        steering: interventions in every sample; None: none.
    """

    settings: SettingsT
    tasks: Sequence[Task]
    pretrained: Pretrained
    samples: Sequence[Sample]
    reasons: Sequence[str | None]
    positions: Positions
    planned: Sequence[PlannedSample]
    steering: Steering | None = None

    def interventions(self, config: QwenConfig) -> Interventions | None:
        """Return the interventions in the samples, by their numbers; None: none.

        Args:
            config: configuration of the model that runs them.

        Raises:
            InputError: a hook point does not exist or has another width.
        """
        if self.steering is None:
            return None
        lengths = [len(sample.token_ids) for sample in self.samples]
        return self.steering.of_samples(lengths, [s.changed for s in self.samples], config)

    @property
    def skipped(self) -> int:
        """Number of samples that cannot run."""
        return sum(reason is not None for reason in self.reasons)


def prepare(settings: SettingsT, tasks: Sequence[Task]) -> Prepared[SettingsT]:
    """Return the checked inputs of a run.

    Args:
        settings: settings of the run.
        tasks: tasks, from `inputs.datasets.read_tasks_of`.

    Raises:
        InputError: a setting or an input is wrong.
        ModelError: the model cannot be run here.
        StoreError: the bucket of the model cannot be used.
    """
    pretrained = open_pretrained(settings)
    steering = None
    if settings.interventions is not None:
        digest = pretrained.checkpoint.weights_digest()
        steering = read_steering(settings.interventions, digest)
        steering.of_samples([], [], pretrained.checkpoint.config)  # refuses before tokenising
    samples = read_samples(tasks, pretrained, settings, steering)
    context_length = pretrained.checkpoint.config.context_length
    reasons = [reason_to_skip(s, context_length, settings.max_new_tokens) for s in samples]
    positions = Positions(settings.positions)
    later = positions.most_generated(settings.max_new_tokens)
    planned = [
        PlannedSample(
            number=s.number,
            tokens=0 if reason else len(s.token_ids),
            rows=len(s.positions) + later,
        )
        for s, reason in zip(samples, reasons, strict=True)
    ]
    return Prepared(
        settings=_with_file_size(settings, planned, pretrained),
        tasks=tasks,
        pretrained=pretrained,
        samples=samples,
        reasons=reasons,
        positions=positions,
        planned=planned,
        steering=steering,
    )


def _with_file_size(
    settings: SettingsT, planned: Sequence[PlannedSample], pretrained: Pretrained
) -> SettingsT:
    """Return the settings with `save_every_n_samples` filled in, if it is None."""
    if settings.save_every_n_samples is not None:
        return settings
    rows = SAVE_EVERY
    if FORMATS[settings.format].is_fast:
        model, dtype = pretrained.model, settings.stored_dtype(str(pretrained.dtype))
        widths = hook_widths(model.hook_points, pretrained.checkpoint.config).values()
        rows = rows_per_file(planned, max(widths) * (2 if dtype == "bfloat16" else 4))
    return dataclasses.replace(settings, save_every_n_samples=rows)
