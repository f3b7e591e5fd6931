"""A run on Google Kubernetes Engine: a JobSet of one job, with a pod for each host of the slice.

GKE needs as many pods as the slice has hosts, each with all chips of a host, and node selectors
that name the slice; it then tells JAX in each pod its process number. JobSet restarts all pods when
one fails. A pod runs one fixed script; the values of a run are its arguments.
"""

from typing import Any

import yaml

from extraction.command_parser import FINAL
from inference.planner.machines import machine as known_machine
from launch import gcloud
from launch.commands import Command
from launch.package import Archive
from launch.settings import RunSettings, extraction_flags, on_machine
from launch.worker_script import MODULE

FETCH_IMAGE = "google/cloud-sdk:slim"
JOB, CONTAINER, VOLUME, FOLDER = "workers", "extraction", "work", "/work"

SCRIPT = f"""\
set -euo pipefail
cd {FOLDER}
printf '%s  source.tar.gz\\n' "$1" | sha256sum --check --quiet
shift
mkdir -p source job
tar --extract --gzip --file=source.tar.gz --directory=source
python -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \\
  --requirement=source/requirements.txt --constraint=source/constraints.txt
cd job
export PYTHONPATH={FOLDER}/source PYTHONUNBUFFERED=1
exec {FOLDER}/venv/bin/python -m {MODULE} "$@"
"""


def manifest(settings: RunSettings, archive: Archive) -> dict[str, Any]:
    """Return the JobSet.

    Args:
        settings: settings of the run.
        archive: the program, which must be in the bucket when the pods start.

    Raises:
        InputError: the slice is not known, or the run has no bucket.
    """
    slice_ = known_machine(on_machine(settings).slice)
    refused = {
        "action": "FailJob",
        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [*FINAL]},
    }
    job = {
        "parallelism": slice_.hosts,
        "completions": slice_.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [refused]},
        "template": {"spec": _pod(settings, archive)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": settings.name,
            "namespace": settings.gke.namespace,
            # All pods on one slice.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": settings.limits.attempts - 1,
                "rules": [
                    {
                        "name": "badInput",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": JOB, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(settings: RunSettings, archive: Archive) -> dict[str, Any]:
    """Return the specification of a pod, which works on one host of the slice."""
    machine = on_machine(settings)
    slice_ = known_machine(machine.slice)
    gke = settings.gke
    selector = {
        "cloud.google.com/gke-tpu-accelerator": slice_.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": slice_.gke_topology,
    }
    if machine.provisioning == "spot":
        selector["cloud.google.com/gke-spot"] = "true"
    chips = {"google.com/tpu": str(slice_.chips_per_host)}
    mounts = [{"name": VOLUME, "mountPath": FOLDER}]
    environment: list[dict[str, Any]] = [{"name": "HOME", "value": FOLDER}]
    if gke.hugging_face_token_secret is not None:
        name, _, key = gke.hugging_face_token_secret.partition("/")
        reference = {"secretKeyRef": {"name": name, "key": key}}
        environment.append({"name": "HF_TOKEN", "valueFrom": reference})
    source = f"{gcloud.launch_folder(settings)}/{archive.name}"
    fetch = gcloud.download(source, f"{FOLDER}/source.tar.gz")
    work = ["bash", "-c", SCRIPT, "bash", archive.sha256, *extraction_flags(settings.extraction)]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 90,
        "serviceAccountName": gke.service_account,
        "nodeSelector": selector,
        "volumes": [{"name": VOLUME, "emptyDir": {"sizeLimit": gke.cache}}],
        "initContainers": [
            {
                "name": "fetch",
                "image": FETCH_IMAGE,
                "command": literal(fetch),
                "env": [{"name": "HOME", "value": FOLDER}],
                "volumeMounts": mounts,
            }
        ],
        "containers": [
            {
                "name": CONTAINER,
                "image": gke.image or f"python:{archive.python}-slim",
                "command": literal(work),
                "env": environment,
                "ports": [{"containerPort": 8471}, {"containerPort": 8482}],
                "resources": {"requests": chips, "limits": chips},
                "volumeMounts": mounts,
            }
        ],
    }


def literal(words: Command) -> Command:
    """Return arguments escaped for Kubernetes, which expands `$(NAME)` and turns `$$` into `$`."""
    return [word.replace("$", "$$") for word in words]


def manifest_text(settings: RunSettings, archive: Archive) -> str:
    """Return the JobSet as YAML."""
    return yaml.dump(
        manifest(settings, archive), sort_keys=False, allow_unicode=True, Dumper=_Dumper
    )


class _Dumper(yaml.SafeDumper):
    """A YAML dumper without aliases, and with block style for texts of several lines."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def apply(file: str) -> Command:
    """Return the command that starts the run of a manifest."""
    return ["kubectl", "apply", f"--filename={file}"]


def delete(settings: RunSettings) -> Command:
    """Return the command that deletes the run."""
    return ["kubectl", "delete", "jobset", settings.name, *_in_namespace(settings)]


def status(settings: RunSettings) -> Command:
    """Return the command that shows the run and its pods."""
    return ["kubectl", "get", "jobset,pods", *_in_namespace(settings), *_selector(settings)]


def logs(settings: RunSettings) -> Command:
    """Return the command that prints the logs of all pods."""
    return [
        "kubectl", "logs", *_in_namespace(settings), *_selector(settings),
        f"--container={CONTAINER}", "--prefix", "--tail=-1", "--max-log-requests=256",
    ]  # fmt: skip


def _in_namespace(settings: RunSettings) -> Command:
    return [f"--namespace={settings.gke.namespace}"]


def _selector(settings: RunSettings) -> Command:
    return [f"--selector=jobset.sigs.k8s.io/jobset-name={settings.name}"]
