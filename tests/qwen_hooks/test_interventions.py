"""Interventions against the torch model with hooks on the same modules."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from inference.engine.programs import (
    BatchInput,
    GenerationSettings,
    batch_sharding,
    generate_batch,
    last_slots,
)
from qwen_hooks import Checkpoint, create_model_with_hooks, load_params
from qwen_hooks.errors import ModelError
from qwen_hooks.hook_points import hook_widths, sites
from qwen_hooks.interventions import Add, Clamp, ProjectOut, Replace, Splice, intervene
from qwen_hooks.sharding import layout_for
from tests.compilations import count_compilations
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error

SHAPE = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}
NEW_TOKENS = 16
LENGTHS = [9, 1, 17, 5, 12, 3, 30, 2]
CAPTURED = ["layer_1", "layer_3", "layers.2.mlp"]
PLACES = [
    ("layer_1",),
    ("embed_tokens", "layers.1.resid_pre", "layers.1.mlp", "layers.2.attention.z"),
    ("layers.1.attention.v", "layers.2.attention.k", "layers.2.mlp.neurons", "norm", "logits"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), **SHAPE)


@pytest.fixture(scope="module")
def torch_model(folder):
    return load_torch(folder)


@pytest.fixture(scope="module")
def config(folder):
    return Checkpoint.open(folder).config


def numbers(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


class Ours:
    """The batch of `LENGTHS` on a mesh, with or without interventions."""

    def __init__(self, folder, mesh=(1, 1), scan=False):
        checkpoint = Checkpoint.open(folder)
        devices = jax.devices()[: mesh[0] * mesh[1]]
        self.layout = layout_for(checkpoint.config, mesh, devices, 10**9, 4)
        self.model = create_model_with_hooks(
            self.layout.config(checkpoint.config), hook_points=CAPTURED, scan_layers=scan
        )
        self.params = load_params(checkpoint, layout=self.layout, scan_layers=scan)
        self.config = checkpoint.config
        lengths = np.array(LENGTHS, np.int32)
        ids = np.zeros((len(LENGTHS), max(LENGTHS)), np.int32)
        for row, length in enumerate(LENGTHS):
            ids[row, :length] = random_tokens(length, seed=row)
        sharding = batch_sharding(self.layout.mesh)
        arrays = (ids, lengths, np.arange(len(LENGTHS), dtype=np.int32), last_slots(lengths))
        self.batch = BatchInput(*(jax.device_put(x, sharding) for x in arrays))

    def run(self, operations=None):
        """Tokens `[B, new]`, and rows `[B, new, width]` of each captured hook point."""
        interventions = None
        if operations is not None:
            interventions = intervene(operations, self.config, np.array(LENGTHS, np.int32))
        output = generate_batch(
            self.model,
            self.params,
            self.batch,
            settings=GenerationSettings(max_new_tokens=NEW_TOKENS),
            mesh=self.layout.mesh,
            interventions=interventions,
        )
        rows = {
            hook: np.concatenate(
                [np.asarray(first), np.asarray(output.generated_rows[hook]).swapaxes(0, 1)], axis=1
            )
            for hook, first in output.prompt_rows.items()
        }
        return np.asarray(output.tokens), rows


@pytest.fixture(scope="module")
def ours(folder):
    return functools.cache(functools.partial(Ours, folder))


def torch_run(model, config, prompt, changes):
    """Greedy decoding by `generate`; `changes` are functions of a value and its positions."""
    at = {site.name: site for site in sites(config)}
    seen = {hook: [] for hook in CAPTURED}
    lengths = []  # tokens of each forward pass so far
    handles = [
        model.get_input_embeddings().register_forward_pre_hook(
            lambda _, inputs: lengths.append(inputs[0].shape[1])
        )
    ]

    def hook_on(name, function):
        path = at[name].point.hugging_face.format(i=at[name].layer)
        module = model.get_submodule(path.removesuffix(".input"))
        if path.endswith(".input"):
            return module.register_forward_pre_hook(
                lambda _, inputs: (function(inputs[0]), *inputs[1:])
            )

        def after(_, inputs, output):
            if isinstance(output, tuple):
                return function(output[0]), *output[1:]
            return function(output)

        return module.register_forward_hook(after)

    def change(value, function):
        positions = sum(lengths[:-1]) + np.arange(value.shape[1])
        flat = value.numpy().reshape(*value.shape[:2], -1)
        changed = function(flat, positions).astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(changed)).reshape(value.shape)

    def keep(value, name):
        seen[name].append(value[0, -1].numpy())
        return value

    for name, function in changes.items():
        handles.append(hook_on(name, functools.partial(change, function=function)))
    for name in CAPTURED:
        handles.append(hook_on(name, functools.partial(keep, name=name)))
    ids = torch.tensor([prompt])
    sequence = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
    )
    for handle in handles:
        handle.remove()
    assert lengths == [len(prompt)] + [1] * (NEW_TOKENS - 1)  # with a cache
    rows = {hook: np.stack(rows) for hook, rows in seen.items()}
    return sequence[0, len(prompt) :].tolist(), rows


def check(ours_run, torch_model, config, changes_of):
    tokens, rows = ours_run
    for row, length in enumerate(LENGTHS):
        prompt = random_tokens(length, seed=row)
        wanted_tokens, wanted = torch_run(torch_model, config, prompt, changes_of(row, length))
        assert tokens[row].tolist() == wanted_tokens
        for hook in CAPTURED:
            assert row_error(rows[hook][row], wanted[hook]) < 1e-4


def where(apply_to, length, positions):
    if apply_to == "all":
        return np.ones(len(positions), bool)
    return (positions < length) == (apply_to == "prompt")


@pytest.mark.parametrize("places", PLACES)
def test_a_vector_equals_torch_with_a_module_hook(ours, torch_model, config, places):
    vectors = {place: numbers(width) for place, width in hook_widths(places, config).items()}
    run = ours().run({p: Add(vector=v, coefficient=1.5) for p, v in vectors.items()})
    changes = {p: lambda x, at, v=v: x + 1.5 * v for p, v in vectors.items()}
    check(run, torch_model, config, lambda *_: changes)
    assert (run[0] != ours().run()[0]).any()  # it changes what is generated


@pytest.mark.parametrize(
    ("apply_to", "scan"), [("prompt", False), ("prompt", True), ("generated", False)]
)
def test_prompt_and_generated_tokens_are_told_apart(ours, torch_model, config, apply_to, scan):
    vector = numbers(64, seed=3)
    run = ours(scan=scan).run({"layer_1": Add(vector=vector, coefficient=2.0, apply_to=apply_to)})

    def changes(row, length):
        def function(x, at):
            return np.where(where(apply_to, length, at)[:, None], x + 2 * vector, x)

        return {"layer_1": function}

    check(run, torch_model, config, changes)


def relative(x, at, vector):
    unit = vector / np.linalg.norm(vector)
    return x + 0.5 * np.linalg.norm(x, axis=-1, keepdims=True) * unit


def projected(x, at, directions):
    basis = np.linalg.svd(directions, full_matrices=False)[2]
    return x - 0.7 * (x @ basis.T) @ basis


def clamped(x, at, direction):
    unit = direction / np.linalg.norm(direction)
    part = x @ unit
    return x + (np.clip(part, -0.5, 0.25) - part)[..., None] * unit


def spliced(x, at, weights):
    w_enc, w_dec, b_enc, b_dec = weights
    return np.maximum((x - b_dec) @ w_enc + b_enc, 0) @ w_dec + b_dec


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("relative", "layer_1"),
        ("splice", "layer_1"),
        ("project", "layers.2.mlp.neurons"),
        ("clamp", "layer_1"),
        ("replace", "layers.2.mlp.neurons"),
        ("two", "layer_1"),
    ],
)
def test_operations_equal_torch(ours, torch_model, config, place, kind):
    width = hook_widths([place], config)[place]
    one, several = numbers(width, seed=5), numbers(3, width, seed=6)
    weights = [0.1 * numbers(*s, seed=7) for s in ((width, 96), (96, width), (96,), (width,))]
    operation, function = {
        "relative": (
            Add(vector=one, coefficient=0.5, relative=True),
            functools.partial(relative, vector=one),
        ),
        "project": (
            ProjectOut(directions=several, strength=0.7),
            functools.partial(projected, directions=several),
        ),
        "clamp": (
            Clamp(direction=one, low=-0.5, high=0.25),
            functools.partial(clamped, direction=one),
        ),
        "replace": (Replace(values=one), lambda x, at: np.broadcast_to(one, x.shape)),
        "splice": (
            Splice(**dict(zip(("W_enc", "W_dec", "b_enc", "b_dec"), weights, strict=True))),
            functools.partial(spliced, weights=weights),
        ),
        "two": (
            [Add(vector=one), Clamp(direction=one, low=-0.5, high=0.25)],
            lambda x, at: clamped(x + one, at, one),
        ),
    }[kind]
    check(ours().run({place: operation}), torch_model, config, lambda *_: {place: function})


@pytest.mark.parametrize(
    ("mesh", "scan"), [((1, 1), False), ((8, 1), False), ((2, 4), False), ((2, 4), True)]
)
def test_samples_may_differ_in_vector_coefficient_and_positions(
    ours, torch_model, config, mesh, scan
):
    count = len(LENGTHS)
    vectors, coefficients = numbers(count, 64, seed=1), numbers(count, seed=2)
    places = np.array([[length - 1, length + 2, -1] for length in LENGTHS], np.int32)
    values = numbers(count, 3, 16, seed=4)
    run = ours(mesh=mesh, scan=scan).run(
        {
            "layer_1": Add(vector=vectors, coefficient=coefficients),
            "layers.2.attention.v": Replace(values=values, positions=places),
        }
    )

    def changes(row, length):
        def patched(x, at):
            x = x.copy()
            for place, value in zip(places[row], values[row], strict=True):
                x[:, at == place] = value
            return x

        return {
            "layer_1": lambda x, at: x + coefficients[row] * vectors[row],
            "layers.2.attention.v": patched,
        }

    check(run, torch_model, config, changes)


@pytest.mark.parametrize(("mesh", "scan"), [((1, 1), False), ((8, 1), False), ((2, 4), True)])
def test_coefficient_zero_is_bit_equal_to_no_steering(ours, mesh, scan):
    model = ours(mesh=mesh, scan=scan)
    tokens, rows = model.run()
    steered = {
        hook: Add(vector=numbers(64), coefficient=0.0) for hook in ("layer_1", "layers.2.mlp")
    }
    same_tokens, same = model.run(steered)
    np.testing.assert_array_equal(same_tokens, tokens)
    for hook, values in rows.items():
        np.testing.assert_array_equal(same[hook].view(np.int32), values.view(np.int32))


def test_other_numbers_compile_nothing_anew(ours):
    model = ours()
    results = set()
    with count_compilations(generate_batch) as compiled:
        for seed in range(100):
            positions = np.full((len(LENGTHS), 2), -1, np.int32)
            positions[:, 0] = seed % 20
            operation = Add(
                vector=numbers(64, seed=seed), coefficient=np.float32(seed), positions=positions
            )
            tokens, _ = model.run({"layer_1": operation})
            results.add(tokens.tobytes())
        assert compiled() == 1
    assert len(results) > 50


def test_a_python_number_is_a_number_too(ours):
    model = ours()
    with count_compilations(generate_batch) as compiled:
        for coefficient in (1.0, 2.0, 3.5, -1.0):
            model.run({"layer_2": Add(vector=numbers(64), coefficient=coefficient)})
        assert compiled() == 1


@pytest.mark.parametrize("apply_to", ["all", "prompt", "generated"])
def test_the_cache_changes_nothing(ours, apply_to):
    model = ours()
    operations = {
        "layer_1": Add(vector=numbers(64), coefficient=2.0, apply_to=apply_to),
        "layers.2.attention.k": ProjectOut(directions=numbers(2, 16), apply_to=apply_to),
    }
    tokens, rows = model.run(operations)
    for row, length in enumerate(LENGTHS[:2]):
        sequence = np.array([[*random_tokens(length, seed=row), *tokens[row, :-1]]], np.int32)
        edits = intervene(operations, model.config, np.array([length], np.int32))
        whole = jax.jit(
            lambda params, ids, edits: model.model.apply(
                params, ids, return_activations=True, interventions=edits
            )
        )
        logits, activations = whole(model.params, sequence, edits)
        assert np.asarray(logits)[0, length - 1 :].argmax(-1).tolist() == tokens[row].tolist()
        for hook in CAPTURED:
            alone = np.asarray(activations[hook])[0, length - 1 :]
            assert row_error(rows[hook][row], alone) < 1e-5


def test_padding_is_not_changed_and_changes_nothing(folder, config):
    """Left or right: a token's row is the same, and so are its positions."""
    model = create_model_with_hooks(config, hook_points=CAPTURED)
    params = load_params(Checkpoint.open(folder))
    tokens = random_tokens(6)
    operation = Add(vector=numbers(64), coefficient=2.0, positions=np.array([[1, 4]], np.int32))
    edits = intervene({"layer_1": operation}, config, np.array([6], np.int32))
    _, alone = model.apply(params, np.array([tokens]), None, True, edits)
    for mask in ([0, 0, 0] + [1] * 6, [1] * 6 + [0, 0, 0]):
        ids = np.zeros((1, 9), np.int32)
        ids[0, np.array(mask) > 0] = tokens
        _, padded = model.apply(params, ids, np.array([mask]), True, edits)
        for hook in CAPTURED:
            rows = np.asarray(padded[hook])[0, np.array(mask) > 0]
            assert row_error(rows, np.asarray(alone[hook])[0]) < 1e-5


