"""Settings of the two commands, composed of groups: each flag with its default and its limits."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from extraction.errors import StoreError
from extraction.formats import FORMATS, written_format
from extraction.setting_names import setting
from extraction.storage import check_address, scheme_of
from extraction.writing.places import places
from inference.errors import InputError
from inference.inputs.position_selectors import KNOWN
from inference.inputs.positions import Positions
from inference.settings.devices import DeviceSettings, ProcessSettings
from inference.settings.fields import Settings, flag
from inference.settings.inputs import ArcSettings, InputSettings

SIMPLE, DISTRIBUTED = "simple_extraction_inference", "distributed_inference_with_activations"
"""Names of the two commands, as a run records them."""

AUTO_PENALTY = "auto"
LEAST_PENALTY, LARGEST_PENALTY = 1e-3, 1e3
"""Limits of the penalty; beyond them a penalised float32 logit may be infinite, or 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Settings of the model."""

    group = "model"

    model_path: str = flag(
        "Checkpoint folder, gs://bucket/folder, or hub id.",
        decides="resolved",
        example="Qwen/Qwen2.5-0.5B",
    )
    revision: str | None = flag(
        "Branch, tag or commit of the hub model.", decides="rows", default=None, example="main"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "Type to compute in. auto: float32 on CPU, bfloat16 on TPU and GPU.",
        decides="resolved",
        default="auto",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptureSettings(Settings):
    """Settings of the activations and tokens to keep.

    Raises:
        InputError: a selector of positions is wrong.
    """

    group = "what is kept"

    layers_to_extract: list[int] | None = flag(
        "Numbers of the blocks, from 0, whose output is captured. Default: L/4 L/2 3L/4 L-1 of L"
        " blocks.",
        decides="resolved",
        default=None,
        example="6 12",
    )
    hook_points: list[str] | None = flag(
        "More hook points to capture, as names or patterns; without --layers_to_extract they"
        " replace the default layers. See docs/hook_points.md.",
        decides="resolved",
        default=None,
        example="layers.12.mlp",
    )
    positions: list[str] = flag(
        f"Tokens whose activations are kept, as one or several of: {KNOWN}. See docs/positions.md.",
        decides="rows",
        default_factory=lambda: ["last"],
        example="last",
    )
    show_positions: int = flag(
        "Print the first N samples with the chosen tokens marked.",
        decides="nothing",
        default=0,
        least=0,
    )

    def _check(self) -> None:
        super()._check()
        Positions(self.positions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterventionSettings(Settings):
    """Settings of what is changed while the model runs."""

    group = "what is changed"

    interventions: str | None = flag(
        "YAML file of vectors that change activations at hook points in every sample. See"
        " docs/interventions.md.",
        decides="resolved",
        default=None,
        example="steer.yaml",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingSettings(Settings):
    """Settings of generation.

    Raises:
        InputError: a number is out of range.
    """

    group = "generation"

    max_new_tokens: int = flag(
        "Most tokens to generate for each sample. 0: run the prompt only.",
        decides="rows",
        default=1,
        least=0,
    )
    temperature: float = flag(
        "0: choose the likeliest token. Above 0: sample at this temperature.",
        decides="rows",
        default=0.0,
        least=0,
        most=1e30,
    )
    top_p: float = flag(
        "Sample among the likeliest tokens only, whose probabilities sum to this number. 1: among"
        " all tokens.",
        decides="rows",
        default=1.0,
    )
    repetition_penalty: str = flag(
        "Penalty for tokens that occur in the prompt or the generated text, as in"
        " transformers: positive logits are divided by it, negative ones multiplied. 1: none."
        " auto: the penalty in the checkpoint's generation_config.json.",
        decides="resolved",
        default="1.0",
    )
    random_seed: int = flag(
        "Seed of sampling, of --random_sample, of the selector random and of ARC augmentations.",
        decides="rows",
        default=0,
        least=0,
    )

    def _check(self) -> None:
        super()._check()
        if not 0 < self.top_p <= 1:
            raise InputError(f"{setting('top_p')} must be above 0 and at most 1, not {self.top_p}")
        if self.repetition_penalty != AUTO_PENALTY:
            check_penalty(setting("repetition_penalty"), self.repetition_penalty)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreSettings(Settings):
    """Settings of the written files.

    Raises:
        InputError: settings exclude each other, or `output_dir` is an address of a bucket.
    """

    group = "what is written"

    output_dir: str = flag(
        "Folder on this machine for outputs.jsonl and submission.json.",
        decides="nothing",
        default="./outputs",
    )
    activations_dir: str = flag(
        "Folder or gs://bucket/prefix for the activations. It must be new or empty, except with"
        " --resume.",
        decides="nothing",
        default="./activations",
    )
    resume: bool = flag(
        "Continue the run in --activations_dir, or begin it if there is none.",
        decides="nothing",
        default=False,
    )
    format: str = flag(
        "Format of the activation files: pickle, or safetensors, which is faster and can hold"
        " bfloat16.",
        decides="resolved",
        default="pickle",
    )
    store_dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "Type of the stored activations. auto: the type that is computed in, in safetensors"
        " files; float32 in pickle files.",
        decides="resolved",
        default="auto",
    )
    save_every_n_samples: int | None = flag(
        "Most rows in a file of a hook point; a sample with more rows has a file of its own."
        " Default: 512 rows in pickle files; the rows of 512 samples, up to 64 MiB, in safetensors"
        " files.",
        decides="files",
        default=None,
        example=512,
        least=1,
    )
    gcs_bucket: str | None = flag(
        "Bucket and prefix to upload to. --activations_dir then holds each file only until it is"
        " uploaded.",
        decides="nothing",
        default=None,
        example="gs://bucket/prefix",
    )
    upload_to_cloud: bool | None = flag(
        "Whether to upload to --gcs_bucket. Default: True if --gcs_bucket is given.",
        decides="nothing",
        default=None,
        example=False,
    )
    spool_gb: float = flag(
        "Most GB of files that wait to be uploaded; above this the run waits for the network.",
        decides="nothing",
        default=8.0,
        least=0,
    )

    def _check(self) -> None:
        super()._check()
        if scheme_of(self.output_dir) is not None:
            raise InputError(
                f"{setting('output_dir')} must be a folder on this machine, not {self.output_dir};"
                " its files are also copied to the bucket of the activations"
            )
        try:
            check_address(self.activations_dir)
            places(self.activations_dir, self.upload_to)
        except StoreError as error:
            raise InputError(f"{setting('activations_dir')}: {error}") from None
        if self.upload_to_cloud and self.gcs_bucket is None:
            raise InputError(
                f"{setting('upload_to_cloud', True)} needs"
                f" {setting('gcs_bucket', 'gs://bucket/prefix')}"
            )
        try:
            held = written_format(self.format).dtypes
        except StoreError as error:
            raise InputError(f"{setting('format', self.format)}: {error}") from None
        if self.store_dtype not in ("auto", *held):
            raise InputError(
                f"{setting('format', self.format)} holds {' and '.join(held)} only;"
                f" {self.store_dtype} needs {setting('format', 'safetensors')}"
            )

    @property
    def upload_to(self) -> str | None:
        """Address that the files of a local folder are uploaded to; None: they are not."""
        return None if self.upload_to_cloud is False else self.gcs_bucket

    def cloud(self) -> str | None:
        """Return the address of the run in a bucket; None if it is in a local folder."""
        return places(self.activations_dir, self.upload_to)[1]

    @property
    def spool(self) -> Path:
        """Folder on this machine where the files are written first."""
        return Path(places(self.activations_dir, self.upload_to)[0])

    def stored_dtype(self, computed: str) -> str:
        """Return the type of the stored activations.

        Args:
            computed: type in which they are computed.
        """
        if self.store_dtype != "auto":
            return self.store_dtype
        return computed if computed in FORMATS[self.format].dtypes else "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings(DecodingSettings, CaptureSettings, ArcSettings, InputSettings):
    """Settings that make samples of tasks or documents."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractionSettings(StoreSettings, InterventionSettings, SampleSettings, ModelSettings):
    """Settings of both commands.

    Raises:
        InputError: neither `tasks_file` nor `dataset` is given, or both are.
    """

    def _check(self) -> None:
        if (self.tasks_file is None) == (self.dataset is None):
            given = "both were given" if self.dataset is not None else "neither was given"
            raise InputError(
                f"one of {setting('tasks_file')} and {setting('dataset')} is needed; {given}"
            )
        super()._check()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedSettings(ProcessSettings, DeviceSettings, ExtractionSettings):
    """Settings of the distributed command.

    Raises:
        InputError: `pack_length` is given with a setting that excludes it.
    """

    def _check(self) -> None:
        super()._check()
        if self.pack_length and self.max_new_tokens:
            raise InputError(
                f"{setting('pack_length')} needs {setting('max_new_tokens', 0)}: packed samples"
                " generate nothing"
            )
        if self.pack_length and self.interventions is not None:
            raise InputError(
                f"{setting('interventions')} needs {setting('pack_length', 0)}: packed samples"
                " share a sequence, and positions count in each sample"
            )
        if self.pack_length and self.attention == "cudnn":
            raise InputError(
                f"{setting('attention', 'cudnn')} cannot run packed samples; use auto or xla"
            )


def check_penalty(where: str, value: object) -> float:
    """Return a repetition penalty as a number.

    Args:
        where: name of the flag or field, for the message.
        value: a number, or its digits.

    Raises:
        InputError: the value is no number, or out of range.
    """
    try:
        penalty = float(value) if isinstance(value, str | float | int) else math.nan
    except (ValueError, OverflowError):
        penalty = math.nan
    if isinstance(value, bool) or not LEAST_PENALTY <= penalty <= LARGEST_PENALTY:
        raise InputError(
            f"{where} must be a number from {LEAST_PENALTY} to {LARGEST_PENALTY:.0f}"
            f"{' or auto' if where.startswith('--') else ''}, not {value!s:.60}"
        )
    return penalty
