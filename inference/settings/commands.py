"""Settings of the commands: every flag, its default, and what it may be.

Frozen dataclasses, read from the command line by `transformers.HfArgumentParser`.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import field
from typing import ClassVar, Literal

from extraction.setting_names import setting
from extraction.storage import scheme_of
from inference.errors import InputError
from inference.inputs.arc_grids import GRID_ENCODERS
from inference.inputs.position_selectors import KNOWN
from inference.inputs.positions import Positions
from inference.settings.inputs import InputSettings, doc

MAX_NUMBER = 2**31 - 1
"""Largest value of a numeric flag: the largest that an int32 on a device holds."""

AUTO_PENALTY = "auto"
LEAST_PENALTY, LARGEST_PENALTY = 1e-3, 1e3
"""Beyond them a penalised float32 logit may be infinite, or 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractionSettings(InputSettings):
    """What both commands need to know.

    Raises:
        InputError: a value is out of range.
    """

    model_path: str = field(
        metadata=doc("Checkpoint folder, gs://bucket/folder, or hub id such as Qwen/Qwen2.5-0.5B.")
    )
    output_dir: str = field(
        default="./outputs", metadata=doc("Folder for outputs.jsonl and submission.json.")
    )
    activations_dir: str = field(
        default="./activations",
        metadata=doc("Folder for the activations; a new or empty one."),
    )
    layers_to_extract: list[int] | None = field(
        default=None,
        metadata=doc("Blocks whose output is captured. Default: L/4 L/2 3L/4 L-1."),
    )
    hook_points: list[str] | None = field(
        default=None,
        metadata=doc(
            "Further places to capture: names or patterns such as layers.*.mlp; alone, in place of"
            " the default layers. See docs/hook_points.md."
        ),
    )
    positions: list[str] = field(
        default_factory=lambda: ["last"],
        metadata=doc(
            f"Tokens whose activations are kept, several joined: {KNOWN}. See docs/positions.md."
        ),
    )
    show_positions: int = field(
        default=0, metadata=doc("Print so many samples with the chosen tokens marked.")
    )
    max_new_tokens: int = field(
        default=1,
        metadata=doc("Tokens to generate per sample; 0 captures the prompt's last token only."),
    )
    dtype: Literal["auto", "float32", "bfloat16"] = field(
        default="auto",
        metadata=doc("Type to compute in. auto: float32 on CPU, bfloat16 on TPU and GPU."),
    )
    save_every_n_samples: int | None = field(
        default=None,
        metadata=doc(
            "Rows per layer and file, at most; a sample with more is a file of its own. Default:"
            " 512; in safetensors and raw files the rows of 512 samples, up to 64 MiB."
        ),
    )
    format: Literal["pickle", "safetensors", "npz", "raw"] = field(
        default="pickle",
        metadata=doc("Of the activation files. safetensors and raw are fast and hold bfloat16."),
    )
    store_dtype: Literal["auto", "float32", "bfloat16"] = field(
        default="auto",
        metadata=doc(
            "Type to store. auto: what was computed in safetensors and raw files, else float32."
        ),
    )
    resume: bool = field(
        default=False,
        metadata=doc("Go on with the run in the folder or bucket; an empty one begins a run."),
    )
    gcs_bucket: str | None = field(
        default=None,
        metadata=doc(
            "gs://bucket/prefix to upload to. --activations_dir is then a spool that is emptied"
            " behind the uploads."
        ),
    )
    upload_to_cloud: bool | None = field(
        default=None,
        metadata=doc("False: keep the files here although a bucket is named."),
    )
    spool_gb: float = field(
        default=8.0,
        metadata=doc("GB that may wait to be uploaded before the run waits for the network."),
    )
    temperature: float = field(
        default=0.0,
        metadata=doc("0: the likeliest token. Above: sample at this temperature."),
    )
    top_p: float = field(
        default=1.0,
        metadata=doc("Sample among the likeliest tokens that make up this probability."),
    )
    repetition_penalty: str = field(
        default="1.0",
        metadata=doc(
            "Divide the positive logits of all tokens that occur in the prompt or were generated,"
            " and multiply the negative ones, by this number (transformers' definition), before"
            " the next token is chosen. auto: the number in the checkpoint's"
            " generation_config.json. 1.0: leave the logits as they are."
        ),
    )
    random_seed: int = field(default=0, metadata=doc("Of sampling and ARC augmentations."))
    predictions_per_task: int = field(
        default=1,
        metadata=doc("ARC: samples per test input; all but the first see augmented grids."),
    )
    grid_encoder: str = field(
        default="digits",
        metadata={
            **doc(f"ARC: how grids are written, one of {', '.join(GRID_ENCODERS)}."),
        },
    )
    prompt_style: Literal["chat", "plain"] = field(
        default="chat", metadata=doc("ARC: apply the tokenizer's chat template, or not.")
    )
    revision: str | None = field(
        default=None, metadata=doc("Branch, tag or commit of a hub model.")
    )

    minimum: ClassVar[Mapping[str, float]] = {
        "max_new_tokens": 0,
        "show_positions": 0,
        "save_every_n_samples": 1,
        "temperature": 0,
        "predictions_per_task": 1,
        "random_seed": 0,
        "spool_gb": 0,
    }
    """Least values of the flags that have one."""

    maximum: ClassVar[Mapping[str, float]] = {"temperature": 1e30}
    """Largest values of the flags whose is not `MAX_NUMBER`."""

    def __post_init__(self):
        super().__post_init__()
        Positions(self.positions)
        for name, minimum in self.minimum.items():
            value = getattr(self, name)
            if value is not None and not value >= minimum:  # also refuses NaN
                raise InputError(f"{setting(name)} must be at least {minimum}, not {value}")
        for entry in dataclasses.fields(self):
            value, maximum = getattr(self, entry.name), self.maximum.get(entry.name, MAX_NUMBER)
            if isinstance(value, int | float) and value > maximum:
                raise InputError(f"{setting(entry.name)} must be at most {maximum}, not {value}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"{setting('top_p')} must be above 0 and at most 1, not {self.top_p}")
        if self.repetition_penalty != AUTO_PENALTY:
            check_penalty(setting("repetition_penalty"), self.repetition_penalty)
        for name in ("output_dir", "activations_dir"):
            if scheme_of(getattr(self, name)) is not None:
                raise InputError(
                    f"{setting(name)} must be a folder on this machine, not {getattr(self, name)};"
                    f" {setting('gcs_bucket', 'gs://bucket/prefix')} uploads the activations"
                )
        if self.upload_to_cloud and self.gcs_bucket is None:
            raise InputError(
                f"{setting('upload_to_cloud', True)} needs"
                f" {setting('gcs_bucket', 'gs://bucket/prefix')}"
            )
        if self.store_dtype == "bfloat16" and self.format in ("pickle", "npz"):
            raise InputError(
                f"{setting('format', self.format)} holds float32 only; bfloat16 needs"
                f" {setting('format', 'safetensors')} or {setting('format', 'raw')}"
            )
        if self.grid_encoder not in GRID_ENCODERS:
            raise InputError(
                f"{setting('grid_encoder', self.grid_encoder)} is none of"
                f" {', '.join(GRID_ENCODERS)}"
            )

    def cloud(self) -> str | None:
        """Where to upload to, if anywhere."""
        return None if self.upload_to_cloud is False else self.gcs_bucket

    def stored_dtype(self, computed: str) -> str:
        """The type to store what was computed in another."""
        if self.store_dtype != "auto":
            return self.store_dtype
        return computed if self.format in ("safetensors", "raw") else "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedSettings(ExtractionSettings):
    """What the distributed command needs to know besides."""

    batch_size: int = field(
        default=256, metadata=doc("Rows that one device runs at a time, at most.")
    )
    tokens_per_batch: int = field(
        default=4096,
        metadata=doc("Padded prompt tokens that one device runs at a time; limits the rows."),
    )
    mesh_shape: str | None = field(
        default=None,
        metadata=doc(
            "Devices on the data and the model axis, such as 8,8. Default: the smallest model axis"
            " on which the parameters fit."
        ),
    )
    attention: Literal["auto", "xla", "splash", "cudnn"] = field(
        default="auto",
        metadata=doc(
            "How prompts are computed. auto: cudnn on GPU in bfloat16, else xla; splash is for TPU."
        ),
    )
    scan_layers: bool = field(
        default=False,
        metadata=doc(
            "Run the blocks as a loop: on TPU compiles in seconds instead of tens of them."
        ),
    )
    pack_length: int = field(
        default=0,
        metadata=doc(
            "Samples of up to so many tokens share rows of that length, each seeing itself alone;"
            " 0: none do. Needs --max_new_tokens 0."
        ),
    )
    self_check_rows: int = field(
        default=4,
        metadata=doc(
            "Rows per process and hook point, of samples all over the run, that are computed again,"
            " each sample alone, and compared; 0: none."
        ),
    )
    coordinator_address: str | None = field(
        default=None,
        metadata=doc("host:port of process 0, where neither a TPU slice nor SLURM tells it."),
    )
    num_processes: int | None = field(
        default=None, metadata=doc("Processes of the run, with --coordinator_address.")
    )
    process_id: int | None = field(
        default=None, metadata=doc("This process, from 0, with --coordinator_address.")
    )
    initialization_timeout: int = field(
        default=300, metadata=doc("Seconds to wait for the other processes.")
    )
    plan: str | None = field(
        default=None,
        metadata=doc(
            "File of python -m launch plan --json, also gs://: what it foresaw is printed beside"
            " what came of it."
        ),
    )
    compilation_cache_dir: str | None = field(
        default=None,
        metadata=doc(
            "Folder, also gs://, that keeps compiled programs; '' for none. Default:"
            " $JAX_COMPILATION_CACHE_DIR, else a folder in ~/.cache."
        ),
    )

    may_be_empty: ClassVar[Collection[str]] = ("compilation_cache_dir",)

    minimum: ClassVar[Mapping[str, float]] = {
        **ExtractionSettings.minimum,
        "batch_size": 1,
        "tokens_per_batch": 1,
        "pack_length": 0,
        "self_check_rows": 0,
        "initialization_timeout": 1,
        "num_processes": 1,
        "process_id": 0,
    }

    def __post_init__(self):
        super().__post_init__()
        self.mesh_axes()
        if self.pack_length and self.max_new_tokens:
            raise InputError(
                f"{setting('pack_length')} is for documents that nothing is generated for; it needs"
                f" {setting('max_new_tokens', 0)}"
            )
        if self.pack_length and self.attention == "cudnn":
            raise InputError(
                f"{setting('attention', 'cudnn')} takes no packed documents; use auto or xla"
            )

    def mesh_axes(self) -> tuple[int, int] | None:
        """`mesh_shape` as numbers.

        Raises:
            InputError: it is not two whole numbers.
        """
        if self.mesh_shape is None:
            return None
        parts = self.mesh_shape.split(",")
        if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
            raise InputError(f"{setting('mesh_shape')} must look like 8,8, not {self.mesh_shape!r}")
        return int(parts[0]), int(parts[1])


def check_penalty(where: str, value: object) -> float:
    """Returns a repetition penalty as a number.

    Args:
        where: the flag or field that it comes from, for the message.
        value: a number, or its digits.

    Raises:
        InputError: it is no number, or one that no logit can be divided by.
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
