"""`--interventions` of both commands, against torch's model with a hook that does the same."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

import extraction.__main__ as commands
from extraction import ActivationDataset, verify
from extraction.run.changes import changes
from inference import distributed_inference_with_activations as distributed
from inference import extract, load_model
from inference import simple_extraction_inference as simple
from inference.inputs.steering import from_record
from tests.inference.whole_runs import (
    SMALL_BATCHES,
    arguments,
    assert_same,
    read_run,
    run_processes,
)
from tests.oracle import load_torch, random_tokens, row_error, torch_rows

WIDTH = 48
LENGTHS = [1, 9, 17, 5, 30]
VECTOR = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
UNIT = VECTOR / np.linalg.norm(VECTOR)


def norms(x):
    return np.linalg.norm(x, axis=-1, keepdims=True)


CASES = {
    "raw": ({"strength": 1.5}, lambda x: x + 1.5 * VECTOR),
    "token_norm": (
        {"strength": -0.5, "unit": "token_norm", "hook_point": "layers.1.mlp"},
        lambda x: x - 0.5 * norms(x) * UNIT,
    ),
    "mean_norm": (
        {"strength": 0.25, "unit": "mean_norm", "mean_norm": 30.0, "when": "generated"},
        lambda x: x + 0.25 * 30.0 * UNIT,
    ),
    "project_out": (
        {"operation": "project_out", "when": "prompt", "hook_point": "layers.2.resid_pre"},
        lambda x: x - (x @ UNIT)[:, None] * UNIT,
    ),
    "clamp": (
        {"operation": "clamp", "low": -0.5, "high": 0.25},
        lambda x: x + (np.clip(x @ UNIT, -0.5, 0.25) - x @ UNIT)[:, None] * UNIT,
    ),
    "last": ({"strength": 2.0, "positions": ["last"]}, lambda x: x + 2.0 * VECTOR),
    "some": (
        {"strength": 2.0, "positions": ["all", "not first", "not last"]},
        lambda x: x + 2.0 * VECTOR,
    ),
}


def changed_tokens(entry, length, total):
    """Which of `total` tokens are changed, of which `length` are the prompt's."""
    at = np.arange(total)
    chosen = entry.get("positions")
    if chosen is not None:
        inner = (at > 0) & (at < length - 1)
        return at == length - 1 if chosen == ["last"] else inner
    return {"all": at >= 0, "prompt": at < length, "generated": at >= length}[
        entry.get("when", "all")
    ]


def torch_outputs(model, tokens, entry, function, length):
    """Logits `[S, V]` and the outputs of layers 0, 2 and 3, each `[S, D]`, of one sequence."""
    outputs = {}
    mask = changed_tokens(entry, length, len(tokens))[:, None]

    def change(value):
        flat = value[0].numpy()
        return torch.from_numpy(np.where(mask, function(flat), flat).astype(np.float32))[None]

    place = {
        "layer_1": model.model.layers[1],
        "layers.1.mlp": model.model.layers[1].mlp,
        "layers.2.resid_pre": model.model.layers[2],
    }[entry.get("hook_point", "layer_1")]
    if entry.get("hook_point") == "layers.2.resid_pre":
        hooks = [place.register_forward_pre_hook(lambda _, x: (change(x[0]), *x[1:]))]
    else:
        hooks = [place.register_forward_hook(lambda _, x, y: change(y))]
    for layer in (0, 2, 3):
        hooks.append(
            model.model.layers[layer].register_forward_hook(
                lambda _, x, y, layer=layer: outputs.update({layer: y[0].numpy()})
            )
        )
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    for hook in hooks:
        hook.remove()
    return logits, outputs


@pytest.fixture
def steer(tmp_path):
    """Writes a file of interventions beside its vector, and returns its path."""

    def write(*entries, **metadata):
        save_file({"latent_7": VECTOR}, tmp_path / "directions.safetensors", metadata or None)
        listed = [
            {"hook_point": "layer_1", "vectors": "directions.safetensors"} | entry
            for entry in entries
        ]
        path = tmp_path / "steer.yaml"
        path.write_text(yaml.safe_dump({"interventions": listed}))
        return str(path)

    return write