def test_nothing_is_left_behind(ours):
    model = ours()
    before = model.run()
    model.run({"layer_1": Add(vector=numbers(64), coefficient=50.0)})
    after = model.run()
    np.testing.assert_array_equal(before[0], after[0])


def test_aliases_and_patterns_name_hook_points(config):
    lengths = np.array([3], np.int32)
    edits = intervene(
        {
            "blocks.{0,1}.hook_mlp_out": Add(vector=numbers(64)),
            "layers.1.mlp": Add(vector=numbers(64)),
        },
        config,
        lengths,
    )
    assert {name: len(ops) for name, ops in edits.operations.items()} == {
        "layers.0.mlp": 1,
        "layers.1.mlp": 2,
    }


@pytest.mark.parametrize(
    ("name", "operation", "words"),
    [
        ("layer_9", Add(vector=numbers(64)), "there is no hook point"),
        ("layers.1.attention.pattern", Add(vector=numbers(64)), "cannot be changed"),
        ("layer_1", Add(vector=numbers(63)), "64 numbers, vector has shape"),
        ("layer_1", ProjectOut(directions=numbers(2, 8)), "directions has shape"),
        ("layer_1", Replace(values=numbers(2, 1)), "values has shape"),
    ],
)
def test_what_cannot_be_is_refused(config, name, operation, words):
    with pytest.raises(ModelError, match=words):
        intervene({name: operation}, config, jnp.array([3]))


