"""Every way of attending, against `attend_causal`, and who may have which.

Splash attention runs in Pallas' interpreter. cuDNN needs a GPU: without one, the calls of JAX's
attention that ask for it are recorded, and what their arguments mean is taken from XLA's
implementation of the same API.
"""

import dataclasses
import functools
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen_hooks import Checkpoint, ModelError, QwenConfig, create_model_with_hooks, load_params
from qwen_hooks.attention import attend_causal
from qwen_hooks.attention_backends import (
    ATTENTION,
    KEY_BLOCK,
    QUERY_BLOCK,
    TPU_DEFAULT,
    _block,
    attend_cudnn,
    attend_splash,
    choose_attention,
)
from qwen_hooks.model import forward
from tests.oracle import make_checkpoint, random_tokens, row_error

PADDINGS = {"none": (0, 0), "left": (5, 0), "right": (0, 9), "both": (40, 3)}
GROUPS = {"1 query head a KV head": (2, 2), "3": (6, 2), "7": (14, 2)}
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}


def prompt(slots, padding, heads=6, kv_heads=2, head_dim=16, dtype="float32"):
    """Random query, key and value, the positions of two prompts, and where they have tokens."""
    rng = np.random.default_rng(slots)
    shapes = [(2, slots, n, head_dim) for n in (heads, kv_heads, kv_heads)]
    arrays = [jnp.array(rng.normal(size=shape) * 2, dtype) for shape in shapes]
    left, right = PADDINGS[padding]
    positions = np.full((2, slots), -1, np.int32)
    for row in (0, 1):  # the second is padded twice as much
        tokens = slice((1 + row) * left, slots - (1 + row) * right)
        positions[row, tokens] = np.arange(tokens.stop - tokens.start)
    return arrays, jnp.array(positions), positions >= 0


def assert_same_rows(ours, arrays, positions, real, window, tolerance=None):
    """Equal to float32's on tokens, to rounding; finite everywhere."""
    exact = attend_causal(*(x.astype(jnp.float32) for x in arrays), positions, window)
    assert ours.dtype == arrays[0].dtype
    assert row_error(ours[real], exact[real]) < (tolerance or TOLERANCE[ours.dtype.name])
    assert np.isfinite(np.asarray(ours, np.float32)).all()


@pytest.mark.parametrize("window", [None, 1, 30])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("group", GROUPS)
def test_splash_gives_the_same_rows(group, padding, window):
    arrays, positions, real = prompt(200, padding, *GROUPS[group])
    assert_same_rows(attend_splash(*arrays, positions, window), arrays, positions, real, window)


@pytest.mark.parametrize("window", [None, 30])
def test_splash_keeps_documents_that_share_a_row_apart(window):
    arrays, _, _ = prompt(300, "none")
    lengths = [1, 140, 60, 90]  # and padding
    positions, segments = np.full((2, 2, 300), -1, np.int32)
    filled = np.concatenate([np.arange(n) for n in lengths])
    positions[:, : len(filled)] = filled
    segments[:, : len(filled)] = np.repeat(np.arange(len(lengths)), lengths)
    segments = jnp.maximum(segments, 0)
    ours = attend_splash(*arrays, jnp.array(positions), window, segments)
    wanted = attend_causal(*arrays, jnp.array(positions), window, segments)
    assert row_error(ours[positions >= 0], wanted[positions >= 0]) < TOLERANCE["float32"]


def test_cudnn_refuses_documents_that_share_a_row():
    arrays, positions, _ = prompt(16, "none", dtype="bfloat16")
    with pytest.raises(ModelError, match="packed documents"):
        attend_cudnn(*arrays, positions, None, positions)


@pytest.mark.parametrize("slots", [1, 127, 128, 129])
def test_splash_at_lengths_around_a_multiple_of_128(slots):
    arrays, positions, real = prompt(slots, "none")
    assert_same_rows(attend_splash(*arrays, positions, None), arrays, positions, real, None)


@pytest.mark.parametrize("window", [None, 200, 700])
def test_splash_over_several_blocks(window):
    assert 2 * QUERY_BLOCK < 1100
    arrays, positions, real = prompt(1100, "both", heads=2, kv_heads=1)
    assert_same_rows(attend_splash(*arrays, positions, window), arrays, positions, real, window)


