"""Manifests fit JobSet's published schema and what GKE demands of TPU slices."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from inference.planner.machines import MACHINES
from launch import gke
from launch.__main__ import main
from launch.package import Archive
from launch.settings import extraction_flags, read_settings
from tests.launch.conftest import executable
from tests.launch.test_worker_script import HOSTILE

CRD = Path(__file__).parents[3] / "shared/data/jobset-crd.yaml"
ARCHIVE = Archive(data=b"", sha256="ab" * 32, python="3.11")


@pytest.fixture(scope="session")
def schema():
    """Of a JobSet; unknown fields, which a cluster would drop silently, are refused."""
    if not CRD.exists():
        pytest.skip(f"JobSet's schema is not here ({CRD.name})")
    crd = yaml.load(CRD.read_text(), yaml.CSafeLoader)
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1alpha2"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"]["x-kubernetes-preserve-unknown-fields"] = True

    def close(node):
        if isinstance(node, dict):
            if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node.setdefault("additionalProperties", False)
            for value in node.values():
                close(value)
        elif isinstance(node, list):
            for value in node:
                close(value)

    close(schema)
    jsonschema.Draft7Validator.check_schema(schema)
    return schema


def gke_problems(jobset):
    """What GKE would hold against a JobSet on a TPU slice."""
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    selector = pod["nodeSelector"]
    wanted = {
        (m.gke_accelerator, m.gke_topology): m
        for m in MACHINES.values()
    }.get((
        selector.get("cloud.google.com/gke-tpu-accelerator"),
        selector.get("cloud.google.com/gke-tpu-topology"),
    ))  # fmt: skip
    if wanted is None:
        yield "the node selectors name no slice"
        return
    if replicated["replicas"] != 1:
        yield "several slices"
    if not job["parallelism"] == job["completions"] == wanted.hosts:
        yield "as many pods as hosts are needed"
    if job.get("completionMode") != "Indexed":
        yield "pods need indices"
    resources = [container.get("resources", {}) for container in pod["containers"]]
    asked = [r for r in resources if "google.com/tpu" in r.get("requests", {})]
    if len(asked) != 1 or asked[0]["requests"] != asked[0].get("limits"):
        yield "one container takes the chips, with requests that are limits"
    elif asked[0]["requests"]["google.com/tpu"] != str(wanted.chips_per_host):
        yield "a pod takes all chips of its host"
    if pod["restartPolicy"] != "Never" or job["backoffLimit"] != 0:
        yield "all pods must start again together"
    if not jobset["spec"]["network"].get("enableDNSHostnames"):
        yield "pods must find each other by name"
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", jobset["metadata"]["name"]) is None:
        yield "a name that is none"
    if len(f"{jobset['metadata']['name']}-{replicated['name']}-0-0-abcde") > 63:
        yield "a name too long for host names"


VARIANTS = {
    "plain": {},
    "spot": {"machine": {"provisioning": "spot"}},
    "one host": {"machine": {"slice": "v5litepod-8"}},
    "v4": {"machine": {"slice": "v4-64"}},
    "v5p": {"machine": {"slice": "v5p-128"}},
    "v6e": {"machine": {"slice": "v6e-64"}},
    "secret": {"gke": {"hugging_face_token_secret": "hf/token", "namespace": "team"}},
    "long name": {"name": "a" * 40},
    **{name: {"extraction": {"revision": value}} for name, value in HOSTILE.items()},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_manifests_fit(variant, schema, write_settings):
    settings = read_settings(write_settings(**VARIANTS[variant]))
    jobset = yaml.safe_load(gke.manifest_text(settings, ARCHIVE))
    assert jobset == gke.manifest(settings, ARCHIVE)
    jsonschema.validate(jobset, schema, jsonschema.Draft7Validator)
    assert list(gke_problems(jobset)) == []


def test_the_checks_can_fail(schema, settings):
    for path, value in {
        "spec.replicatedJobs.0.template.spec.parallelism": 3,
        "spec.replicatedJobs.0.template.spec.template.spec.nodeSelector": {},
        "spec.replicatedJobs.0.template.spec.template.spec.containers.0.resources": {},
        "spec.network": {},
    }.items():
        jobset = gke.manifest(settings, ARCHIVE)
        _set(jobset, path, value)
        assert list(gke_problems(jobset)), path
    for path, value in {
        "spec.failurePolicy.maxRestart": 3,
        "spec.replicatedJobs.0.template.spec.parallelism": "16",
        "spec.replicatedJobs.0.template.spec.template.spec.containers.0.image": 3,
    }.items():
        jobset = gke.manifest(settings, ARCHIVE)
        _set(jobset, path, value)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(jobset, schema, jsonschema.Draft7Validator)


def _set(node, path, value):
    *way, last = path.split(".")
    for name in way:
        node = node[int(name) if name.isdecimal() else name]
    node[last] = value


def expanded(words):
    """As Kubernetes does with a container's command, none of whose variables is defined."""

    def one(match):
        return "$" if match[0] == "$$" else match[0]

    return [re.sub(r"\$\$|\$\([^)]*\)", one, word) for word in words]


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_reach_the_command_and_nothing_else(value, write_settings, tmp_path):
    """The pod's command is run by bash, with stand-ins for its programs, in a folder for /work."""
    text = HOSTILE[value]
    extraction = {"revision": text, "gcs_bucket": f"gs://my-bucket/{text}"}
    settings = read_settings(write_settings(extraction=extraction))
    jobset = yaml.safe_load(gke.manifest_text(settings, ARCHIVE))
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    fetch = expanded(pod["initContainers"][0]["command"])
    assert fetch[-2] == f"gs://my-bucket/{text}/_launch/{ARCHIVE.name}"

    work, record = tmp_path / "work", tmp_path / "job.json"
    work.mkdir()
    executable(tmp_path / "bin" / "sha256sum", "#!/bin/sh\ncat >/dev/null\n")
    executable(tmp_path / "bin" / "tar", "#!/bin/sh\n")
    executable(tmp_path / "bin" / "python", "#!/bin/sh\nmkdir -p venv/bin; cp ../pip venv/bin/pip\n"
               "cp ../job venv/bin/python\n")  # fmt: skip
    executable(tmp_path / "pip", "#!/bin/sh\n")
    executable(tmp_path / "job", "#!/usr/bin/env python3\nimport json, sys\n"
               f"json.dump(sys.argv[1:], open({str(record)!r}, 'w'))\n")  # fmt: skip
    command = expanded(pod["containers"][0]["command"])
    assert command[:2] == ["bash", "-c"]
    command[2] = command[2].replace(gke.FOLDER, str(work))
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=60)
    assert json.loads(record.read_text()) == [
        "-m",
        gke.MODULE,
        *extraction_flags(settings.extraction),
    ]
    assert not list(tmp_path.rglob("canary*"))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed here")
