"""`python -m launch plan`: what it tells, what it refuses, and how near its time comes."""

import dataclasses
import json
import math
import re
import shutil
from types import SimpleNamespace

import jax
import pytest
import yaml

from extraction.run_layout import record_name
from inference import distributed_inference_with_activations as distributed
from inference.engine.plan_comparison import Actual, compare, read_plan
from inference.errors import InputError
from inference.planner import compiled
from inference.planner.machines import GIB, MACHINES
from inference.planner.prices import PRICES, read_prices
from inference.planner.seconds import Rates, Work, planned_time, prompt_flops
from launch import plan
from tests.fake_gcs.faults import Fault


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    tasks = [{"task_id": f"t{n}", "token_ids": [n + 1] * (10 + 25 * (n % 2))} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, tasks)), encoding="utf-8")
    return path


@pytest.fixture
def flags(demo_checkpoint, tasks_file, tmp_path):
    return ["--model_path", str(demo_checkpoint), "--tasks_file", str(tasks_file),
            "--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "act"),
            "--batch_size", "4"]  # fmt: skip


def planned(flags, *more):
    """The plan's document, which is written whole."""
    place = flags[flags.index("--output_dir") + 1] + ".json"
    assert plan.main([*flags, *more, "--json", place]) == 0
    with open(place, encoding="utf-8") as stream:
        return json.load(stream)