@pytest.mark.parametrize(("head_dim", "tolerance"), [(64, 1e-2), (128, 4e-2)])
def test_splash_in_bfloat16_with_real_head_dims(head_dim, tolerance):
    """With heads of 128 the scaled query is rounded once more, see `attend_splash`."""
    arrays, positions, real = prompt(200, "both", head_dim=head_dim, dtype="bfloat16")
    for window in (None, 30):
        ours = attend_splash(*arrays, positions, window)
        assert_same_rows(ours, arrays, positions, real, window, tolerance)


def test_hidden_values_do_not_leak_even_if_huge():
    (query, key, value), positions, real = prompt(200, "both")
    value = jnp.where(jnp.array(real)[:, :, None, None], value, 1e30)
    assert np.abs(np.asarray(attend_splash(query, key, value, positions))[real]).max() < 100


def test_splash_multiplies_float32_in_float32():
    for dtype in ("float32", "bfloat16"):
        arrays, positions, _ = prompt(100, "none", dtype=dtype)
        program = str(jax.make_jaxpr(attend_splash)(*arrays, positions))
        products = program.count("dot_general[")
        assert products == 4  # two in the kernel, of which there are two
        assert program.count("HIGHEST") == (2 * products if dtype == "float32" else 0)


@pytest.mark.parametrize(
    ("slots", "blocks"),
    [
        (128, (128, 128)),
        (384, (384, 384)),
        (640, (128, 640)),
        (1280, (256, 640)),
        (1408, (128, 128)),
        (2048, (512, 1024)),
    ],
)
def test_blocks_divide_the_prompt(slots, blocks):
    assert (_block(slots, QUERY_BLOCK), _block(slots, KEY_BLOCK)) == blocks


IN_SHARD_MAP = """
    import jax
    jax.config.update("jax_num_cpu_devices", 2)
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from qwen_hooks.attention_backends import attend_splash
    from tests.qwen_hooks.test_attention_backends import assert_same_rows, prompt

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    by_data = P("data")
    mapped = jax.jit(
        jax.shard_map(
            attend_splash, mesh=mesh, in_specs=by_data, out_specs=by_data, check_vma=False
        )
    )
    arrays, positions, real = prompt(200, "both")
    inputs = jax.device_put((*arrays, positions), NamedSharding(mesh, by_data))
    ours = mapped(*inputs)
    assert len(ours.sharding.device_set) == 2
    assert_same_rows(ours, arrays, positions, real, None)
    program = mapped.lower(*inputs).compile().as_text()
    assert not any(name in program for name in ("all-reduce", "all-gather", "all-to-all"))
    print("equal")
"""


def test_splash_inside_shard_map_on_two_devices():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(IN_SHARD_MAP)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of four blocks, the last two with a sliding window."""
    sliding = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}
    return Checkpoint.open(make_checkpoint(tmp_path_factory.mktemp("model"), **sliding))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_model_with_splash_equals_one_with_xla(checkpoint, side):
    params = load_params(checkpoint)
    ids = jnp.array([random_tokens(150, seed=s) for s in (0, 1)], jnp.int32)
    mask = np.ones((2, 150), np.int32)
    mask[0, slice(40) if side == "left" else slice(110, None)] = 0
    real = mask == 1
    with_xla, with_splash = (
        create_model_with_hooks(checkpoint.config, attention=name) for name in ("xla", "splash")
    )
    logits, activations = with_xla.apply(params, ids, jnp.array(mask), return_activations=True)
    ours, rows = with_splash.apply(params, ids, jnp.array(mask), return_activations=True)
    assert row_error(ours[real], logits[real]) < 1e-4
    for name, values in activations.items():
        assert row_error(rows[name][real], values[real]) < 1e-4
    positions = jnp.array(np.where(real, mask.cumsum(axis=1, dtype=np.int32) - 1, -1))
    rows = forward(with_splash, params, ids, positions).activations
    assert row_error(rows["layer_3"][real], activations["layer_3"][real]) < 1e-4


@pytest.fixture
def traced(checkpoint):
    """`traced(attention, run)`: a model's program, traced; no device is needed."""

    def trace(attention, run):
        ids = jax.ShapeDtypeStruct((2, 40), jnp.int32)
        plain = create_model_with_hooks(checkpoint.config, None, jnp.bfloat16)
        params = jax.eval_shape(plain.init, jax.random.key(0), ids)
        model = create_model_with_hooks(checkpoint.config, None, jnp.bfloat16, attention)
        return jax.jit(functools.partial(run, model)).trace(params, ids, ids)

    return trace


