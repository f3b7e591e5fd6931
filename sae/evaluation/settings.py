"""Settings of `python -m sae evaluate`."""

import dataclasses
from typing import ClassVar, Literal

from extraction.setting_names import setting
from inference.errors import InputError
from inference.settings.commands import SampleSettings
from inference.settings.fields import Settings, flag
from inference.settings.inputs import InputSettings
from sae.row_filters import TokenFilterSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedSettings(TokenFilterSettings):
    """Which autoencoders are evaluated, and on which rows."""

    group: ClassVar[str] = "autoencoders and rows"

    saes: list[str] = flag(
        "Autoencoders: folders, or addresses in a bucket, in any format that is read.",
        decides="nothing",
        example="SAE",
        positional=True,
    )
    activations_dir: str = flag(
        "Run with rows that the autoencoders were not trained on: folder, gs://bucket/prefix or"
        " s3://bucket/prefix.",
        decides="nothing",
        example="./held_out",
    )
    hook_point: str | None = flag(
        "Hook point of all autoencoders. Left out: the one that each one's metadata name.",
        decides="nothing",
        default=None,
        example="layer_12",
    )
    max_norm_multiple: float = flag(
        "A row is an attention sink if its norm is above this many times the median. Figures of"
        " rows are with and without sinks; in the model they are bypassed.",
        decides="nothing",
        default=10.0,
        least=1e-6,
    )
    row_limit: float | None = flag(
        "Most rows to evaluate on, chosen from the whole run. Left out: all.",
        decides="nothing",
        default=None,
        example="1e6",
        least=1,
        most=1e15,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedModelSettings(Settings):
    """The model that reconstructions are spliced into."""

    group: ClassVar[str] = "model"

    model_path: str | None = flag(
        "Splice reconstructions into this model: checkpoint folder, gs://bucket/folder, or hub id."
        " Needs --dataset or --tasks_file.",
        decides="nothing",
        default=None,
        example="Qwen/Qwen2.5-0.5B",
    )
    revision: str | None = flag(
        "Branch, tag or commit of the hub model.", decides="nothing", default=None, example="main"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "Type to compute in. auto: float32 on CPU, bfloat16 on TPU and GPU.",
        decides="nothing",
        default="auto",
    )
    tokens_per_batch: int = flag(
        "Most tokens, with padding, that one device runs at a time.",
        decides="nothing",
        default=2048,
        least=1,
    )
    random_seed: int = flag("Seed of --random_sample.", decides="nothing", default=0, least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Where the results are written."""

    group: ClassVar[str] = "output"

    output_dir: str | None = flag(
        "Folder, or address in a bucket, for evaluation.json and training.html. Left out: the table"
        " is printed, and nothing is written.",
        decides="nothing",
        default=None,
        example="./evaluation",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ReportSettings, InputSettings, EvaluatedModelSettings, EvaluatedSettings):
    """All settings of `python -m sae evaluate`.

    Raises:
        InputError: a model without texts, or texts without a model.
    """

    def _check(self) -> None:
        super()._check()
        given = [name for name in ("tasks_file", "dataset") if getattr(self, name) is not None]
        if self.model_path is None and given:
            raise InputError(
                f"{setting(given[0])} is for a model, and needs {setting('model_path')}"
            )
        if self.model_path is not None and len(given) != 1:
            raise InputError(
                f"{setting('model_path')} needs one of {setting('tasks_file')} and"
                f" {setting('dataset')}; {'both were' if given else 'neither was'} given"
            )

    def samples(self) -> SampleSettings:
        """Return the settings of the texts as an extraction has them."""
        names = [entry.name for entry in dataclasses.fields(InputSettings)]
        return SampleSettings(
            **{name: getattr(self, name) for name in names},
            max_new_tokens=0,
            random_seed=self.random_seed,
        )
