"""A run as a SkyPilot task: a managed job finds a slice, and another one if it is preempted.

The slice's name and TPU software come from our own table, because SkyPilot accepts any text. All
hosts of a slice run the task's command, and JAX finds the other hosts by itself. Committed units
stay, and the next slice resumes from them.
"""

import shlex

import yaml

from extraction.command_parser import NO_STORAGE
from inference.errors import InputError
from inference.planner.machines import machine as known_machine
from launch.commands import Command
from launch.package import ROOT
from launch.settings import RunSettings, extraction_flags, on_machine
from launch.worker_script import INSTALLER, MODULE

TRIED_AGAIN = [NO_STORAGE, 143]
"""Exit statuses after which the same command is started again."""

PYTHON = "~/extraction/bin/python"


def task(settings: RunSettings) -> str:
    """Return the task's YAML.

    Raises:
        InputError: there is no such slice, it is reserved, or the program is not a checkout.
    """
    machine = on_machine(settings)
    slice_ = known_machine(machine.slice)
    if machine.provisioning == "reserved":
        raise InputError("machine.provisioning: for reserved slices use `launch create`")
    if not (ROOT / "constraints.txt").exists():
        raise InputError(
            f"{ROOT} is not a checkout of the project, which SkyPilot copies to the slice; run this"
            " command in a checkout"
        )
    install = [PYTHON.rpartition("/")[0] + "/pip", "install", "--constraint", "constraints.txt"]
    job = ["-m", MODULE, *extraction_flags(settings.extraction)]
    document = {
        "name": settings.name,
        "resources": {
            "infra": f"gcp/{machine.zone.rpartition('-')[0]}/{machine.zone}",
            "accelerators": f"tpu-{slice_.name}",
            "accelerator_args": {
                "tpu_vm": True,
                "runtime_version": machine.runtime_version or slice_.runtime_version,
                "gcp_queued_resource": True,
            },
            "use_spot": machine.provisioning == "spot",
            "job_recovery": {
                "max_restarts_on_errors": settings.limits.restarts,
                "recover_on_exit_codes": TRIED_AGAIN,
            },
        },
        "workdir": str(ROOT),
        "setup": "\n".join(
            [
                f"python3 -m pip install --quiet --user {INSTALLER}",
                f"python3 -m uv venv --quiet --seed --python 3.11 {PYTHON.rsplit('/', 2)[0]}",
                f"{' '.join(install)} --quiet {shlex.quote('.[tpu]')}",
            ]
        ),
        "run": f"{PYTHON} {shlex.join(job)}",
    }
    if settings.hugging_face_token_secret:
        document["secrets"] = {"HF_TOKEN": None}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)


def start(settings: RunSettings, file: str) -> Command:
    """Return the command that starts the task and watches it."""
    secret = ["--secret", "HF_TOKEN"] if settings.hugging_face_token_secret else []
    return ["sky", "jobs", "launch", "--name", settings.name, *secret, file]
