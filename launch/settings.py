"""One YAML file for a run: what is extracted, on which machine, and within which limits.

    name: arc-05b
    extraction:                     # flags of the distributed command
      model_path: Qwen/Qwen2.5-0.5B
      tasks_file: gs://my-bucket/arc_tasks.json
      gcs_bucket: gs://my-bucket/runs/arc-05b
    machine:
      slice: v5litepod-64
      project: my-project
      zone: us-west4-a

Every field is checked here, before anything is created anywhere. docs/launch.md lists them all.
"""

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Literal

from inference.errors import InputError
from inference.settings.commands import DistributedSettings
from inference.settings.fields import MAX_NUMBER, shown
from inference.settings.yaml_file import build, read_yaml

NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""What Google's machines and Kubernetes' objects may be called, with room for endings."""

PROJECT = re.compile(r"([a-z][-.a-z0-9]*:)?[a-z][-a-z0-9]{2,61}[a-z0-9]")
ZONE = re.compile(r"[a-z]+(-[a-z0-9]+){2}")
WORD = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
NETWORK = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_./:]*")
ACCOUNT = re.compile(r"[a-z0-9][-a-z0-9.]*@[a-z0-9][-a-z0-9.]*")
SECRET = re.compile(r"projects/([-a-z0-9.:]+)/secrets/([-\w]+)(?:/versions/([0-9]+|latest))?", re.A)
BUCKET = re.compile(r"gs://[a-z0-9][-a-z0-9_.]{1,220}[a-z0-9](/(?!\.{0,2}(/|$))[^/*?\[\]#]+)*/?")
IMAGE = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_./:@]*")
QUANTITY = re.compile(r"[1-9][0-9]*(Ki|Mi|Gi|Ti)")
PATH = re.compile(r"[A-Za-z0-9_./~+-][-A-Za-z0-9_./~+ ]*")

SET_BY_LAUNCH = ("resume", "coordinator_address", "num_processes", "process_id")
"""Flags of the distributed command that are not the user's here."""


def fits(pattern: re.Pattern[str], name: str, value: str | None, example: str) -> None:
    """Refuses a value that does not look right.

    Raises:
        InputError: says what would.
    """
    if value is not None and not pattern.fullmatch(value):
        raise InputError(f"{name} must look like {example}, not {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """A TPU slice in a Google Cloud project.

    Attributes:
        slice: as in `inference.planner.machines`: v5litepod-64, v6e-64, v4-64, v5p-128, ...
        project: that pays.
        zone: that has such slices.
        provisioning: spot is cheaper and may be taken away at any time; reserved needs a
            reservation.
        runtime_version: TPU software; None: the one the slice's generation wants.
        service_account: that the workers act as; None: the project's default.
        network: None: the project's default.
        subnetwork: of the network.
        internal_ips: without external addresses; needs a NAT for installing.
    """

    slice: str
    project: str
    zone: str
    provisioning: Literal["on-demand", "spot", "reserved"] = "on-demand"
    runtime_version: str | None = None
    service_account: str | None = None
    network: str | None = None
    subnetwork: str | None = None
    internal_ips: bool = False

    def __post_init__(self):
        fits(WORD, "slice", self.slice, "v5litepod-64")
        fits(PROJECT, "project", self.project, "my-project-123")
        fits(ZONE, "zone", self.zone, "us-west4-a")
        fits(WORD, "runtime_version", self.runtime_version, "v2-alpha-tpuv5-lite")
        example = "name@my-project.iam.gserviceaccount.com"
        fits(ACCOUNT, "service_account", self.service_account, example)
        fits(NETWORK, "network", self.network, "my-network")
        fits(NETWORK, "subnetwork", self.subnetwork, "my-subnetwork")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """When to give up.

    Attributes:
        attempts: slices that are asked for, one after the other.
        restarts: of the command on a slice that stays.
        hours: that slices run, all attempts together.
        wait_hours: for a slice to be granted, each time.
        start_minutes: from a slice being there to a report of every worker.
        silent_minutes: that a worker which has reported may be silent.
        dollars: that slices may cost, all attempts together; needs `dollars_per_hour`.
        dollars_per_hour: of the whole slice.
    """

    attempts: int = 10
    restarts: int = 3
    hours: float = 24.0
    wait_hours: float = 48.0
    start_minutes: float = 20.0
    silent_minutes: float = 15.0
    dollars: float | None = None
    dollars_per_hour: float | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = {"restarts": 0, "attempts": 1}.get(field.name)
            if value is None:
                continue
            if not (value > 0 if least is None else value >= least):  # also refuses NaN
                words = "above 0" if least is None else f"at least {least}"
                raise InputError(f"{field.name} must be {words}, not {value}")
            if not value <= MAX_NUMBER:
                raise InputError(f"{field.name} must be at most {MAX_NUMBER}, not {shown(value)}")
        if (self.dollars is None) != (self.dollars_per_hour is None):
            raise InputError("dollars and dollars_per_hour go together")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GkeSettings:
    """What a cluster needs to know besides.

    Attributes:
        namespace: of the cluster.
        service_account: of Kubernetes, bound to one of Google's that may use the bucket.
        image: with Python; None: `python` of the version that is used here.
        cache: size of the volume for the program, the model and the spool.
        hugging_face_token_secret: `name/key` of a Kubernetes secret.
    """

    namespace: str = "default"
    service_account: str = "default"
    image: str | None = None
    cache: str = "100Gi"
    hugging_face_token_secret: str | None = None

    def __post_init__(self):
        fits(NAME, "namespace", self.namespace, "default")
        fits(NAME, "service_account", self.service_account, "extraction")
        fits(IMAGE, "image", self.image, "python:3.12-slim")
        fits(QUANTITY, "cache", self.cache, "100Gi")
        pattern = re.compile(rf"{NAME.pattern}/[-A-Za-z0-9_.]+")
        fits(pattern, "hugging_face_token_secret", self.hugging_face_token_secret, "hf/token")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """A job of a SLURM cluster, whose nodes share the folders.

    Attributes:
        nodes: of the job.
        tasks_per_node: processes of the run on each.
        gpus_per_task: 0: the processes run on CPU.
        cpus_per_task: of each process.
        hours: after which SLURM ends the job.
        partition: None: the cluster's default.
        account: None: the user's default.
        python: of the environment that this project is installed in.
    """

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_task: int = 0
    cpus_per_task: int = 8
    hours: float = 24.0
    partition: str | None = None
    account: str | None = None
    python: str = "python"

    def __post_init__(self):
        for name in ("nodes", "tasks_per_node", "cpus_per_task"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.gpus_per_task < 0:
            raise InputError(f"gpus_per_task must be at least 0, not {self.gpus_per_task}")
        if not 0 < self.hours < math.inf:
            raise InputError(f"hours must be above 0, not {self.hours}")
        fits(WORD, "partition", self.partition, "gpu")
        fits(WORD, "account", self.account, "my-account")
        fits(PATH, "python", self.python, "/shared/venv/bin/python")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A run. Machine and bucket may be left out where no cloud is used.

    Attributes:
        name: of the run, its machine and its jobs.
        extraction: flags of the distributed command.
        machine: for TPU VMs and GKE.
        limits: when to give up.
        hugging_face_token_secret: `projects/P/secrets/S`, which TPU workers read when they start.
        gke: for `launch gke`.
        slurm: for `launch slurm`.
    """

    name: str
    extraction: DistributedSettings
    machine: MachineSettings | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)
    hugging_face_token_secret: str | None = None
    gke: GkeSettings = dataclasses.field(default_factory=GkeSettings)
    slurm: SlurmSettings = dataclasses.field(default_factory=SlurmSettings)

    def __post_init__(self):
        fits(NAME, "name", self.name, "arc-05b (a-z, 0-9 and -, at most 40)")
        fits(BUCKET, "extraction.gcs_bucket", self.extraction.gcs_bucket, "gs://bucket/prefix")
        example = "projects/my-project/secrets/hugging-face"
        fits(SECRET, "hugging_face_token_secret", self.hugging_face_token_secret, example)


