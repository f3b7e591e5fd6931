"""Messages name arguments to those who call a function, and flags to those who run a command."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from extraction import ActivationExtractionConfig, ActivationExtractor, StoreError
from extraction.__main__ import main as extraction_command
from extraction.exports import export
from extraction.setting_names import arguments_renamed, flags_named, setting
from inference.captures import capture
from inference.distributed_inference_with_activations import main as command
from inference.engine.language_model import load_model
from inference.errors import InputError
from inference.extractions import extract
from qwen_hooks import ModelError
from tests.extraction.exports.ragged_runs import write_ragged_run
from tests.oracle import make_checkpoint

PACKAGES = "qwen_hooks", "inference", "extraction"
FLAG = re.compile(r"(?<![\w-])--[a-z]\w+")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(make_checkpoint(tmp_path_factory.mktemp("m"), num_hidden_layers=1)))


def test_a_setting_has_two_names():
    assert setting("dtype") == "dtype"
    assert setting("dtype", "int8") == "dtype='int8'"
    assert setting("positions", "all", "last") == "positions=['all', 'last']"
    with arguments_renamed({"dataset": "data"}):
        assert setting("dataset", "x.txt") == "data='x.txt'"
    with flags_named():
        assert setting("dtype") == "--dtype"
        assert setting("positions", "all", "last") == "--positions all last"
    assert setting("dataset") == "dataset"


CALLS = [
    (capture, [[[1]], "layer_0", "lastt"], {}, "positions='lastt'"),
    (capture, [[[1]], "layer_0", "entity"], {}, "positions='entity'"),
    (capture, [[[1]], "layer_0", "role:user"], {}, "positions='role:user'"),
    (capture, [[[1]], "layer_0"], {"batch_size": 0}, "batch_size"),
    (capture, [[[1]], "layer_0"], {"max_new_tokens": -1}, "max_new_tokens"),
    (capture, [[[1]], "layer_0"], {"max_new_tokens": 10**6}, "max_new_tokens=1000000"),
    (capture, [[[1]], "layer_0"], {"random_seed": 2**40}, "random_seed"),
    (extract, ["no/such.txt", "{here}", "layer_0"], {}, "data='no/such.txt'"),
    (extract, [[[1]], "{here}", "layer_0"], {"top_p": 0.0}, "top_p"),
    (extract, [[[1]], "{here}", "layer_0"], {"separator": "x"}, "separator"),
    (extract, [[[1]], "{here}", "layer_0"], {"upload_to_cloud": True}, "upload_to_cloud=True"),
    (extract, [[[1]], "{here}", "layer_0"], {"store_dtype": "bfloat16"}, "format='pickle'"),
    (extract, [[[1]], "{here}", "layer_0"], {"dataset_split": "x"}, "dataset_split"),
    (extract, [[[1]], "gs://bucket/x", "layer_0"], {}, "base_folder"),
]


@pytest.mark.parametrize(("call", "given", "settings", "name"), CALLS)
def test_calls_are_told_of_arguments(model, tmp_path, call, given, settings, name):
    given = [str(tmp_path) if value == "{here}" else value for value in given]
    with pytest.raises((InputError, ModelError, StoreError)) as found:
        call(model, *given, **settings)
    assert name in str(found.value)
    assert not FLAG.search(str(found.value))


def test_loading_and_writing_are_told_of_arguments(model, tmp_path):
    with pytest.raises(ModelError, match="mesh_shape") as mesh:
        load_model(model.model_path, mesh_shape=(3, 1))
    config = ActivationExtractionConfig(
        output_dir=tmp_path / "run", layers_to_extract=[0], hidden_dim=2, model_name="m"
    )
    with ActivationExtractor(config) as extractor:
        extractor.extract_layer_activation(0, np.ones(2), "task", 0)
    with pytest.raises(StoreError, match="resume=True") as exists:
        ActivationExtractor(config)
    write_ragged_run(tmp_path / "ragged")
    with pytest.raises(StoreError, match="context_size") as size:
        export(tmp_path / "ragged", tmp_path / "out", "huggingface")
    for found in (mesh, exists, size):
        assert not FLAG.search(str(found.value))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--positions", "lastt"], "--positions lastt"),
        (["--batch_size", "0"], "--batch_size must"),
        (["--mesh_shape", "3,1"], "--mesh_shape"),
        (["--store_dtype", "bfloat16"], "--format pickle"),
        (["--dataset", "no/such.txt"], "--dataset no/such.txt"),
    ],
)
def test_commands_are_told_of_flags(model, tmp_path, capsys, flags, name):
    data = tmp_path / "data.jsonl"
    data.write_text('{"input_ids": [1, 2]}\n')
    places = ["--output_dir", str(tmp_path / "o"), "--activations_dir", str(tmp_path / "a")]
    given = ["--model_path", model.model_path, "--dataset", str(data), *places, *flags]
    assert command(given) == 2
    assert name in capsys.readouterr().err


def test_the_export_command_is_told_of_flags(tmp_path, capsys):
    write_ragged_run(tmp_path / "run")
    given = ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "huggingface"]
    assert extraction_command(given) == 2
    assert "--context_size" in capsys.readouterr().err


def test_no_message_of_a_library_has_a_flag_written_into_it():
    """`setting` says which it is; commands that a message quotes as a whole have their flags."""
    root, found = Path(__file__).parents[3], []
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            for raised in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(raised, ast.Raise):
                    continue
                for part in ast.walk(raised):
                    text = part.value if isinstance(part, ast.Constant) else None
                    if isinstance(text, str) and "python -m" not in text and FLAG.search(text):
                        found.append(f"{path.relative_to(root)}:{part.lineno}: {text}")
    assert not found
