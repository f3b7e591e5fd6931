"""Each wrong field is refused with one message that names it; what is right becomes the flags."""

import dataclasses

import pytest

from inference.errors import InputError
from inference.settings.command_line import make_parser, parse_settings
from inference.settings.commands import DistributedSettings
from launch.__main__ import main
from launch.settings import SET_BY_LAUNCH, extraction_flags, on_machine, read_settings


def machine(**fields):
    return {"machine": fields}


def extraction(**fields):
    return {"extraction": fields}


WRONG = {
    "no text": ({"name": 3}, "name must be text, not 3; put it in quotes"),
    "a name that machines cannot have": ({"name": "My run"}, "name must look like"),
    "a long name": ({"name": "a" * 41}, "name must look like"),
    "a dash first": ({"name": "-a"}, "name must look like"),
    "an unknown section": ({"machines": {}}, "no field 'machines'; did you mean machine?"),
    "an unknown field": (machine(zon="x"), "machine: there is no field 'zon'; did you mean zone?"),
    "an unknown flag": (
        extraction(layer_to_extract=[1]),
        "extraction: there is no field 'layer_to_extract'; did you mean layers_to_extract?",
    ),
    "a flag of launch's own": (extraction(resume=True), "extraction.resume is set by launch"),
    "no list": (extraction(layers_to_extract=6), "layers_to_extract must be a list"),
    "a wrong item": (
        extraction(layers_to_extract=[6, "7"]),
        "layers_to_extract[1] must be a whole number, not '7'",
    ),
    "true as a number": (extraction(batch_size=True), "batch_size must be a whole number"),
    "a number as true": (extraction(scan_layers=1), "scan_layers must be true or false"),
    "no choice": (extraction(dtype="float16"), "dtype must be one of auto, float32, bfloat16"),
    "what the command refuses": (extraction(mesh_shape="8x8"), "--mesh_shape must look like 8,8"),
    "a value that looks like a flag": (
        extraction(positions=["--x"]),
        "'--x' must not be empty or begin with",
    ),
    "a line break": (extraction(model_path="a\nb"), "holds a control character"),
    "a NUL": (machine(project="a\0b"), "holds a control character"),
    "no provisioning": (machine(provisioning="cheap"), "must be one of on-demand, spot, reserved"),
    "no zone": (machine(zone="us-west4"), "zone must look like us-west4-a"),
    "a shell's project": (machine(project="$(touch x)"), "project must look like"),
    "an account that is none": (machine(service_account="me"), "service_account must look like"),
    "no slice that is known": (machine(slice="v5litepod-63"), "is not a known TPU slice"),
    "a bucket with wildcards": (extraction(gcs_bucket="gs://b/*"), "gcs_bucket must look like"),
    "a bucket that climbs": (extraction(gcs_bucket="gs://bu/../x"), "gcs_bucket must look like"),
    "no bucket": (extraction(gcs_bucket=None), "extraction.gcs_bucket must be given"),
    "no upload": (extraction(upload_to_cloud=False), "extraction.gcs_bucket must be given"),
    "tasks on this machine": (
        extraction(tasks_file="tasks.json"),
        "the workers cannot read 'tasks.json'",
    ),
    "a model on this machine": (extraction(model_path="./m"), "cannot read the local './m'"),
    "no attempts": ({"limits": {"attempts": 0}}, "limits: attempts must be at least 1, not 0"),
    "no hours": ({"limits": {"hours": 0}}, "limits: hours must be above 0, not 0"),
    "endless hours": ({"limits": {"hours": float("inf")}}, "limits: hours must be at most"),
    "half a price": ({"limits": {"dollars": 5}}, "dollars and dollars_per_hour go together"),
    "a secret in the file": (
        {"hugging_face_token_secret": "hf_abcdef"},
        "must look like projects/my-project/secrets/hugging-face",
    ),
    "no size": ({"gke": {"cache": "100GB"}}, "gke: cache must look like 100Gi"),
    "no image": ({"gke": {"image": "$(x)"}}, "gke: image must look like"),
    "no partition": ({"slurm": {"partition": "a b"}}, "slurm: partition must look like"),
    "no nodes": ({"slurm": {"nodes": 0}}, "slurm: nodes must be at least 1, not 0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_field_is_refused_before_anything_is_made(what, write_settings, cloud, capsys):
    sections, words = WRONG[what]
    for command in ("run", "create"):
        assert main([command, str(write_settings(**sections))]) == 2
        error = capsys.readouterr().err.splitlines()
        assert words in error[0]
        assert error[0].startswith("error: ")
    assert cloud.calls() == []


YAML = {
    "name: a\nname: b": "line 1: 'name' appears twice",
    "name: !!python/object/apply:os.system [exit]": "line 1: could not determine a constructor",
    "name: [": "line 1",
    "": "fields are needed here, not nothing",
    "- a": "fields are needed here, not ['a']",
    "name: a": "extraction must be given",
    "name: a\nextraction: b": "extraction: fields are needed here, not 'b'",
    "name: a\nextraction: {model_path: m}": "one of --tasks_file and --dataset is needed",
    "name: a\nextraction: {tasks_file: t}": "extraction: model_path must be given",
    "name: a\nextraction: {model_path: m, tasks_file: t, temperature: -1e-3}": "not -0.001",
    "name: no\nextraction: {model_path: m, tasks_file: t}": "name must be text, not False",
}


@pytest.mark.parametrize("text", YAML)
def test_a_wrong_file_is_refused(text, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert main(["run", str(path)]) == 2
    assert YAML[text] in capsys.readouterr().err


def test_files_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "latin.yaml").write_bytes("name: \xe9".encode("latin-1"))
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin.yaml"):
        assert main(["run", str(path)]) == 2
        assert "cannot be read" in capsys.readouterr().err


def test_no_machine(write_settings, capsys):
    assert main(["run", str(write_settings(without=["machine"]))]) == 2
    assert "machine: slice, project and zone must be given" in capsys.readouterr().err
    assert read_settings(write_settings(without=["machine"])).machine is None  # for local runs


HARD = {
    "model_path": "-leading/dash",
    "tasks_file": 'gs://b/it\'s $(touch x) `y` "z" ü 漢.json',
    "positions": ["all", "not special"],
    "hook_points": ["layers.*.mlp", "layers.6.attention.z"],
    "layers_to_extract": [6, 12],
    "mesh_shape": "8,8",
    "revision": "--text",
    "temperature": 0.25,
    "scan_layers": True,
    "max_new_tokens": 0,
    "add_special_tokens": False,
    "compilation_cache_dir": "",
    "gcs_bucket": "gs://my-bucket/a b/$(c)/",
}


def test_the_flags_say_what_the_file_says(write_settings):
    """Whatever is in it: the command's own parser reads the same settings."""
    settings = read_settings(write_settings(extraction=HARD))
    parser = make_parser(DistributedSettings, "")
    flags = extraction_flags(settings.extraction)
    parsed = parse_settings(parser, DistributedSettings, flags)
    assert parsed == dataclasses.replace(settings.extraction, resume=True)
    assert on_machine(settings).project == "my-project"


def test_launch_sets_what_only_it_knows():
    names = {field.name for field in dataclasses.fields(DistributedSettings)}
    assert set(SET_BY_LAUNCH) <= names


def test_dates_are_text(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: a\nextraction: {model_path: m, tasks_file: t, revision: 2026-01-01}")
    assert read_settings(path).extraction.revision == "2026-01-01"
    path.write_text("name: a\nextraction: {model_path: m, tasks_file: t, revision: 0123456}")
    with pytest.raises(InputError, match="revision must be text"):
        read_settings(path)
