"""The settings of a run in one YAML file: what is extracted, on which machine, and the limits.

    name: arc-05b
    extraction:                     # flags of the distributed command
      model_path: Qwen/Qwen2.5-0.5B
      tasks_file: gs://my-bucket/arc_tasks.json
      gcs_bucket: gs://my-bucket/runs/arc-05b
    machine:
      slice: v5litepod-64
      project: my-project
      zone: us-west4-a

Every field is checked here, before anything is created. docs/launch.md lists all fields.
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
"""Names allowed for Google's machines and Kubernetes' objects, with room for suffixes."""

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
"""Flags of the distributed command that launch sets itself."""


def fits(pattern: re.Pattern[str], name: str, value: str | None, example: str) -> None:
    """Refuse a value that does not match a pattern.

    Raises:
        InputError: it does not match; the message shows an example.
    """
    if value is not None and not pattern.fullmatch(value):
        raise InputError(f"{name} must look like {example}, not {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """A TPU slice in a Google Cloud project.

    Attributes:
        slice: name in `inference.planner.machines`: v5litepod-64, v6e-64, v4-64, v5p-128, ...
        project: Google Cloud project that pays.
        zone: zone that has such slices.
        provisioning: on-demand, spot (cheaper, may be preempted at any time) or reserved (needs a
            reservation).
        runtime_version: TPU software version; None: that of the slice's generation.
        service_account: account of the workers; None: the project's default.
        network: network of the workers; None: the project's default.
        subnetwork: subnetwork of the workers; None: the network's default.
        internal_ips: whether workers have no external addresses; installing then needs a NAT.
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
        attempts: most slices that are requested, one after the other.
        restarts: most restarts of the command on the same slice.
        hours: most hours that slices run, all attempts together.
        wait_hours: most hours to wait for a slice to be granted, for each request.
        start_minutes: most minutes from the start of a slice to a report of every worker.
        silent_minutes: most minutes between two reports of a worker.
        dollars: most dollars for slices, all attempts together; needs `dollars_per_hour`.
        dollars_per_hour: price of the whole slice.
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
            raise InputError("dollars and dollars_per_hour go together; give both or none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GkeSettings:
    """Settings of a run on a Kubernetes cluster.

    Attributes:
        namespace: Kubernetes namespace.
        service_account: Kubernetes service account, bound to a Google account that may use the
            bucket.
        image: container image with Python; None: `python` in the version used here.
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
        nodes: number of nodes.
        tasks_per_node: processes of the run on each node.
        gpus_per_task: GPUs of each process; 0: it runs on CPU.
        cpus_per_task: CPUs of each process.
        hours: time limit of the job.
        partition: SLURM partition; None: the cluster's default.
        account: SLURM account; None: the user's default.
        python: Python of the environment in which this project is installed.
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
    """Settings of a run. Machine and bucket may be omitted if no cloud is used.

    Attributes:
        name: name of the run, its machine and its jobs.
        extraction: flags of the distributed command.
        machine: TPU slice, for TPU VMs and GKE.
        limits: when to give up.
        hugging_face_token_secret: `projects/P/secrets/S`, which TPU workers read when they start.
        gke: settings of `launch gke`.
        slurm: settings of `launch slurm`.
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
    """Return the settings in a file.

    Raises:
        InputError: the file cannot be read, or a field is wrong.
    """
    data = read_yaml(path)
    try:
        flags = data.get("extraction") if isinstance(data, dict) else None
        for name in SET_BY_LAUNCH:
            if isinstance(flags, dict) and name in flags:
                raise InputError(f"extraction.{name} is set by launch; remove it")
        return build(RunSettings, data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def on_machine(settings: RunSettings) -> MachineSettings:
    """Return the machine of a run whose workers share nothing but a bucket.

    Raises:
        InputError: there is no machine, no bucket, or an input that workers cannot read.
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
    """Return the bucket prefix of a run, without a slash at its end; "" if it has none."""
    return (settings.extraction.cloud() or "").rstrip("/")


def extraction_flags(extraction: DistributedSettings) -> list[str]:
    """Return the file's settings as flags of the distributed command, with --resume.

    A flag and its value are one argument, so that a value cannot be mistaken for a flag.
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