def test_an_operation_is_frozen():
    operation = Add(vector=numbers(4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        operation.coefficient = 2.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda v: Clamp(direction=v, low=1.0, high=0.5), "low must be at most high, not 1.0 and"),
        (
            lambda v: Clamp(direction=v, low=np.array([0.0, 2.0]), high=np.array([1.0, 1.0])),
            "not 2.0 and 1.0",
        ),
        (lambda v: Clamp(direction=v, low=jnp.float32(3), high=2), "not 3.0 and 2"),
        (lambda v: Clamp(direction=v, low=float("nan"), high=1.0), "low holds nan"),
        (lambda v: Clamp(direction=v, low=float("inf"), high=float("inf")), "low holds inf"),
        (lambda v: Clamp(direction=0 * v, low=0.0, high=1.0), "direction must have a length"),
        (lambda v: Add(vector=v, coefficient=float("nan")), "coefficient holds nan"),
        (lambda v: Add(vector=v, coefficient=float("inf")), "coefficient holds inf"),
        (lambda v: Add(vector=v, coefficient=np.array([1, np.nan])), "coefficient holds nan"),
        (lambda v: Add(vector=jnp.asarray(v).at[3].set(jnp.nan)), "vector holds nan"),
        (lambda v: Add(vector=np.full(len(v), 1e39)), "vector holds 1e"),
        (lambda v: Add(vector=0 * v, relative=True), "vector must have a length"),
        (lambda v: Replace(values=np.full(len(v), np.nan)), "values holds nan"),
        (lambda v: ProjectOut(directions=np.stack([v, 2 * v])), "2 directions span 1 dim"),
        (lambda v: ProjectOut(directions=0 * v[None]), "1 directions span 0 dim"),
        (lambda v: ProjectOut(directions=v[None], strength=float("nan")), "strength holds nan"),
        (lambda v: Add(vector=v, positions=np.array([[1, -2]] * 2)), "from 0, or -1 to fill up"),
        (
            lambda v: Replace(values=np.ones((2, 3, len(v))), positions=np.array([[0, 1]] * 2)),
            "for as many positions, not for 2",
        ),
        (lambda v: Replace(values=np.ones((2, 3, len(v)))), "for as many positions, not for None"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(config, operation, words):
    vector = numbers(config.hidden_size)
    with pytest.raises(ModelError, match=f"^layer_1: .*{words}"):
        intervene({"layer_1": operation(vector)}, config, np.array([5, 3]))


def test_open_bounds_clamp_on_one_side(folder, config):
    model = create_model_with_hooks(config, hook_points=["layer_1"])
    params, tokens = load_params(Checkpoint.open(folder)), np.array([random_tokens(6)])
    direction = numbers(config.hidden_size)

    def component(*bounds):
        edits = None
        if bounds:
            clamp = Clamp(direction=direction, low=bounds[0], high=bounds[1])
            edits = intervene({"layer_1": clamp}, config, np.array([6]))
        _, rows = model.apply(params, tokens, return_activations=True, interventions=edits)
        rows = np.asarray(rows["layer_1"][0], np.float64)
        return rows @ direction / np.linalg.norm(direction.astype(np.float64))

    plain = component()
    middle = float(np.median(plain))
    np.testing.assert_allclose(component(middle, np.inf), plain.clip(middle), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        component(-np.inf, middle), plain.clip(max=middle), rtol=1e-4, atol=1e-4
    )