@pytest.fixture
def asked_of_cudnn(traced, monkeypatch):
    """`asked_of_cudnn(attention, run)`: arrays and arguments of each call that asks for cuDNN."""

    def calls_of(attention, run):
        calls = []

        def record(*arrays, implementation, **arguments):
            assert implementation == "cudnn"
            calls.append((arrays, arguments))
            return jnp.zeros_like(arrays[0])

        monkeypatch.setattr(jax.nn, "dot_product_attention", record)
        traced(attention, run)
        return calls

    return calls_of


def whole(model, params, ids, positions):
    return forward(model, params, ids, positions).activations


def last_rows(model, params, ids, positions):
    return forward(model, params, ids, positions, rows=positions[:, -1:]).residual


def applied(model, params, ids, positions):
    return model.apply(params, ids)


def applied_with_mask(model, params, ids, positions):
    return model.apply(params, ids, positions)


def test_splash_is_a_tpu_kernel_that_alike_layers_share(traced):
    def lowered(attention, platform):
        return traced(attention, whole).lower(lowering_platforms=(platform,)).as_text()

    program = lowered("splash", "tpu")
    assert program.count("tpu_custom_call") == 2  # full attention, and with a window
    assert program.count("call @attend_splash") == 4
    assert "tpu_custom_call" not in lowered("splash", "cpu")
    assert "tpu_custom_call" not in lowered("xla", "tpu")


@pytest.mark.parametrize(
    ("run", "count"), [(whole, 4), (applied, 4), (last_rows, 3), (applied_with_mask, 0)]
)
def test_cudnn_runs_prompts_that_have_no_padding_on_the_left(asked_of_cudnn, run, count):
    """With a mask there may be some; a few rows alone are no prompt."""
    calls = asked_of_cudnn("cudnn", run)
    assert len(calls) == count
    assert all(arguments["is_causal"] for _, arguments in calls)


def test_cudnn_is_told_the_window_and_gets_ungrouped_heads(asked_of_cudnn):
    calls = asked_of_cudnn("cudnn", whole)
    windows = [arguments["local_window_size"] for _, arguments in calls]
    assert windows == [None, None, (6, 0), (6, 0)]  # slots before and after; a token sees itself
    for arrays, _ in calls:
        assert [array.shape for array in arrays] == [(2, 40, 6, 8), (2, 40, 2, 8), (2, 40, 2, 8)]
        assert {array.dtype for array in arrays} == {jnp.dtype("bfloat16")}
    assert asked_of_cudnn("xla", whole) == []


@pytest.mark.parametrize("window", [None, 1, 30])
@pytest.mark.parametrize("group", GROUPS)
def test_what_cudnn_is_asked_for_means_the_same_rows(monkeypatch, group, window):
    """Its arguments, handed to XLA's implementation of `jax.nn.dot_product_attention`."""
    asked = jax.nn.dot_product_attention

    def by_xla(*arrays, implementation, **arguments):
        assert implementation == "cudnn"
        with jax.numpy_dtype_promotion("standard"):  # XLA's mixes dtypes inside
            return asked(*arrays, implementation="xla", **arguments)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    arrays, positions, real = prompt(200, "right", *GROUPS[group], dtype="bfloat16")
    assert_same_rows(attend_cudnn(*arrays, positions, window), arrays, positions, real, window)


@pytest.mark.parametrize("window", [None, 1, 30])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_cudnn_gives_the_same_rows(head_dim, dtype, window):
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU: cuDNN runs nowhere else")
    for slots in (127, 200, 1100):
        arrays, positions, real = prompt(slots, "right", 14, 2, head_dim, dtype)
        ours = attend_cudnn(*arrays, positions, window)
        assert_same_rows(ours, arrays, positions, real, window)


