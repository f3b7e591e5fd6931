"""Bad input to the real command: status 2, one clear message, no weights read, nothing written.

Each test breaks one thing in a command line that otherwise works.
"""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

import inference.simple_extraction_inference as command

GRID = [[1, 2], [3, 4]]
ARC = {"train": [{"input": GRID, "output": GRID}], "test": [{"input": GRID}]}


class WeightsWereReadError(Exception):
    """What stands in for loading raises."""


@pytest.fixture
def bench(tmp_path, demo_checkpoint, monkeypatch):
    """A folder with a checkpoint and a tasks file that may be damaged."""

    def load_params(*arguments):
        raise WeightsWereReadError

    monkeypatch.setattr("inference.engine.simple_run.load_params", load_params)
    shutil.copytree(demo_checkpoint, tmp_path / "checkpoint")
    (tmp_path / "tasks.json").write_text(json.dumps({"t": ARC}))
    return tmp_path


def flags_of(folder):
    return {
        "--model_path": folder / "checkpoint",
        "--tasks_file": folder / "tasks.json",
        "--output_dir": folder / "outputs",
        "--activations_dir": folder / "activations",
    }


def run(folder, *more, **changed):
    flags = flags_of(folder) | {f"--{name}": value for name, value in changed.items()}
    words = [str(word) for flag in flags.items() for word in flag]
    try:
        return command.main([*words, *more])
    except SystemExit as exit:
        return exit.code


@pytest.fixture
def refused(bench, capsys):
    """Runs the command, which must refuse and leave all as it was; gives the message."""

    def files():
        return {path: path.is_file() and path.read_bytes() for path in bench.rglob("*")}

    def run_refused(*more, **changed):
        before = files()
        status = run(bench, *more, **changed)
        assert status == 2
        assert files() == before
        out, err = capsys.readouterr()
        assert out == ""
        first, *rest = err.splitlines()
        assert first.startswith("error: ")
        assert all(line.startswith("  ") for line in rest)  # a list that belongs to the first
        return err

    return run_refused


def write_entry(bench, **fields):
    (bench / "tasks.json").write_text(json.dumps([{"task_id": "a", **fields}]))


def edit_config(bench, **changes):
    path = bench / "checkpoint" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_without_a_fault_the_weights_are_read(bench):
    with pytest.raises(WeightsWereReadError):
        run(bench, "--layers_to_extract", "0", "3")
    write_entry(bench, token_ids=[1, 2])
    with pytest.raises(WeightsWereReadError):
        run(bench)


@pytest.mark.parametrize(
    "path",
    ["/no/such/model", "./no_such_model", "nobody/no-such-model", "~nosuchuser/x", "x" * 300],
)
def test_no_such_model(refused, path):
    assert path in refused(model_path=path)


def test_model_path_is_a_file(bench, refused):
    assert "is a file" in refused(model_path=bench / "tasks.json")


def test_folder_without_a_checkpoint(bench, refused):
    assert "config.json" in refused(model_path=bench)


def test_another_architecture(bench, refused):
    edit_config(bench, model_type="mamba", architectures=["MambaForCausalLM"])
    message = refused()
    assert "config.json" in message
    assert '"mamba"' in message
    assert "'qwen2'" in message


@pytest.mark.parametrize(
    "wrong",
    [
        {"tie_word_embeddings": "false"},
        {"eos_token_id": "3"},
        {"eos_token_id": 2.5},
        {"rms_norm_eps": "1e-6"},
        {"pad_token_id": [1]},
        {"use_cache": 1.5},
        {"dtype": "float99"},
    ],
    ids=json.dumps,
)
def test_a_wrong_type_in_the_configuration_is_told_as_that(bench, refused, wrong):
    edit_config(bench, **wrong)
    message = refused()
    assert f"config.json: {next(iter(wrong))} must be" in message
    assert "tokenizer" not in message


@pytest.mark.parametrize("content", ['{"eos_token_id": "3"}', '{"eos_token_id": [true]}', "[]"])
def test_a_wrong_type_in_the_generations_configuration(bench, refused, content):
    path = bench / "checkpoint" / "generation_config.json"
    path.write_text(content)
    message = refused()
    assert str(path) in message
    assert "tokenizer" not in message


def test_all_faulty_tensors_in_one_message(bench, refused):
    path = bench / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    for name in ("model.norm.weight", "model.layers.2.mlp.up_proj.weight"):
        del tensors[name]
    tensors["model.layers.4.input_layernorm.weight"] = tensors["model.layers.0.mlp.up_proj.weight"]
    query = tensors["model.layers.1.self_attn.q_proj.weight"]
    tensors["model.layers.1.self_attn.q_proj.weight"] = query[:-1]
    save_file(tensors, path)
    message = refused()
    assert "missing model.norm.weight\n" in message
    assert "missing model.layers.2.mlp.up_proj.weight\n" in message
    assert "unexpected model.layers.4.input_layernorm.weight\n" in message
    assert "misshapen model.layers.1.self_attn.q_proj.weight: [111, 112]" in message
    assert len(message.splitlines()) == 5