def refused(capsys, flags, *more):
    """The one message of a plan that is refused."""
    assert plan.main([*flags, *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error: ") == 1
    return err[err.index("error: ") :]


def test_a_slice_is_planned_without_being_there(flags, capsys):
    found = planned(flags, "--machine", "v5e-64")
    assert (found["mesh"], found["processes"]) == ([64, 1], 16)
    assert found["device_memory"] == int(15.75 * GIB)
    assert found["seconds"]["source"].startswith("assumed, not measured")
    hours = found["seconds"]["total"] / 3600
    price = PRICES.per_chip_hour["v5e"]
    assert found["dollars"] == {kind: pytest.approx(64 * hours * price[kind]) for kind in price}
    shown = capsys.readouterr().out
    assert "v5litepod-64 (64 chips, 16 hosts)" in shown
    assert "must share this folder" in shown
    assert PRICES.date in shown


@pytest.fixture
def cpu_as_slice(monkeypatch):
    """The devices here stand for those of the topology that is asked for; gives its names."""
    asked = []

    def devices(name):
        asked.append(name)
        return jax.devices()[: math.prod(map(int, name.partition(":")[2].split("x")))]

    monkeypatch.setattr("inference.planner.plan.has_compiler", lambda: True)
    monkeypatch.setattr(compiled, "topology_devices", devices)
    return asked


@pytest.mark.parametrize(
    ("more", "topology"),
    [
        (["--machine", "v5e-64"], "v5e:2x2"),
        (["--machine", "v6e-8", "--mesh_shape", "4,2"], "v6e:2x4"),
        (["--machine", "v5p-32", "--max_new_tokens", "4"], "v5p:2x2x1"),
        (["--machine", "v5e-8", "--mesh_shape", "8,1", "--scan_layers", "True"], "v5e:2x4"),
    ],
)
def test_the_compiler_says_what_memory_the_fullest_batch_needs(
    more, topology, cpu_as_slice, flags, capsys
):
    found = planned(flags, *more)
    assert cpu_as_slice == [topology]
    assert found["compiled_memory"] > found["memory"]["params"]
    told = f"{found['compiled_memory'] / GIB:.2f} of"
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("memory"))
    assert told in line
    assert "the TPU compiler's figure" in line


def test_memory_is_estimated_where_the_compiler_is_not_asked(cpu_as_slice, flags, monkeypatch):
    assert planned(flags)["compiled_memory"] is None
    more = ["--machine", "v5e-8", "--compile_memory", "False"]
    assert planned(flags, *more)["compiled_memory"] is None
    monkeypatch.setattr("inference.planner.plan.has_compiler", lambda: False)
    assert planned(flags, "--machine", "v5e-8")["compiled_memory"] is None
    assert not cpu_as_slice


def test_what_the_compiler_finds_too_large_is_refused(cpu_as_slice, flags, capsys, monkeypatch):
    def compile_batch(*arguments, **more):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {compiled.OUT_OF_MEMORY}.")

    monkeypatch.setattr(compiled, "compile_batch", compile_batch)
    said = refused(capsys, flags, "--machine", "v5e-8")
    assert "does not fit a chip of v5litepod-8" in said
    assert "--batch_size" in said


def test_a_compiler_that_fails_leaves_the_estimate(cpu_as_slice, flags, caplog, monkeypatch):
    def fails(name):
        raise RuntimeError("the library is in use\nby another process")

    monkeypatch.setattr(compiled, "topology_devices", fails)
    found = planned(flags, "--machine", "v5e-8")
    assert found["compiled_memory"] is None
    assert found["memory"]["params"] > 0
    assert "so memory is estimated: the library is in use" in caplog.text


def test_a_slice_computes_in_bfloat16_and_halves_what_is_stored(flags):
    here = planned(flags, "--format", "safetensors")
    there = planned(flags, "--format", "safetensors", "--machine", "v6e-1")
    rows, width = here["rows"], 112
    for hook, size in here["bytes"].items():
        # The header names another dtype and other offsets, and is padded to 64 bytes.
        assert size - there["bytes"][hook] == pytest.approx(2 * rows * width, abs=64 * rows)
    assert there["memory"]["params"] * 2 == here["memory"]["params"]


def test_a_mesh_with_a_model_axis_on_a_slice(flags):
    found = planned(flags, "--machine", "v5e-16", "--mesh_shape", "8,2")
    assert (found["mesh"], found["processes"]) == ([8, 2], 4)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--machine", "v5e-63"], "v5litepod-64"),
        (["--machine", "v5e-64", "--mesh_shape", "8,4"], "there are 64"),
        (["--mesh_shape", "3,1"], "there are 8"),
        (["--hook_points", "layers.9.mlp"], "no hook point"),
        (["--layers_to_extract", "4"], "layers 0 to 3"),
        (["--machine", "v5e-1", "--dtype", "float32", "--batch_size", "200000",
          "--tokens_per_batch", "99999999"], "would fit"),
        (["--machine", "v5e-64", "--calibrate", "1"], "cpu"),
        (["--calibrate", "-1"], "--calibrate must be at least 0"),
        (["--prices", "/nowhere/prices.json"], "No such file"),
        (["--coordinator_address", "a:1"], "--coordinator_address"),
        (["--gcs_bucket", "abfss://bucket/x"], "gs://"),
        (["--machine", "v5e-8", "--mesh_shape", "4,2", "--attention", "splash"], "model axis of 1"),
        (["--dataset", "x.txt"], "both were given"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_one_message(more, says, flags, capsys):
    assert says in refused(capsys, flags, *more)


def test_a_settings_file_is_planned_as_it_will_run(
    flags, demo_checkpoint, tasks_file, fake_gcs, tmp_path, capsys, monkeypatch
):
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    for file in demo_checkpoint.iterdir():
        fake_gcs.put("bucket", f"model/{file.name}", file.read_bytes())
    fake_gcs.put("bucket", "tasks.jsonl", tasks_file.read_bytes())
    path, place = tmp_path / "run.yaml", tmp_path / "plan.json"
    here = dict(zip((f.removeprefix("--") for f in flags[::2]), flags[1::2], strict=True))
    here |= {"batch_size": 4, "plan": "gs://bucket/plan.json"}
    cloud = here | {
        "model_path": "gs://bucket/model",
        "tasks_file": "gs://bucket/tasks.jsonl",
        "gcs_bucket": "gs://bucket/run",
    }
    machine = {"slice": "v5e-8", "project": "my-project", "zone": "us-west4-a"}
    for document, slice_ in (
        ({"extraction": here}, None),
        ({"extraction": cloud, "machine": machine}, "v5litepod-8"),
    ):
        path.write_text(yaml.safe_dump({"name": "a-run"} | document), encoding="utf-8")
        assert plan.main([str(path), "--json", str(place), "--compile_memory", "False"]) == 0
        found = json.loads(place.read_text())
        assert (found["machine"], found["samples"], found["rows"]) == (slice_, 60, 60)
    capsys.readouterr()
    document = {"name": "a-run", "extraction": here, "machine": machine}
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert "gcs_bucket must be given" in refused(capsys, [str(path)])  # as the run would be
    path.write_text("name: a-run\nextraction: {model_pth: x}\n", encoding="utf-8")
    assert "did you mean model_path?" in refused(capsys, [str(path)])
    assert "cannot be read" in refused(capsys, [str(tmp_path / "none.yaml")])


def test_an_unknown_flag_is_refused(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        plan.main([*flags, "--unknown", "1"])
    assert "unrecognized" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_refused(flags, capsys, monkeypatch):
    needed = planned(flags)
    needed = needed["activation_bytes"] + 2 * needed["output_bytes"]
    capsys.readouterr()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=needed))
    assert plan.main(flags) == 0
    capsys.readouterr()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=needed - 1))
    assert "GB free" in refused(capsys, flags)