@pytest.fixture(scope="module")
def torch_model(run_checkpoint):
    return load_torch(run_checkpoint)


@pytest.fixture
def tasks(tmp_path):
    path = tmp_path / "tasks.json"
    path.write_text(
        json.dumps(
            [
                {"task_id": f"t{i}", "token_ids": random_tokens(n, 208, seed=i)}
                for i, n in enumerate(LENGTHS)
            ]
        )
    )
    return path


@pytest.mark.parametrize("command", [simple, distributed])
@pytest.mark.parametrize("case", CASES)
def test_rows_and_tokens_equal_torch(
    command, case, steer, tasks, run_checkpoint, torch_model, tmp_path
):
    entry, function = CASES[case]
    flags = arguments(tmp_path, run_checkpoint, tasks, "--interventions", steer(entry))
    if command is distributed:
        flags += ["--mesh_shape", "4,2", *SMALL_BATCHES, "--self_check_rows", "8"]
    assert command.main(flags) == 0
    lines, metadata, rows = read_run(tmp_path)
    if command is distributed:
        assert sum(found["rows"] for found in metadata["run"]["self_check"]) == 8
    generated = 0
    for line, length in zip(lines, LENGTHS, strict=True):
        made = line["generated_token_ids"]
        tokens = line["prompt_token_ids"] + made[:-1]
        logits, outputs = torch_outputs(torch_model, tokens, entry, function, length)
        assert logits[length - 1 :].argmax(-1).tolist() == made
        for layer, values in outputs.items():
            at = list(range(length - 1, len(tokens)))
            ours = np.stack([rows[layer, line["task_id"], 0, p][2] for p in at])
            assert row_error(ours, values[at]) < 1e-4
        generated += len(made) - 1
    assert generated > 4
    assert verify(str(tmp_path / "act"), 3).exit_status == 0


def test_the_run_records_its_vectors(steer, tasks, run_checkpoint, tmp_path, capsys):
    entries = [CASES["mean_norm"][0], CASES["some"][0]]
    flags = arguments(tmp_path, run_checkpoint, tasks, "--interventions", steer(*entries))
    assert simple.main(flags) == 0
    (first, second) = read_run(tmp_path)[1]["run"]["interventions"]
    assert first["mean_norm"] == 30.0
    assert second["positions"] == ["all", "not first", "not last"]
    again = from_record([first, second])
    for vector in again.vectors:
        np.testing.assert_array_equal(vector, VECTOR)
    assert again.interventions[0].when == "generated"
    capsys.readouterr()
    assert commands.main(["inspect", str(tmp_path / "act")]) == 0
    lines = capsys.readouterr().out
    told = "add directions.safetensors at layer_1, strength 0.25 (mean norm), generated tokens"
    assert f"changed      {told}" in lines
    assert "positions ['all', 'not first', 'not last']" in lines
    page = tmp_path / "report.html"
    assert commands.main(["report", str(tmp_path / "act"), "--output", str(page)]) == 0
    assert told in re.sub("<[^>]*>", "", page.read_text())


def test_extract_takes_the_same_file(steer, run_checkpoint, torch_model, tmp_path):
    entry, function = CASES["raw"]
    inputs = [random_tokens(n, 208, seed=i) for i, n in enumerate(LENGTHS)]
    model = load_model(str(run_checkpoint))
    done = extract(
        model, inputs, tmp_path / "runs", ["layer_3"], ["all"], interventions=steer(entry)
    )
    dataset = done.open("layer_3")
    keys = dataset.keys(range(len(dataset)))
    for number, tokens in enumerate(inputs):
        wanted = torch_outputs(torch_model, tokens, entry, function, len(tokens))[1][3]
        task = sorted(set(keys.task_ids.tolist()))[number]
        rows = np.flatnonzero(keys.task_ids == task)
        rows = rows[np.argsort(keys.position[rows])]
        assert row_error(dataset[rows], wanted) < 1e-4