def test_one_missing_tensor(bench, refused):
    path = bench / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.3.self_attn.k_proj.bias"]
    save_file(tensors, path)
    assert "missing model.layers.3.self_attn.k_proj.bias\n" in refused()


def test_weights_that_were_cut_off(bench, refused):
    path = bench / "checkpoint" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    message = refused()
    assert "model.safetensors" in message
    assert "was cut off" in message


def test_no_weights(bench, refused):
    (bench / "checkpoint" / "model.safetensors").unlink()
    assert "model.safetensors" in refused()


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (["4"], "layer 4 is out of range; this model has layers 0 to 3"),
        (["1", "-1"], "layer -1 is out of range; this model has layers 0 to 3"),
        (["2", "0", "2"], "layer 2 is asked for more than once"),
        (["2", "last"], "'last'"),
        (["1.0"], "'1.0'"),
        ([], "--layers_to_extract"),
    ],
)
def test_layers(refused, layers, words):
    message = refused("--layers_to_extract", *layers)
    assert words in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("tokenizer.json", content) for content in ("", "{", "[]", "{}")),
        *(("tokenizer_config.json", content) for content in ("", "{", "[]")),
    ],
)
def test_damaged_tokenizer(bench, refused, name, content):
    (bench / "checkpoint" / name).write_text(content)
    assert "tokenizer cannot be loaded" in refused()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("", "is empty"),
        (
            '{"t": {"train": [],\n "test" []}}',
            "not JSON: Expecting ':' delimiter at line 2, column",
        ),
        (json.dumps({"t": {"train": ARC["train"], "test": []}}), "there is no test input"),
        (json.dumps({"t": {"train": ARC["train"]}}), '"train" and "test"'),
        (f'{{"t": {json.dumps(ARC)}, "t": {json.dumps(ARC)}}}', "twice"),
        (json.dumps({"../../etc/passwd": ARC}), "'../../etc/passwd' looks like a path"),
        (json.dumps({"a\0b": ARC}), "control"),
    ],
)
def test_tasks_file(bench, refused, content, words):
    path = bench / "tasks.json"
    path.unlink() if content is None else path.write_text(content)
    message = refused()
    assert str(path) in message
    assert words in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("token", [-1, 512, 2**40])
def test_token_ids_that_the_model_does_not_have(bench, refused, token):
    write_entry(bench, token_ids=[1, token])
    assert f"token id {token} is not in the model's vocabulary of 512" in refused()


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": 5}])
def test_chat_without_text(bench, refused, message):
    write_entry(bench, messages=[message])
    assert "'a'" in refused()


def test_text_that_the_outputs_file_cannot_hold(bench, refused):
    write_entry(bench, prompt="x", label="\ud800")
    assert "surrogate" in refused()


def test_text_without_a_tokenizer(bench, refused):
    for path in (bench / "checkpoint").glob("*token*"):
        path.unlink()
    assert "no tokenizer; give token_ids" in refused()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_that_jax_cannot_take(refused, seed):
    assert "--random_seed" in refused(random_seed=seed)


@pytest.mark.parametrize("name", ["metadata.json", "layer_6_batch_000001.pkl"])
def test_activations_of_another_run(bench, refused, name):
    (bench / "activations").mkdir()
    (bench / "activations" / name).write_text("of another run")
    message = refused()
    assert "activations already holds a run" in message
    assert name in message


def test_outputs_of_another_run(bench, refused):
    (bench / "outputs").mkdir()
    (bench / "outputs" / "outputs.jsonl").write_text("of another run")
    assert "outputs.jsonl exists already" in refused()


@pytest.mark.parametrize("flag", ["output_dir", "activations_dir"])
@pytest.mark.parametrize("path", ["tasks.json", "tasks.json/folder", "x" * 300])
def test_folder_that_cannot_be_made(bench, refused, flag, path):
    assert path in refused(**{flag: bench / path})


@pytest.mark.parametrize("flag", ["output_dir", "activations_dir", "tasks_file", "model_path"])
def test_an_empty_name(refused, flag):
    assert f"--{flag} must not be empty" in refused(**{flag: ""})


@pytest.mark.parametrize("flag", ["output_dir", "activations_dir"])
def test_folder_of_an_unknown_user(refused, flag):
    assert "~nosuchuser/x" in refused(**{flag: "~nosuchuser/x"})


def test_unknown_flag(refused):
    message = refused("--layer_to_extract", "3")
    assert "--layer_to_extract" in message
    assert message.count("\n") == 1