@pytest.mark.parametrize("machine", [[], ["--machine", "v5e-64"]])
def test_what_is_known_of_a_bucket(
    machine,
    fake_gcs,
    flags,
    capsys,
    monkeypatch,
):
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    planned(flags, "--gcs_bucket", "gs://bucket/run", *machine)
    assert "goes to      gs://bucket/run, which can be reached and written to" in (
        capsys.readouterr().out
    )
    fake_gcs.store.bucket("bucket").permissions = {"storage.objects.get", "storage.objects.list"}
    planned(flags, "--gcs_bucket", "gs://bucket/run", *machine)
    assert (
        "goes to      gs://bucket/run, where this account lacks"
        " storage.objects.create, storage.objects.delete"
    ) in capsys.readouterr().out
    fake_gcs.faults.add(Fault(kind="403", path_contains="/iam/"))
    planned(flags, "--gcs_bucket", "gs://bucket/run", *machine)
    told = "gs://bucket/run, which can be reached; write permission is not known"
    assert told in capsys.readouterr().out
    assert not fake_gcs.objects("bucket")
    assert "the bucket does not exist" in refused(
        capsys, flags, "--gcs_bucket", "gs://none/run", *machine
    )


def test_a_folder_that_holds_a_run(flags, capsys, tmp_path):
    whole = planned(flags, "--save_every_n_samples", "8")
    assert distributed.main([*flags, "--save_every_n_samples", "8", "--self_check_rows", "0"]) == 0
    capsys.readouterr()
    assert "nothing was changed" in refused(capsys, flags, "--save_every_n_samples", "8")
    (tmp_path / "act" / record_name(2)).unlink()
    left = planned(flags, "--save_every_n_samples", "8", "--resume", "True")
    assert left["committed_units"] == whole["units"] - 1
    assert left["bytes"] == whole["bytes"]
    assert 0 < left["prompt_tokens"] < whole["prompt_tokens"]
    assert len(left["programs"]) == 1
    capsys.readouterr()
    other = ["--save_every_n_samples", "9", "--resume", "True"]
    assert "save_every_n_samples: 8 there, 9 now" in refused(capsys, flags, *other)


def test_nothing_is_left_to_run(flags, capsys):
    assert distributed.main([*flags, "--self_check_rows", "0"]) == 0
    found = planned(flags, "--resume", "True", "--calibrate", "2")
    assert (found["seconds"]["total"], found["programs"], found["memory"]) == (0, [], None)
    assert "nothing is left to run" in capsys.readouterr().out


def test_planned_against_actual(flags, capsys):
    document = planned(flags)
    place = flags[flags.index("--output_dir") + 1] + ".json"
    capsys.readouterr()
    assert distributed.main([*flags, "--self_check_rows", "0", "--plan", place]) == 0
    shown = capsys.readouterr().out
    size, files = document["activation_bytes"], 3 * document["units"]
    label = "of the plan"
    told = [line.removeprefix(label).strip() for line in shown.splitlines() if label in line[:14]]
    assert told == [
        "rows         60 planned, 60 found",
        "sequences    60 planned, 60 found",
        f"files        {files} planned, {files} found",
        f"bytes        {size} planned, {size} found",
    ]


def test_what_differs_from_a_plan(flags):
    document = planned(flags) | {"seconds": {"total": 10.04}}
    memory = document["memory"]["params"] + document["memory"]["batch"]
    actual = Actual(rows=45, sequences=60, files=3, bytes=1, seconds=12.51, peak_memory=memory // 2)
    lines = compare(document, actual)
    assert lines[0] == "rows         60 planned, 45 found (0.75 of the plan)"
    assert lines[-2:] == [
        f"peak memory  {memory} planned, {memory // 2} found (0.50 of the plan)",
        "seconds      10.0 planned, 12.5 found (1.25 of the plan)",
    ]
    other = dataclasses.replace(actual, seconds=None, peak_memory=None)
    assert compare(document, other) == lines[:-2]


def test_seconds_of_a_run_that_had_begun_are_not_compared(flags, tmp_path, capsys):
    planned(flags, "--calibrate", "1")
    place = flags[flags.index("--output_dir") + 1] + ".json"
    again = [*flags, "--self_check_rows", "0", "--plan", place, "--resume", "True"]
    for is_new in (True, False):
        capsys.readouterr()
        assert distributed.main(again) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        told = [words for words in lines if words[:4] == ["of", "the", "plan", "seconds"]]
        assert bool(told) == is_new


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 3}', "no JSON"])
def test_a_file_that_is_no_plan_is_refused_before_anything_runs(text, flags, tmp_path, capsys):
    place = tmp_path / "plan.json"
    place.write_text(text)
    with pytest.raises(InputError, match="must be a file that `python -m launch plan"):
        read_plan(str(place))
    for path, says in (
        (place, "must be a file"),
        (tmp_path / "none.json", "there is no such file"),
    ):
        assert distributed.main([*flags, "--plan", str(path)]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "act").exists()


