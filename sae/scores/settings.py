"""Settings of `python -m sae score`."""

import dataclasses
from typing import ClassVar, Literal

from extraction.setting_names import setting
from inference.errors import InputError
from inference.settings.fields import Settings, flag
from sae.part_settings import PartSettings
from sae.row_filters import RowFilterSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredSettings(RowFilterSettings):
    """Which autoencoders are scored, and on which rows."""

    group: ClassVar[str] = "autoencoders and rows"

    saes: list[str] = flag(
        "Autoencoders, of one hook point or of several: folders, or addresses in a bucket.",
        decides="nothing",
        example="SAE",
        positional=True,
    )
    activations_dir: str = flag(
        "Run with the rows of both groups, or of the first: folder, gs://bucket/prefix or"
        " s3://bucket/prefix.",
        decides="nothing",
        example="./entities",
    )
    background_dir: str | None = flag(
        "Run with rows of any text. Latents that are active in more than --background_frequency of"
        " them are left out.",
        decides="nothing",
        default=None,
        example="./random_tokens",
    )
    hook_point: str | None = flag(
        "Hook point of all autoencoders. Left out: the one in each one's metadata.",
        decides="nothing",
        default=None,
        example="layer_12",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSettings(Settings):
    """Which group each row is of."""

    group: ClassVar[str] = "groups"

    second_activations_dir: str | None = flag(
        "Run with the rows of the second group. Left out: both groups are in --activations_dir.",
        decides="nothing",
        default=None,
        example="./refused",
    )
    label_field: str | None = flag(
        "Field of the output lines that divides the samples into two groups.",
        decides="nothing",
        default=None,
        example="known",
    )
    first: list[str] | None = flag(
        "Values of --label_field of the first group.",
        decides="nothing",
        default=None,
        example="known",
    )
    second: list[str] | None = flag(
        "Values of --label_field of the second group. Left out: all other values.",
        decides="nothing",
        default=None,
        example="unknown",
    )
    labels_file: str | None = flag(
        "JSON Lines with task_id, perhaps sample_idx and position, and the fields of labels,"
        " instead of the run's output lines.",
        decides="nothing",
        default=None,
        example="labels.jsonl",
    )

    def check_groups(self) -> None:
        """Check that two groups are named, in one way.

        Raises:
            InputError: they are not.
        """
        if (self.label_field is None) == (self.second_activations_dir is None):
            both = "both were" if self.label_field is not None else "neither was"
            raise InputError(
                f"two groups need one of {setting('label_field')} and"
                f" {setting('second_activations_dir')}; {both} given"
            )
        if (self.label_field is None) != (self.first is None):
            raise InputError(f"{setting('label_field')} and {setting('first')} go together")
        if self.label_field is None and self.second is not None:
            raise InputError(f"{setting('second')} needs {setting('label_field')}")
        both = sorted(set(self.first or ()) & set(self.second or ()))
        if both:
            raise InputError(f"{both[0]} is in {setting('first')} and in {setting('second')}")

    @property
    def group_names(self) -> tuple[str, str]:
        """Names of both groups, for tables and files."""
        if self.first is None:
            return "first", "second"
        second = self.second or [f"not {' '.join(self.first)}"]
        return "+".join(self.first), "+".join(second)


Metric = Literal[
    "frequency_difference", "relative_difference", "mean_difference", "welch_t", "auroc"
]
"""Figures that latents are chosen by, attributes of `LatentFigures`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceSettings(Settings):
    """Which latents are chosen, and on which part of the rows."""

    group: ClassVar[str] = "choice of latents"

    category_field: str | None = flag(
        "Field with the category of a sample, such as a type of entity. A latent's score is then"
        " its least over the categories.",
        decides="nothing",
        default=None,
        example="entity_type",
    )
    metric: Metric = flag(
        "Figure that latents are chosen by, the largest in either direction.",
        decides="nothing",
        default="frequency_difference",
    )
    top: int = flag(
        "Number of latents that are chosen for each group.", decides="nothing", default=20, least=1
    )
    background_frequency: float = flag(
        "Largest part of the rows of --background_dir in which a chosen latent is active.",
        decides="nothing",
        default=0.02,
        least=0.0,
        most=1.0,
    )
    test_fraction: float = flag(
        "Part of the tasks that is kept for the test: latents are chosen on the others. 0: latents"
        " are chosen on all rows, and nothing is tested.",
        decides="nothing",
        default=0.5,
        least=0.0,
        most=0.99,
    )
    random_seed: int = flag(
        "Seed of the division into tasks for the choice and for the test.",
        decides="nothing",
        default=0,
        least=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoresOutputSettings(PartSettings):
    """Where the results are written."""

    group: ClassVar[str] = "output"

    output_dir: str | None = flag(
        "Folder, or address in a bucket, for scores.json and a file of all latents of each"
        " autoencoder and category. Left out: the table is printed, and nothing is written.",
        decides="nothing",
        default=None,
        example="./scores",
    )

    def _check(self) -> None:
        super()._check()
        if self.part is not None and self.output_dir is None:
            raise InputError(f"{setting('part')} needs {setting('output_dir')}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings(ScoresOutputSettings, ChoiceSettings, GroupSettings, ScoredSettings):
    """All settings of `python -m sae score`.

    Raises:
        InputError: the groups are named in no way, or in two.
    """

    def _check(self) -> None:
        super()._check()
        self.check_groups()
        if self.labels_file is not None and (self.label_field or self.category_field) is None:
            raise InputError(
                f"{setting('labels_file')} needs {setting('label_field')} or"
                f" {setting('category_field')}"
            )
