"""The accelerator benchmark runs on CPU, on a tiny shape, and says so."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator
from benchmarks.accelerator import main, measure_capture, verdicts
from benchmarks.random_model import RandomModel
from benchmarks.shapes import SHAPES, TINY
from benchmarks.table_report import TableReport
from qwen_hooks import create_model_with_hooks

FLAGS = [
    "--shapes", "tiny", "--sequence_lengths", "32", "--tokens_per_step", "64",
    "--batch_sizes", "2", "--new_tokens", "64", "--repeats", "3", "--calls", "2",
    "--product_sizes", "128", "256", "--copy_mib", "4",
]  # fmt: skip

TWO_LAYERS = dataclasses.replace(TINY, num_hidden_layers=2, layer_types=())


@pytest.fixture(autouse=True)
def _two_layers(monkeypatch):
    """Two of the tiny shape's layers compile four times faster."""
    monkeypatch.setitem(SHAPES, "tiny", TWO_LAYERS)


def test_every_table_is_printed_and_written(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    main([*FLAGS, "--peak_tflops", "0.5", "--json", str(file)])
    printed = capsys.readouterr().out
    assert accelerator.NO_ACCELERATOR in printed.splitlines()
    head = [line.split()[0] for line in printed.splitlines()[:7]]
    assert head == ["date", "device", "platform", "host", "jax", "python", "command"]
    assert "\ntargets" not in printed

    content = json.loads(file.read_text())
    assert content["platform"] == "cpu"
    assert content["targets_apply"] is False
    tables = [row["table"] for row in content["rows"]]
    assert tables == ["product", "product", "copy", "parameters", "prefill", "decode", "capture"]
    for row in content["rows"]:
        assert "failure" not in row
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert numbers
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert all(name in printed for name in row if name != "table")
    prefill, decode, capture = content["rows"][-3:]
    assert prefill["batch"] * prefill["prompt"] == 64
    assert prefill["tokens/s"] == pytest.approx(64e3 / prefill["ms/step"])
    assert prefill["MFU"] <= prefill["of own"]
    assert prefill["of peak"] == pytest.approx(prefill["TFLOP/s"] / 0.5)
    assert decode["tokens/s"] == pytest.approx(2e3 / decode["ms/step"])
    assert capture["MB/step"] == 2 * 64 * 112 * 4 / 1e6
    assert (capture["ms link"], capture["bound by"]) == (None, "computing")


def test_out_of_memory_is_a_row_and_the_others_go_on(monkeypatch, capsys):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(accelerator, "prefill_flops", full)
    main(FLAGS)
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("tiny, prefill")
    assert lines[at + 1].split() == ["tiny", "32", "2", "out", "of", "memory"]
    assert len(lines[lines.index("tiny, decode of 64 tokens") + 2].split()) == 8


def test_other_errors_are_raised():
    def broken():
        raise jax.errors.JaxRuntimeError("INTERNAL: a broken kernel")

    with pytest.raises(jax.errors.JaxRuntimeError, match="broken kernel"):
        TableReport({}, None).measure("prefill", {}, broken)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_random_parameters_are_laid_out_as_the_model_wants_them(scan_layers):
    model = RandomModel.make(TWO_LAYERS, jnp.dtype("bfloat16"), "xla", scan_layers=scan_layers)
    wanted = create_model_with_hooks(TWO_LAYERS, dtype=jnp.bfloat16, scan_layers=scan_layers)
    shapes = jax.eval_shape(wanted.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    assert given == shapes
    params = model.params["params"]
    assert set(params["norm"]["weight"].tolist()) == {1.0}
    kernel = params["layers" if scan_layers else "layers_0"]["mlp"]["up_proj"]["kernel"]
    assert float(kernel.astype(jnp.float32).std()) == pytest.approx(0.02, rel=0.05)


def test_all_layers_and_tokens_come_to_the_host(monkeypatch):
    """Every batch of the stream, and only it, is fetched; each before the one after the next."""
    model = RandomModel.make(TWO_LAYERS, jnp.dtype("float32"), "xla", scan_layers=False)
    events = []

    def fake_all_tokens(self, ids, layers):
        if layers:
            events.append("start")
        return [jnp.zeros((2, 32, 112)) for _ in layers] or [jnp.zeros(())]

    monkeypatch.setattr(RandomModel, "all_tokens", fake_all_tokens)
    monkeypatch.setattr(accelerator, "fetch", lambda arrays: events.append(f"fetch {len(arrays)}"))
    options = accelerator.read_options([*FLAGS, "--calls", "3", "--repeats", "1"], on_cpu=True)
    measure_capture(model, 2, 32, options)
    stream = ["start", "fetch 0", "start", "fetch 2", "start", "fetch 2", "fetch 2"]
    assert events == 2 * stream


def test_verdicts_name_each_target():
    case = {"prompt": 512, "batch": 8}
    rows = [
        {"table": "prefill", "shape": "0.5B", **case, "MFU": 0.46, "capture": 1.01},
        {"table": "prefill", "shape": "7B", **case, "MFU": 0.46, "capture": 1.04},
        {"table": "prefill", "shape": "3B", **case, "failure": "out of memory"},
        {"table": "prefill", "shape": "7B", "prompt": 512, "batch": 4, "MFU": 0.3, "capture": 2.0},
        {"table": "decode", "shape": "7B", **case, "of copy": 0.5},
        {"table": "capture", "shape": "7B", **case, "capture": 2.0, "bound by": "link"},
    ]
    assert [line.split(": ", 1)[1] for line in verdicts(rows)] == [
        "MFU 0.460, at least 0.45: met",
        "capture of four layers, last token 1.010, at most 1.03: met",
        "MFU 0.460, at least 0.6: missed",
        "capture of four layers, last token 1.040, at most 1.03: missed",
        "capture of all layers and tokens 2.000, at most 1.03: missed, bound by the link",
    ]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [(["--new_tokens", "2"], "more than 2"), (["--attention", "cudnn"], "NVIDIA GPUs")],
)
def test_what_cannot_be_measured_is_refused(flags, complaint, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(flags)
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err


def test_no_torch_is_needed():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None;"
        "import benchmarks.accelerator"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