def test_a_run_is_resumed_only_with_the_same_interventions(
    steer, tasks, run_checkpoint, tmp_path, capsys
):
    flags = arguments(tmp_path, run_checkpoint, tasks)
    assert simple.main([*flags, "--interventions", steer({"strength": 1.0})]) == 0
    resumed = [*flags, "--resume", "True"]
    assert simple.main([*resumed, "--interventions", steer({"strength": 1.0})]) == 0
    for other in ([*resumed, "--interventions", steer({"strength": 2.0})], resumed):
        capsys.readouterr()
        assert simple.main(other) == 2
        assert "interventions" in capsys.readouterr().err


def test_the_mean_norm_of_a_run(steer, tasks, run_checkpoint, tmp_path, capsys):
    plain = tmp_path / "plain"
    flags = arguments(plain, run_checkpoint, tasks)
    assert simple.main(flags) == 0
    rows = read_run(plain)[2]
    mean = np.mean([np.linalg.norm(row[2]) for key, row in rows.items() if key[0] == 0])
    entry = {"unit": "mean_norm", "mean_norm_of": "plain/act", "hook_point": "layer_0"}
    flags = arguments(tmp_path, run_checkpoint, tasks, "--interventions", steer(entry))
    assert simple.main(flags) == 0
    (told,) = read_run(tmp_path)[1]["run"]["interventions"]
    assert told["mean_norm"] == pytest.approx(mean, rel=1e-4)
    entry["hook_point"] = "layer_1"  # not captured there
    flags = arguments(tmp_path / "b", run_checkpoint, tasks, "--interventions", steer(entry))
    assert simple.main(flags) == 2
    assert "mean_norm_of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"hook_point": "layer_99"}, "layer_99"),
        ({"hook_point": "layers.1.mlp.neurons"}, "80 numbers"),
        ({"hook_point": "layers.1.attention.pattern"}, "layers.1.attention.pattern"),
        ({"strength": float("nan")}, "strength"),
        ({"strength": float("inf")}, "strength"),
        ({"strength": "much"}, "strength"),
        ({"unit": "percent"}, "unit"),
        ({"unit": "mean_norm"}, "mean_norm_of"),
        ({"mean_norm": 3.0}, "mean_norm"),
        ({"unit": "mean_norm", "mean_norm": 0.0}, "mean_norm"),
        ({"operation": "clamp"}, "low, high"),
        ({"operation": "clamp", "low": 2.0, "high": 1.0}, "low must be at most high"),
        ({"operation": "project_out", "unit": "token_norm"}, "token_norm"),
        ({"when": "sometimes"}, "when"),
        ({"positions": ["last"], "when": "generated"}, "when: generated"),
        ({"positions": ["lats"]}, "lats"),
        ({"positions": []}, "positions"),
        ({"vectors": "none.safetensors"}, "none.safetensors"),
        ({"vectors": "/dev/zero"}, "/dev/zero"),
        ({"vectors": "steer.yaml"}, "steer.yaml"),
        ({"name": "latent_8"}, "latent_8"),
        ({"vector": [1.0]}, "did you mean vectors?"),
    ],
)
def test_bad_interventions_are_refused(
    entry, named, steer, tasks, run_checkpoint, tmp_path, capsys
):
    flags = arguments(tmp_path, run_checkpoint, tasks, "--interventions", steer(entry))
    assert simple.main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not (tmp_path / "act").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "interventions: []", "interventions: 3", "interventions: [3]", "a: &a [*a]"]
)
def test_a_file_without_interventions_is_refused(text, tasks, run_checkpoint, tmp_path, capsys):
    path = tmp_path / "steer.yaml"
    path.write_text(text)
    flags = arguments(tmp_path, run_checkpoint, tasks, "--interventions", str(path))
    assert simple.main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "steer.yaml" in line


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (np.zeros(WIDTH, np.float32), "not 0"),
        (np.full(WIDTH, np.nan, np.float32), "finite"),
        (np.full(WIDTH, 1e300), "finite"),
        (np.zeros((2, WIDTH), np.float32), "one vector"),
        (np.ones(WIDTH, np.int32), "one vector"),
        (np.ones(WIDTH + 1, np.float32), "48 numbers"),
    ],
)
def test_vectors_that_are_none_are_refused(
    values, named, steer, tasks, run_checkpoint, tmp_path, capsys
):
    path = steer({})
    save_file({"latent_7": values}, tmp_path / "directions.safetensors")
    flags = arguments(tmp_path, run_checkpoint, tasks, "--interventions", path)
    assert simple.main(flags) == 2
    assert named in capsys.readouterr().err


