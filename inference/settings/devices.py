"""Settings of the devices and processes that a run is computed on."""

import dataclasses
from typing import Literal

from extraction.setting_names import setting
from inference.errors import InputError
from inference.settings.fields import Settings, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceSettings(Settings):
    """Settings of batches and devices.

    Raises:
        InputError: the mesh's shape is not two whole numbers.
    """

    group = "devices"

    batch_size: int = flag(
        "Most sequences that one device runs at a time.", decides="rows", default=256, least=1
    )
    tokens_per_batch: int = flag(
        "Most prompt tokens, with padding, that one device runs at a time; batches of long prompts"
        " have fewer sequences.",
        decides="rows",
        default=4096,
        least=1,
    )
    pack_length: int = flag(
        "Pack several samples into each sequence of this many tokens; a sample attends only to"
        " itself. 0: one sample in each sequence. Needs --max_new_tokens 0.",
        decides="rows",
        default=0,
        least=0,
        example=1024,
    )
    mesh_shape: str | None = flag(
        "Number of devices on the data axis and on the model axis. Default: the smallest model axis"
        " on which the parameters fit.",
        decides="nothing",
        default=None,
        example="8,8",
    )
    attention: Literal["auto", "xla", "splash", "cudnn"] = flag(
        "Attention kernel for prompts. auto: cudnn on GPU in bfloat16, else xla. splash needs a"
        " TPU.",
        decides="nothing",
        default="auto",
    )
    scan_layers: bool = flag(
        "Run the blocks as a loop, which on a TPU compiles in seconds instead of tens of seconds.",
        decides="nothing",
        default=False,
    )
    self_check_rows: int = flag(
        "Number of rows of each hook point that each process computes again, one sample at a time,"
        " and compares. 0: no self-check.",
        decides="nothing",
        default=4,
        least=0,
    )
    plan: str | None = flag(
        "Plan, as python -m launch plan --json wrote it, local or at gs://...; the summary at the"
        " end compares the run with it.",
        decides="nothing",
        default=None,
        example="plan.json",
    )
    compilation_cache_dir: str | None = flag(
        "Folder for compiled programs, local or at gs://...; '' for none. Default:"
        " $JAX_COMPILATION_CACHE_DIR, else a folder in ~/.cache.",
        decides="nothing",
        default=None,
        example="/tmp/programs",
        may_be_empty=True,
    )

    def _check(self) -> None:
        super()._check()
        self.mesh_axes()

    def mesh_axes(self) -> tuple[int, int] | None:
        """Return the sizes of the data and the model axis; None if `mesh_shape` is not given.

        Raises:
            InputError: `mesh_shape` is not two whole numbers.
        """
        return None if self.mesh_shape is None else two_axes(self.mesh_shape)


def two_axes(text: str) -> tuple[int, int]:
    """Return a setting `mesh_shape` as two numbers.

    Raises:
        InputError: it is not two whole numbers.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"{setting('mesh_shape')} must look like 8,8, not {text!r}")
    return int(parts[0]), int(parts[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSettings(Settings):
    """Settings of a process of a run; on a TPU slice and under SLURM they are not needed."""

    group = "several processes"

    coordinator_address: str | None = flag(
        "Address of process 0, to run several processes where neither a TPU slice nor SLURM"
        " provides it.",
        decides="nothing",
        default=None,
        example="10.0.0.2:8476",
    )
    num_processes: int | None = flag(
        "Number of processes of the run; needs --coordinator_address.",
        decides="nothing",
        default=None,
        example=4,
        least=1,
    )
    process_id: int | None = flag(
        "Number of this process, from 0; needs --coordinator_address.",
        decides="nothing",
        default=None,
        example=0,
        least=0,
    )
    initialization_timeout: int = flag(
        "Most seconds to wait for the other processes at the start.",
        decides="nothing",
        default=300,
        least=1,
    )
