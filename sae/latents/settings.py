"""Settings of `python -m sae latents`."""

import dataclasses
from typing import ClassVar, Literal

from extraction.setting_names import setting
from inference.errors import InputError
from inference.settings.fields import Settings, flag
from sae.part_settings import PartSettings
from sae.row_filters import RowFilterSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescribedSettings(RowFilterSettings):
    """Which latents are described, and on which rows."""

    group: ClassVar[str] = "latents and rows"

    sae: str = flag(
        "Autoencoder: folder, or address in a bucket, in any format that is read.",
        decides="rows",
        example="SAE",
        positional=True,
    )
    activations_dir: str = flag(
        "Run with the rows: folder, gs://bucket/prefix or s3://bucket/prefix. With"
        " --positions all, tokens around a row are coloured too.",
        decides="rows",
        example="./activations",
    )
    hook_point: str | None = flag(
        "Hook point of the autoencoder. Left out: the one in its metadata.",
        decides="rows",
        default=None,
        example="layer_12",
    )
    latents: list[int] | None = flag(
        "Numbers of the latents that are described, from 0. Left out: all.",
        decides="rows",
        default=None,
        example="3801",
        least=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleSettings(Settings):
    """Which rows of each latent are shown."""

    group: ClassVar[str] = "rows that are shown"

    top: int = flag(
        "Rows of largest activation of each latent.", decides="rows", default=20, least=1, most=1000
    )
    ranges: int = flag(
        "Ranges of activation, each with as many of a latent's active rows, of which rows are"
        " shown. 0: none.",
        decides="rows",
        default=5,
        least=0,
        most=100,
    )
    rows_per_range: int = flag(
        "Random rows of each range.", decides="rows", default=3, least=1, most=100
    )
    context: int = flag(
        "Tokens shown before a row's token; half as many are shown after.",
        decides="nothing",
        default=20,
        least=0,
        most=500,
    )
    nearest: int = flag(
        "Latents of the most similar decoder rows that are named.",
        decides="nothing",
        default=5,
        least=0,
        most=100,
    )
    random_seed: int = flag(
        "Seed of the random rows: the same rows on every machine, in any number of parts.",
        decides="rows",
        default=0,
        least=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LensSettings(Settings):
    """The model whose tokens the logit lens names."""

    group: ClassVar[str] = "logit lens"

    model_path: str | None = flag(
        "Model of the rows: checkpoint folder, gs://bucket/folder, or hub id. The tokens are named"
        " that each decoder row makes likelier or less likely. Left out: no logit lens.",
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
    lens_tokens: int = flag(
        "Tokens that are named at each end.", decides="nothing", default=10, least=1, most=1000
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentsOutputSettings(PartSettings):
    """Where the results are written."""

    group: ClassVar[str] = "output"

    output_dir: str = flag(
        "Folder, or address in a bucket, for latents.jsonl and latents.html.",
        decides="nothing",
        example="./latents",
    )
    resume: bool = flag(
        "Go on with the pass over the rows that a stopped command saved in --output_dir.",
        decides="nothing",
        default=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentsSettings(LatentsOutputSettings, LensSettings, ExampleSettings, DescribedSettings):
    """All settings of `python -m sae latents`.

    Raises:
        InputError: a latent is named twice.
    """

    def _check(self) -> None:
        super()._check()
        if self.latents is not None and len(set(self.latents)) < len(self.latents):
            raise InputError(f"{setting('latents')} names a latent twice")
