"""All `gcloud` commands, for this machine or a worker, and the parsing of their output."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.planner.machines import machine as known_machine
from launch.commands import Command
from launch.settings import SECRET, MachineSettings, RunSettings, bucket, on_machine

ATTEMPT_LABEL, SOURCE_LABEL = "launch-attempt", "launch-source"
"""Labels of a node: name of its attempt, and version of the program it runs."""

UNIT = "qwen-launch"
"""Name of the systemd unit of a worker."""

JOURNAL = f"sudo journalctl --no-pager --lines=60 --unit=google-startup-scripts --unit={UNIT}"
START_AGAIN = "sudo google_metadata_script_runner startup"


def _place(machine: MachineSettings) -> Command:
    return [f"--project={machine.project}", f"--zone={machine.zone}", "--quiet"]


def create(settings: RunSettings, script: Path, attempt: str, source: str) -> Command:
    """Return the command that requests a slice.

    Args:
        settings: settings of the run.
        script: script that every worker runs whenever it starts; no commas in its path.
        attempt: name of the attempt.
        source: beginning of the archive's sha256.

    Raises:
        InputError: the slice is not known.
    """
    machine = on_machine(settings)
    slice_ = known_machine(machine.slice)
    optional = {
        "--service-account": machine.service_account,
        "--network": machine.network,
        "--subnetwork": machine.subnetwork,
    }
    return [
        *("gcloud", "compute", "tpus", "queued-resources", "create", settings.name),
        *_place(machine),
        f"--node-id={settings.name}",
        f"--accelerator-type={slice_.name}",
        f"--runtime-version={machine.runtime_version or slice_.runtime_version}",
        f"--metadata-from-file=startup-script={script}",
        f"--labels={ATTEMPT_LABEL}={attempt},{SOURCE_LABEL}={source}",
        # An hour more than `launch run` waits, for requests that nobody watches.
        f"--valid-until-duration={round(settings.limits.wait_hours * 3600) + 3600}s",
        *([] if machine.provisioning == "on-demand" else [f"--{machine.provisioning}"]),
        *(f"{flag}={value}" for flag, value in optional.items() if value is not None),
        *(["--internal-ips"] if machine.internal_ips else []),
    ]


def describe(settings: RunSettings) -> Command:
    """Return the command that prints the state of the slice as JSON."""
    return [
        *("gcloud", "compute", "tpus", "queued-resources", "describe", settings.name),
        *_place(on_machine(settings)),
        "--format=json",
    ]


def delete(settings: RunSettings) -> Command:
    """Return the command that deletes the slice, whatever runs on it."""
    return [
        *("gcloud", "compute", "tpus", "queued-resources", "delete", settings.name),
        *_place(on_machine(settings)),
        "--force",
    ]


def ssh(settings: RunSettings, worker: int, remote: str) -> Command:
    """Return the command that runs a shell line, one of this module's constants, on a worker."""
    return [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", settings.name),
        *_place(on_machine(settings)),
        f"--worker={worker}",
        f"--command={remote}",
        *(["--internal-ip"] if on_machine(settings).internal_ips else []),
    ]


def upload(path: str, address: str) -> Command:
    """Return the command that copies a file to the bucket."""
    return ["gcloud", "storage", "cp", "--quiet", path, address]


def download(address: str, path: str) -> Command:
    """Return the command that copies a file from the bucket."""
    return ["gcloud", "storage", "cp", "--quiet", address, path]


def cat(address: str) -> Command:
    """Return the command that prints files of the bucket; the address may contain `*`."""
    return ["gcloud", "storage", "cat", "--quiet", address]


def read_secret(name: str) -> Command:
    """Return the command that prints a secret; only workers run it.

    Args:
        name: `projects/P/secrets/S`, or a version of it.
    """
    found = SECRET.fullmatch(name)
    assert found, name
    project, secret, version = found.groups()
    return [
        *("gcloud", "secrets", "versions", "access", version or "latest"),
        *(f"--secret={secret}", f"--project={project}", "--quiet"),
    ]


def launch_folder(settings: RunSettings) -> str:
    """Return the prefix of launch's own files, below the run's prefix."""
    return f"{bucket(settings)}/_launch"


def attempt_folder(settings: RunSettings, attempt: str) -> str:
    """Return the prefix of an attempt's reports: `worker-N.status` and `worker-N.log`."""
    return f"{launch_folder(settings)}/attempt-{attempt}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resource:
    """The slice, as `describe` printed it.

    Attributes:
        state: Google's name of the state, or the output if there is none.
        attempt: name of its attempt; None: `launch` did not create it.
        source: version of the program it runs.
        detail: reason of a failure, if there is one.
    """

    state: str
    attempt: str | None = None
    source: str | None = None
    detail: str = ""


def parse_resource(text: str) -> Resource:
    """Return the slice from the output of `describe`."""
    try:
        found = json.loads(text)
        state = found["state"]["state"]
    except (ValueError, KeyError, TypeError):
        return Resource(state=f"no state in {text.strip()[:200]!r}")
    nodes: list[Any] = (found.get("tpu") or {}).get("nodeSpec") or [{}]
    labels: Mapping[str, str] = (nodes[0].get("node") or {}).get("labels") or {}
    error = (found["state"].get("failedData") or {}).get("error") or {}
    return Resource(
        state=str(state),
        attempt=labels.get(ATTEMPT_LABEL),
        source=labels.get(SOURCE_LABEL),
        detail=str(error.get("message", "")),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A worker's last report about itself.

    Attributes:
        phase: installing, running, stopped (the machine is being deleted) or exited.
        line: the whole line; a new line means that the worker is alive.
        code: exit status, if it has exited.
        exited_in: the phase in which it exited.
    """

    phase: str
    line: str
    code: int | None = None
    exited_in: str = ""


def parse_reports(text: str, attempt: str) -> dict[int, Report]:
    """Return the reports of an attempt's workers, by worker number.

    A line is `ATTEMPT WORKER SECONDS PHASE`; after `exited` follow the exit status and the phase.
    """
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 4 or words[0] != attempt or not words[1].isdecimal():
            continue
        code = None
        if words[3] == "exited" and len(words) == 6 and words[4].isdecimal():
            code = int(words[4])
        found[int(words[1])] = Report(
            phase=words[3],
            line=line,
            code=code,
            exited_in=words[5] if code is not None else "",
        )
    return found