def test_vectors_of_another_model_are_refused(steer, tasks, run_checkpoint, tmp_path, capsys):
    flags = arguments(
        tmp_path, run_checkpoint, tasks, "--interventions", steer({}, weights_sha256="0" * 64)
    )
    assert simple.main(flags) == 2
    assert "other weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "found",
    [None, 3, "text", {}, [], [3], [{}], [{"operation": {}, "name": ["\n"] * 9, "strength": []}]],
)
def test_whatever_a_run_says_of_changes_is_told_in_short_lines(found):
    for line in changes({"interventions": found}):
        assert len(line) < 500


def test_many_changes_are_counted():
    entry = {"operation": "add", "vectors": "v", "hook_point": "layer_1"}
    lines = changes({"interventions": [entry] * 1000})
    assert len(lines) == 9
    assert lines[-1] == "and 992 more"


def test_a_mesh_of_several_processes_is_refused(steer, tasks, run_checkpoint, tmp_path):
    words = arguments(
        *(tmp_path, run_checkpoint, tasks, "--interventions", steer({}), "--mesh_shape", "1,2")
    )
    statuses, outputs = run_processes(2, 1, words)
    assert statuses == [2, 2], "\n".join(outputs)
    assert all("--interventions needs a mesh in each process" in output for output in outputs)
    assert not list((tmp_path / "act").rglob("*.pkl"))


def test_processes_with_a_mesh_each_steer_alike(steer, tasks, run_checkpoint, tmp_path):
    entry = CASES["some"][0]
    one, two = tmp_path / "one", tmp_path / "two"
    flags = ["--interventions", steer(entry), *SMALL_BATCHES]
    assert simple.main(arguments(one, run_checkpoint, tasks, *flags[:2])) == 0
    statuses, outputs = run_processes(2, 1, arguments(two, run_checkpoint, tasks, *flags))
    assert statuses == [0, 0], "\n".join(outputs)
    assert_same(read_run(two), read_run(one))


def test_only_the_tokens_of_the_entity_are_changed(demo_checkpoint, tmp_path):
    vector = np.random.default_rng(1).standard_normal(112).astype(np.float32)
    save_file({"v": vector}, tmp_path / "v.safetensors")
    one = {"hook_point": "layer_0", "vectors": "v.safetensors", "positions": ["entity"]}
    (tmp_path / "steer.yaml").write_text(yaml.safe_dump({"interventions": [one]}))
    entities = ["Rome", "Saint Petersburg"]
    tasks = [
        {"task_id": name, "prompt": f"The city of {name} is far away.", "entity": name}
        for name in entities
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    flags = ["--model_path", str(demo_checkpoint), "--tasks_file", str(tmp_path / "tasks.json")]
    flags += ["--prompt_style", "plain", "--positions", "all", "--layers_to_extract", "0", "3"]
    flags += ["--output_dir", str(tmp_path / "out"), "--activations_dir", str(tmp_path / "run")]
    flags += ["--max_new_tokens", "0", "--interventions", str(tmp_path / "steer.yaml")]
    assert distributed.main(flags) in (None, 0)
    model = load_torch(demo_checkpoint)
    tokenizer = load_model(str(demo_checkpoint)).tokenizer
    for task in tasks:
        ids = tokenizer(task["prompt"])["input_ids"]
        ends = np.array([len(tokenizer.decode(ids[: n + 1])) for n in range(len(ids))])
        starts = np.array([0, *ends[:-1]])
        begin = task["prompt"].index(task["entity"])
        named = (ends > begin) & (starts < begin + len(task["entity"]))
        assert 0 < named.sum() < len(ids)
        change = torch.from_numpy(named[:, None] * vector)
        hook = model.model.layers[0].register_forward_hook(lambda _, x, y, c=change: y + c)
        _, exact = torch_rows(model, ids)
        hook.remove()
        for layer in (0, 3):
            dataset = ActivationDataset(tmp_path / "run", layer=layer)
            mine = [n for n, key in enumerate(dataset.keys().task_ids) if key == task["task_id"]]
            assert row_error(dataset[mine], exact[layer]) < 1e-4