def read_settings(path: Path) -> RunSettings:
    """The settings of a file.

    Raises:
        InputError: it cannot be read, or a field of it is wrong.
    """
    data = read_yaml(path)
    try:
        flags = data.get("extraction") if isinstance(data, dict) else None
        for name in SET_BY_LAUNCH:
            if isinstance(flags, dict) and name in flags:
                raise InputError(f"extraction.{name} is set by launch; leave it out")
        return build(RunSettings, data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def on_machine(settings: RunSettings) -> MachineSettings:
    """The machine of a run whose workers share nothing but a bucket.

    Raises:
        InputError: there is none, no bucket, or an input that the workers could not read.
    """
    if settings.machine is None:
        raise InputError("machine: slice, project and zone must be given")
    flags = settings.extraction
    address = flags.cloud()
    if address is None:
        raise InputError("extraction.gcs_bucket must be given: the workers share nothing else")
    fits(BUCKET, "extraction: the bucket", address, "gs://bucket/prefix")
    if flags.tasks_file is not None and not flags.tasks_file.startswith("gs://"):
        raise InputError(
            f"extraction.tasks_file: the workers cannot read {flags.tasks_file!r}; put it into the"
            " bucket: gs://..."
        )
    if flags.plan is not None and not flags.plan.startswith("gs://"):
        raise InputError(
            f"extraction.plan: the workers cannot read {flags.plan!r}; put it into the bucket:"
            " gs://..."
        )
    for name in ("model_path", "dataset"):
        value = getattr(flags, name)
        if value is not None and (value.startswith(("/", ".", "~")) or os.path.exists(value)):
            raise InputError(
                f"extraction.{name}: the workers cannot read the local {value!r}; give a hub name"
                " or gs://..."
            )
    return settings.machine


def bucket(settings: RunSettings) -> str:
    """Of a run that has one, without a slash at its end."""
    return (settings.extraction.cloud() or "").rstrip("/")


def extraction_flags(extraction: DistributedSettings) -> list[str]:
    """What the file says of the distributed command, as its flags; always resuming.

    A flag and its value are one argument, so that no value is taken for a flag.
    """
    flags = ["--resume=True"]
    for field in dataclasses.fields(extraction):
        value = getattr(extraction, field.name)
        if field.name in SET_BY_LAUNCH:
            continue
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        if value == default:
            continue
        if isinstance(value, list):
            flags += [f"--{field.name}", *map(str, value)]
        else:
            flags.append(f"--{field.name}={value}")
    return flags