def test_the_plan_of_a_plan_is_refused(flags, capsys):
    assert "use --json to write" in refused(capsys, flags, "--plan", "plan.json")


def test_seconds_are_those_of_the_slowest_process():
    rates = Rates(source="here", load=2.0, compile={16: 1.0, 32: 3.0}, batch={16: 0.5, 32: 0.25},
                  check=(1.0, 0.5), unit=0.125)  # fmt: skip
    idle = Work(units=1, batches={}, checked=0)
    quick = Work(units=2, batches={16: 4}, checked=1)
    slow = Work(units=2, batches={16: 4, 32: 8}, checked=2)
    assert planned_time([idle], rates).total == 0.125
    assert planned_time([quick], rates).total == 2.0 + 1.0 + 2.0 + 1.5
    time = planned_time([quick, slow, idle], rates)
    assert time.total == 2.0 + (1.0 + 3.0) + (2.0 + 2.0) + 2.0
    many_files = Work(units=80, batches={16: 4}, checked=0)
    assert planned_time([many_files], rates).total == 2.0 + 1.0 + 10.0


def test_prompt_flops_count_two_for_each_parameter_and_token():
    from benchmarks.counted_work import prefill_flops
    from benchmarks.shapes import QWEN_05B

    counted = prefill_flops(QWEN_05B, batch=8, slots=512)
    found = prompt_flops(QWEN_05B, 8, 512, QWEN_05B.num_hidden_layers)
    # The last block leaves most of itself out there: 1 of 24.
    assert 1.0 < found / (counted.projections + counted.attention) < 1.05


def test_measured_seconds_are_near_those_of_a_run(flags, tmp_path, capsys):
    """The least of two each, all compiled; no order of magnitude off while other work disturbs."""
    planned_seconds, found_seconds = [], []
    for number in range(2):
        arguments = [*flags, "--self_check_rows", "0", "--max_new_tokens", "24",
                     "--activations_dir", str(tmp_path / f"act{number}"),
                     "--output_dir", str(tmp_path / f"out{number}")]  # fmt: skip
        parts = planned(arguments, "--calibrate", "2")["seconds"]
        planned_seconds.append(parts["load"] + max(parts["batches"], parts["commits"]))
        capsys.readouterr()
        assert distributed.main(arguments) == 0
        shown = re.findall(r"^time +([0-9.]+) s", capsys.readouterr().out, re.MULTILINE)
        found_seconds.append(float(shown[0]))
    assert parts["source"].startswith("measured here, on 8 cpu")
    assert 0.1 < min(found_seconds) / min(planned_seconds) < 10


def test_prices_of_the_user(flags, tmp_path):
    path = tmp_path / "prices.json"
    table = {"v5e": {"on_demand": 2, "spot": None}}
    path.write_text(json.dumps({"date": "2026-01-01", "source": "me", "per_chip_hour": table}))
    found = planned(flags, "--machine", "v5e-8", "--prices", str(path))
    assert found["dollars"] == {"on_demand": pytest.approx(found["seconds"]["total"] / 3600 * 16)}
    assert found["prices_of"] == "2026-01-01"
    assert planned(flags, "--machine", "v6e-8", "--prices", str(path))["dollars"] == {}


@pytest.mark.parametrize(
    "table", [{"v5e": {"on_demand": "2"}}, {"v5e": {"hourly": 2}}, {"v5e": {"spot": -1}}, [], 3]
)
def test_a_table_that_is_none_is_refused(table, tmp_path):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"date": "d", "source": "s", "per_chip_hour": table}))
    with pytest.raises(InputError, match="prices"):
        read_prices(str(path))


def test_the_shipped_prices_know_every_generation():
    generations = {slice_.generation for slice_ in MACHINES.values()}
    assert set(PRICES.per_chip_hour) == generations
    for kinds in PRICES.per_chip_hour.values():
        assert 0 < kinds["spot"] < kinds["on_demand"]
