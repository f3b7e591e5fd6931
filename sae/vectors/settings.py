"""Settings of `python -m sae vector`."""

import dataclasses
from typing import ClassVar

from extraction.setting_names import setting
from inference.errors import InputError
from inference.settings.fields import Settings, flag
from sae.row_filters import RowFilterSettings
from sae.scores.settings import GroupSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectionSettings(RowFilterSettings):
    """Where directions come from."""

    group: ClassVar[str] = "directions"

    sae: str | None = flag(
        "Autoencoder whose decoder rows are written: folder, or address in a bucket.",
        decides="nothing",
        default=None,
        example="./saes/layer_12",
    )
    latents: list[int] | None = flag(
        "Numbers of the latents of --sae, from 0.",
        decides="nothing",
        default=None,
        example="3801",
        least=0,
    )
    activations_dir: str | None = flag(
        "Run with the rows of both groups, or of the first: the mean of the first less that of the"
        " second is written.",
        decides="nothing",
        default=None,
        example="./entities",
    )
    hook_point: str | None = flag(
        "Hook point of --activations_dir. Left out: that of --sae, or the run's only one.",
        decides="nothing",
        default=None,
        example="layer_12",
    )
    unit_norm: bool = flag("Scale each direction to norm 1.", decides="nothing", default=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorFileSettings(Settings):
    """Where directions are written."""

    group: ClassVar[str] = "output"

    output_file: str = flag(
        "File to write, local or in a bucket; one that is there is replaced.",
        decides="nothing",
        example="vectors.safetensors",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorSettings(VectorFileSettings, GroupSettings, DirectionSettings):
    """All settings of `python -m sae vector`.

    Raises:
        InputError: nothing to write is named, or groups without a run.
    """

    def _check(self) -> None:
        super()._check()
        if (self.sae is None) != (self.latents is None):
            raise InputError(f"{setting('sae')} and {setting('latents')} go together")
        if self.sae is None and self.activations_dir is None:
            raise InputError(
                f"give {setting('sae')} with {setting('latents')}, or"
                f" {setting('activations_dir')} with two groups"
            )
        if self.activations_dir is not None:
            self.check_groups()
        elif self.label_field is not None or self.second_activations_dir is not None:
            raise InputError(f"two groups need {setting('activations_dir')}")
        if self.labels_file is not None and self.label_field is None:
            raise InputError(f"{setting('labels_file')} needs {setting('label_field')}")
