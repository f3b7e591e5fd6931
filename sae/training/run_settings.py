"""Settings of the command: which rows are read, how often, and where the training is kept."""

import dataclasses
from typing import ClassVar

from extraction.setting_names import setting
from inference.errors import InputError
from inference.settings.devices import ProcessSettings, two_axes
from inference.settings.fields import Settings, flag
from sae.row_filters import RowFilterSettings
from sae.training.settings import SaeSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(RowFilterSettings):
    """Which rows are read, and in which order."""

    group: ClassVar[str] = "rows"

    activations_dir: str = flag(
        "Run with the activations: folder, gs://bucket/prefix or s3://bucket/prefix.",
        decides="resolved",
        example="./activations",
    )
    hook_points: list[str] | None = flag(
        "Hook points of the run; one autoencoder is trained for each. Left out: the only one.",
        decides="rows",
        default=None,
        example="layer_12",
    )
    target_hook_point: str | None = flag(
        "Train a transcoder, which reconstructs the rows of this hook point instead.",
        decides="rows",
        default=None,
        example="layers.12.mlp",
    )
    batch_size: int = flag("Rows of a step.", decides="rows", default=4096, least=1)
    train_rows: float | None = flag(
        "Rows to train on, in whole batches; those of the run come again in another order."
        " Left out: each row once.",
        decides="rows",
        default=None,
        example="2e8",
        least=1,
        most=1e15,
    )
    shuffle_seed: int = flag("Seed of the order of the rows.", decides="rows", default=0, least=0)
    pool_rows: int = flag(
        "Rows that are mixed with each other; two such pools are in memory.",
        decides="rows",
        default=1 << 17,
        least=1,
    )
    read_streams: int | None = flag(
        "Streams that each batch is put together from. They are shared out among the processes, so"
        " that any number of processes that divides it trains on the same rows. Left out: 8, or"
        " fewer for runs of few files.",
        decides="rows",
        default=None,
        example=8,
        least=1,
        most=4096,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepingSettings(Settings):
    """Where the training is kept."""

    group: ClassVar[str] = "output"

    output_dir: str = flag(
        "New folder, or gs:// or s3:// address, for autoencoders, metrics and checkpoints.",
        decides="nothing",
        example="./saes",
    )
    resume: bool = flag(
        "Go on from the last checkpoint in output_dir.", decides="nothing", default=False
    )
    checkpoint_seconds: float = flag(
        "Seconds between checkpoints; 0: after every step.",
        decides="nothing",
        default=600.0,
        least=0,
    )
    keep_checkpoints: int = flag(
        "Number of checkpoints that are kept.", decides="nothing", default=2, least=1
    )
    log_steps: int = flag(
        "Steps between two lines of metrics.jsonl.", decides="nothing", default=50, least=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings(ProcessSettings):
    """The devices of a training."""

    group: ClassVar[str] = "several devices"

    mesh_shape: str | None = flag(
        "Devices on the data and the latent axis. Left out: all on the latent axis.",
        decides="nothing",
        default=None,
        example="1,8",
    )

    def mesh_axes(self) -> tuple[int, int] | None:
        """Return `mesh_shape` as two numbers."""
        return None if self.mesh_shape is None else two_axes(self.mesh_shape)

    def _check(self) -> None:
        super()._check()
        self.mesh_axes()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(DataSettings, SaeSettings, KeepingSettings, MeshSettings):
    """All settings of `python -m sae train`."""

    def _check(self) -> None:
        super()._check()
        if self.train_rows is not None and self.train_rows < self.batch_size:
            raise InputError(
                f"{setting('train_rows', self.train_rows)} is less than one batch of"
                f" {setting('batch_size', self.batch_size)}"
            )

    def autoencoder(self) -> SaeSettings:
        """Return the settings of the autoencoder alone."""
        return SaeSettings(
            **{entry.name: getattr(self, entry.name) for entry in dataclasses.fields(SaeSettings)}
        )