def test_shellcheck_finds_nothing(tmp_path):
    script = tmp_path / "pod.sh"
    script.write_text("#!/usr/bin/env bash\n" + gke.SCRIPT)
    found = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_secrets_are_names_only(write_settings):
    section = {"hugging_face_token_secret": "hf/token"}
    text = gke.manifest_text(read_settings(write_settings(gke=section)), ARCHIVE)
    assert "secretKeyRef" in text
    assert "value: hf" not in text


def test_dry_run_and_apply(write_settings, cloud, capsys, tmp_path):
    path = str(write_settings())
    assert main(["gke", path, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out.partition("\n# start")[0])["kind"] == "JobSet"
    assert "kubectl apply --filename=arc-05b.launch/jobset.yaml" in out
    assert cloud.calls() == []
    executable(cloud.bin / "kubectl", f'#!/bin/sh\necho "$@" >"{tmp_path}/kubectl"\n')
    assert main(["gke", path]) == 0
    assert (tmp_path / "kubectl").read_text().split() == gke.apply("arc-05b.launch/jobset.yaml")[1:]
    ((*_, target),) = [call for call in cloud.calls() if "cp" in call]
    assert target in (tmp_path / "arc-05b.launch" / "jobset.yaml").read_text()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed here")
def test_the_real_kubectl_takes_every_command(settings, tmp_path):
    """It parses first, and then finds no cluster."""
    (tmp_path / "jobset.yaml").write_text(gke.manifest_text(settings, ARCHIVE))
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(tmp_path),
                   "KUBECONFIG": str(tmp_path / "none")}  # fmt: skip

    def answer(command):
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60,
            check=False,
        ).stderr  # fmt: skip

    for command in (
        gke.apply("jobset.yaml"), gke.delete(settings), gke.status(settings), gke.logs(settings),
    ):  # fmt: skip
        told = answer([*command, "--server=http://127.0.0.1:1", "--request-timeout=2s"])
        assert "127.0.0.1:1" in told, told
    assert "unknown flag" in answer([*gke.status(settings), "--selectors=x"])
