"""A distributed run that is planned and checked, for devices that are here or elsewhere."""

import dataclasses
from collections.abc import Mapping, Sequence

from inference.engine.batches import row_slots
from inference.engine.engine import Engine
from inference.engine.hosts import Workers
from inference.engine.memory import check_memory
from inference.engine.plan import SAVE_EVERY, PlanSettings, Unit, own_units, plan_units
from inference.engine.prepare import Prepared
from inference.engine.programs import GenerationSettings
from inference.settings.commands import DistributedSettings
from qwen_hooks import QwenModelWithActivations, create_model_with_hooks
from qwen_hooks.hook_points import hook_widths
from qwen_hooks.model import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A planned run: everything that its units need, checked before anything is loaded.

    Attributes:
        prepared: settings, samples and model.
        workers: this process's worker and its mesh.
        attention: name of the attention for prompts.
        plan: settings of the plan.
        units: units of the run.
        row_slots: captured slots of a sequence in each bucket.
    """

    prepared: Prepared[DistributedSettings]
    workers: Workers
    attention: str
    plan: PlanSettings
    units: Sequence[Unit]
    row_slots: Mapping[int, int]

    @property
    def settings(self) -> DistributedSettings:
        """Settings of the run."""
        return self.prepared.settings

    def own_units(self, committed: set[int]) -> list[Unit]:
        """Return the units that this process runs.

        Args:
            committed: numbers of units that are committed already.
        """
        return list(own_units(self.units, self.workers.number, self.workers.count, committed))

    @property
    def generation(self) -> GenerationSettings:
        """Settings that the programs are compiled for."""
        settings, pretrained = self.settings, self.prepared.pretrained
        return GenerationSettings(
            max_new_tokens=settings.max_new_tokens,
            capture_generated=self.prepared.positions.any_generated,
            stop_token_ids=pretrained.checkpoint.stop_token_ids,
            temperature=settings.temperature,
            top_p=settings.top_p,
            repetition_penalty=pretrained.repetition_penalty,
            seed=settings.random_seed,
        )

    def model(self, attention: str) -> QwenModelWithActivations:
        """Return the model for the mesh, with one kind of attention for prompts."""
        pretrained = self.prepared.pretrained
        return create_model_with_hooks(
            self.workers.layout.config(pretrained.checkpoint.config),
            dtype=pretrained.dtype,
            attention=attention,
            scan_layers=self.settings.scan_layers,
            hook_points=pretrained.model.hook_points,
        )

    def engine(self, params: Params) -> Engine:
        """Return the engine that runs the batches.

        Args:
            params: parameters on the devices, laid out for the mesh.
        """
        return Engine(
            model=self.model(self.attention),
            params=params,
            mesh=self.workers.layout.mesh,
            generation=self.generation,
            plan=self.plan,
            row_slots=self.row_slots,
            choose_generated=self.prepared.positions.generated_chooser(
                self.prepared.pretrained.tokenizer
            ),
        )


def plan_job(prepared: Prepared[DistributedSettings], workers: Workers, attention: str) -> Job:
    """Cut the samples into units and check that they fit; the devices need not be here.

    Args:
        prepared: settings, samples and model.
        workers: this process's worker and its mesh.
        attention: name of the attention for prompts.

    Raises:
        InputError: a batch does not fit the devices.
    """
    settings, pretrained = prepared.settings, prepared.pretrained
    config = pretrained.checkpoint.config
    if settings.pack_length and attention == "cudnn":  # cudnn cannot separate documents
        attention = "xla"
    plan = PlanSettings(
        tokens_per_batch=settings.tokens_per_batch,
        max_batch_size=settings.batch_size,
        rows_per_unit=settings.save_every_n_samples or SAVE_EVERY,
        pack_length=settings.pack_length,
    )
    units = list(plan_units(prepared.planned, plan))
    slots = row_slots(units, prepared.samples, predicts=settings.max_new_tokens > 0)
    check_memory(
        config,
        workers.layout,
        plan,
        buckets=sorted({unit.bucket for unit in units if unit.bucket}),
        max_new_tokens=settings.max_new_tokens,
        row_slots=slots,
        captured_width=sum(hook_widths(pretrained.model.hook_points, config).values()),
        itemsize=pretrained.dtype.itemsize,
        device_memory=workers.device_memory,
    )
    return Job(
        prepared=prepared,
        workers=workers,
        attention=attention,
        plan=plan,
        units=units,
        row_slots=slots,
    )
