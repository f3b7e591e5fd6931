import dataclasses
import io
import json
import pickle
import pickletools
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from extraction.formats.pickle_format import PickleFormat, layer_field
from extraction.run.rows import text_column
from tests.extraction.known_rows import TIME, known_block, known_values

# Founding document 004's, to the letter.
LOADING_SNIPPET = """
import pickle
import numpy as np

# Load a batch
with open('activations/layer_12_batch_000001.pkl', 'rb') as f:
    data = pickle.load(f)

layer = data['layer']
activations = [item['activation'] for item in data['activations']]
activations_array = np.stack(activations)  # [n_samples, hidden_dim]

print(f"Layer {layer}: {activations_array.shape}")
# Layer 12: (512, 896)

# Use for SAE training
# sae.train(activations_array)
"""
REPORT = """
import json, sys
roots = sorted({name.partition('.')[0] for name in sys.modules})
print(json.dumps([str(activations_array.dtype), activations_array.tolist(), roots]))
"""


def serialise(block, hook_point="layer_6") -> bytes:
    return PickleFormat().serialise(hook_point, block).join()


def load(data: bytes) -> dict:
    return pickle.loads(data)


def global_names(data: bytes) -> set[str]:
    """What the file tells an unpickler to import."""
    named = {str(arg) for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"}
    assert not any(op.name == "STACK_GLOBAL" for op, _, _ in pickletools.genops(data))
    return named


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_founding_snippet_loads_a_file_with_numpy_alone(tmp_path, dtype):
    block = known_block(0, 3, (12,))
    stored = block.activations["layer_12"].astype(dtype)
    block = dataclasses.replace(block, activations={"layer_12": stored})
    (tmp_path / "activations").mkdir()
    file = tmp_path / "activations" / "layer_12_batch_000001.pkl"
    file.write_bytes(serialise(block, "layer_12"))

    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", LOADING_SNIPPET + REPORT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    line, report = done.stdout.splitlines()
    assert line == "Layer 12: (3, 4)"
    kind, values, imported = json.loads(report)
    assert kind == "float32"
    assert values == stored.astype(np.float64).tolist()
    assert "numpy" in imported
    assert not {"jax", "jaxlib", "ml_dtypes", "extraction"} & set(imported)


def test_records_hold_every_key_with_plain_types():
    document = load(serialise(known_block(3, 2)))
    assert list(document) == ["layer", "activations"]
    assert type(document["layer"]) is int
    assert document["layer"] == 6
    for number, record in zip((3, 4), document["activations"], strict=True):
        activation = record.pop("activation")
        assert record == {
            "task_id": f"task_{number}",
            "sample_idx": number,
            "timestamp": TIME,
            "step": 0,
            "position": number + 10,
            "token_id": number + 20,
        }
        assert {type(value) for value in record.values()} == {str, int}
        assert type(activation) is np.ndarray
        assert activation.dtype == np.float32
        np.testing.assert_array_equal(activation, known_values(number, 1)[0])


def test_text_that_numpy_holds_becomes_plain_text():
    # A pickled numpy string names numpy's private module, whatever the activations do.
    block = dataclasses.replace(known_block(0, 2), task_ids=text_column([np.str_("a"), "b"]))
    data = serialise(block)
    assert [type(record["task_id"]) for record in load(data)["activations"]] == [str, str]
    assert not any("numpy._core" in name for name in global_names(data))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_activations_become_float32_without_loss_of_what_fits(dtype):
    values = np.array([[1 / 3, -65504, 6e-8, np.inf], [np.nan, -0.0, 0, 1]]).astype(dtype)
    block = dataclasses.replace(known_block(0, 2), activations={"layer_6": values})
    rows = np.stack([r["activation"] for r in load(serialise(block))["activations"]])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, values.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(rows), np.signbit(values))


def test_rows_of_a_strided_array_are_the_right_ones():
    values = known_values(0, 6)[::2][:, ::-1]
    block = dataclasses.replace(known_block(0, 3), activations={"layer_6": values})
    rows = [record["activation"].tolist() for record in load(serialise(block))["activations"]]
    assert rows == [[1000 * r + c for c in (3, 2, 1, 0)] for r in (0, 2, 4)]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_protocol_is_3(rows):
    data = serialise(known_block(0, rows))
    assert data[:2] == b"\x80\x03"
    assert max(op.proto for op, _, _ in pickletools.genops(data)) <= 3


@pytest.mark.parametrize(
    "task_id",
    [
        "plain",
        "cnumpy._core.multiarray\n",
        "cnumpy._core.multiarray\n_reconstruct\n",
        "numpy._core.multiarray _reconstruct",
        "ünï-編號-🧩",
        "",
    ],
)
def test_only_the_module_name_is_numpy_1s(task_id):
    block = dataclasses.replace(known_block(0, 3), task_ids=text_column([task_id] * 3))
    data = serialise(block)
    expected = {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert global_names(data) == expected
    assert [record["task_id"] for record in load(data)["activations"]] == [task_id] * 3


def test_zero_rows_make_a_file_that_needs_no_import():
    class NoImports(pickle.Unpickler):
        def find_class(self, module_name, global_name):
            raise AssertionError(f"{module_name}.{global_name} is imported")

    data = serialise(known_block(0, 0))
    assert NoImports(io.BytesIO(data)).load() == {"layer": 6, "activations": []}


@pytest.mark.parametrize(
    ("hook_point", "field"),
    [("layer_0", 0), ("layer_23", 23), ("layer_6.mlp", "layer_6.mlp"), ("final_norm",) * 2],
)
def test_layer_is_a_number_for_blocks_and_a_name_for_the_rest(hook_point, field):
    assert layer_field(hook_point) == field
    values = known_block(0, 2).activations["layer_6"]
    block = dataclasses.replace(known_block(0, 2), activations={hook_point: values})
    document = load(serialise(block, hook_point))
    assert document["layer"] == field
    assert type(document["layer"]) is type(field)