def test_cudnn_refuses_float32():
    arrays, positions, _ = prompt(40, "none")
    with pytest.raises(ModelError, match="bfloat16 or float16, not in float32"):
        attend_cudnn(*arrays, positions)


def test_an_unknown_attention_is_refused(checkpoint):
    with pytest.raises(ModelError, match="'flash' is unknown; there are xla, splash, cudnn"):
        create_model_with_hooks(checkpoint.config, attention="flash")


SHAPE = QwenConfig(
    vocab_size=8,
    hidden_size=896,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=14,
    num_key_value_heads=2,
    sliding_window=64,
    layer_types=("sliding_attention",),
)


@pytest.mark.parametrize(
    ("requested", "platform", "dtype", "head_dim", "capability", "chosen"),
    [
        ("auto", "cpu", "float32", 64, None, "xla"),
        ("auto", "cpu", "bfloat16", 64, None, "xla"),
        ("auto", "tpu", "bfloat16", 64, None, TPU_DEFAULT),
        ("auto", "tpu", "float32", 128, None, TPU_DEFAULT),
        ("auto", "gpu", "bfloat16", 64, None, "cudnn"),
        ("auto", "gpu", "bfloat16", 128, "8.0", "cudnn"),
        ("auto", "gpu", "float32", 64, "9.0", "xla"),
        ("auto", "gpu", "bfloat16", 60, "9.0", "xla"),
        ("auto", "gpu", "bfloat16", 256, "8.9", "xla"),
        ("auto", "gpu", "bfloat16", 256, "10.0", "cudnn"),
        ("auto", "gpu", "bfloat16", 264, "9.0", "xla"),
        ("auto", "gpu", "bfloat16", 64, "7.5", "xla"),
        ("auto", "gpu", "bfloat16", 64, "gfx942", "xla"),
        ("xla", "gpu", "bfloat16", 64, "9.0", "xla"),
        ("xla", "tpu", "float32", 64, None, "xla"),
        ("splash", "tpu", "bfloat16", 64, None, "splash"),
        ("splash", "tpu", "float32", 128, None, "splash"),
        ("cudnn", "gpu", "bfloat16", 64, None, "cudnn"),
        ("cudnn", "gpu", "float16", 256, "9.0", "cudnn"),
    ],
)
def test_the_choice(requested, platform, dtype, head_dim, capability, chosen):
    config = dataclasses.replace(SHAPE, head_dim=head_dim)
    choice = choose_attention(requested, platform, dtype, config, compute_capability=capability)
    assert choice == chosen
    assert choice in ATTENTION


@pytest.mark.parametrize(
    ("requested", "platform", "dtype", "head_dim", "capability", "why"),
    [
        ("flash", "gpu", "bfloat16", 64, None, "'flash' is unknown"),
        ("splash", "cpu", "float32", 64, None, "runs on TPU .* not on cpu"),
        ("splash", "gpu", "bfloat16", 64, "9.0", "runs on TPU .* not on gpu"),
        ("splash", "tpu", "float16", 64, None, "not on tpu in float16"),
        ("cudnn", "cpu", "bfloat16", 64, None, "NVIDIA GPUs .* not on cpu"),
        ("cudnn", "tpu", "bfloat16", 64, None, "NVIDIA GPUs .* not on tpu"),
        ("cudnn", "gpu", "bfloat16", 64, "7.5", "8.0 and newer, not on 7.5"),
        ("cudnn", "gpu", "bfloat16", 64, "gfx942", "NVIDIA GPUs .* not on gfx942"),
        ("cudnn", "gpu", "bfloat16", 60, None, "multiples of 8 up to 128, not a head_dim of 60"),
        ("cudnn", "gpu", "bfloat16", 256, "8.9", "up to 128"),
        ("cudnn", "gpu", "bfloat16", 264, "9.0", "up to 256"),
        ("cudnn", "gpu", "float32", 64, "9.0", "not in float32: use bfloat16"),
    ],
)
def test_what_cannot_run_is_refused(requested, platform, dtype, head_dim, capability, why):
    config = dataclasses.replace(SHAPE, head_dim=head_dim)
    with pytest.raises(ModelError, match=why):
        choose_attention(requested, platform, dtype, config, compute_capability=capability)
