"""Rows in memory: torch's, whatever the padding, the batch and the selectors."""

import array

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from inference.captures import capture
from inference.engine.language_model import load_model
from inference.errors import InputError
from qwen_hooks import ModelError
from qwen_hooks.interventions import Add
from tests.oracle import load_torch, make_checkpoint, random_tokens, row_error, torch_rows

LENGTHS = [9, 33, 4, 1, 70]
IDS = [random_tokens(n, seed=i) for i, n in enumerate(LENGTHS)]
LAYERS = (0, 3)
HOOKS = ["layer_0", "blocks.3.hook_resid_post"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(str(checkpoint))


@pytest.fixture(scope="module")
def judge(checkpoint):
    return load_torch(checkpoint)


def check(captured, judge, sequences):
    """Every row is torch's, and carries its token."""
    theirs = [torch_rows(judge, list(tokens))[1] for tokens in sequences]
    for layer in LAYERS:
        wanted = np.stack(
            [theirs[n][layer][p] for n, p in zip(captured.sample, captured.position, strict=True)]
        )
        assert row_error(captured[f"layer_{layer}"], wanted) < 1e-4
    assert captured.token_id.tolist() == [
        sequences[n][p] for n, p in zip(captured.sample, captured.position, strict=True)
    ]


def places(captured):
    return list(zip(captured.sample.tolist(), captured.position.tolist(), strict=True))


@pytest.mark.parametrize("positions", [["all"], ["last"], ["last:2", "every:5"]])
def test_rows_of_ragged_inputs(model, judge, positions):
    captured = capture(model, IDS, HOOKS, positions, batch_size=2)
    check(captured, judge, IDS)
    chosen = {
        "all": lambda p, n: True,
        "last": lambda p, n: p == n - 1,
        "last:2": lambda p, n: p >= n - 2 or p % 5 == 0,
    }[positions[0]]
    wanted = [(i, p) for i, n in enumerate(LENGTHS) for p in range(n) if chosen(p, n)]
    assert places(captured) == wanted
    np.testing.assert_array_equal(captured.slot, captured.position)


@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_padded_arrays_on_any_side(model, judge, side):
    slots = max(LENGTHS) + 3
    ids, mask = np.full((len(IDS), slots), 7), np.zeros((len(IDS), slots), bool)
    for i, tokens in enumerate(IDS):
        columns = np.arange(len(tokens))
        if side == "left":
            columns += slots - len(tokens)
        elif side == "between":
            columns = np.sort(np.random.default_rng(i).permutation(slots)[: len(tokens)])
        ids[i, columns], mask[i, columns] = tokens, True
    captured = capture(model, ids, HOOKS, ["all"], attention_mask=mask)
    check(captured, judge, IDS)
    values, there = captured.dense("layer_3")
    np.testing.assert_array_equal(there, mask)
    np.testing.assert_array_equal(values[there], captured["layer_3"])
    assert not values[~there].any()


def test_generated_tokens(model, judge):
    captured = capture(model, IDS, HOOKS, ["all"], max_new_tokens=4, batch_size=2)
    for tokens, ours in zip(IDS, captured.generated, strict=True):
        theirs = judge.generate(
            torch.tensor([tokens]), max_new_tokens=4, do_sample=False, pad_token_id=0
        )
        assert list(ours) == theirs[0, len(tokens) :].tolist()
    check(captured, judge, [[*a, *b] for a, b in zip(IDS, captured.generated, strict=True)])
    assert len(captured) == sum(n + 3 for n in LENGTHS)


def test_each_input_its_own_steering(model, checkpoint):
    """Inputs are sorted into batches; every one keeps its own coefficient."""
    vector = np.random.default_rng(0).normal(size=48).astype(np.float32)
    coefficients = np.arange(len(IDS), dtype=np.float32)
    steer = {"layer_1": Add(vector=vector, coefficient=coefficients)}
    captured = capture(model, IDS, ["layer_1"], ["all"], interventions=steer, batch_size=2)
    plain = capture(model, IDS, ["layer_1"], ["all"])
    wanted = plain["layer_1"] + coefficients[plain.sample][:, None] * vector
    assert row_error(captured["layer_1"], wanted) < 1e-5


def test_texts_and_chats(demo_checkpoint):
    model = load_model(str(demo_checkpoint))
    texts = ["Paris is in France.", "東京 🧩 Paris and Paris"]
    captured = capture(model, texts, ["layer_1"], ["substring[last, last]:Paris"])
    assert captured.sample.tolist() == [0, 1]
    tokens = [model.tokenizer.decode([token]) for token in captured.token_id]
    assert all(token.endswith("s") for token in tokens)
    chat = [{"role": "user", "content": "Hi"}]
    (ids,) = capture(model, [chat], ["layer_1"]).token_ids
    assert model.tokenizer.decode(ids) == model.tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    ids, mask = model.tokenise(texts)
    both = capture(model, ids, ["layer_1"], ["all"], attention_mask=mask)
    alone = capture(model, texts, ["layer_1"], ["all"])
    np.testing.assert_array_equal(both["layer_1"], alone["layer_1"])


class Named(str):
    """A text that calls itself something else."""

    def __str__(self):
        return "named"


def test_ids_and_texts_of_other_types(model, demo_checkpoint):
    kinds = [
        [np.int64(5), 6], (5, np.uint8(6)), np.array([5, 6], np.uint16), torch.tensor([5, 6]),
        jnp.array([5, 6]), [torch.tensor(5), jnp.int32(6)], range(5, 7), iter([5, 6]),
        array.array("i", [5, 6]),
    ]  # fmt: skip
    assert set(capture(model, kinds, HOOKS).token_ids) == {(5, 6)}
    demo = load_model(str(demo_checkpoint))
    ours, theirs = capture(demo, [Named("Paris"), "Paris"], "layer_1").token_ids
    assert ours == theirs


def test_positions_in_a_chat_come_from_its_structure(demo_checkpoint):
    """The template says assistant, a and user before the messages do."""
    model = load_model(str(demo_checkpoint))
    for content in ("assistant", "a", "user", "<|im_end|>", "東京 "):
        chat = [{"role": "user", "content": content}]
        captured = capture(model, [chat], "layer_1", "role:user")
        before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        first = len(model.tokenizer(before)["input_ids"])
        count = len(model.tokenizer(content)["input_ids"])
        assert captured.position.tolist() == list(range(first, first + count))
        assert model.tokenizer.decode(captured.token_id) == content


def test_tools_and_entities_stand_beside_the_prompt(demo_checkpoint):
    model = load_model(str(demo_checkpoint))
    model.tokenizer.chat_template = (
        "{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}{% endfor %}"
    )
    chat = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    captured = capture(model, [{"messages": chat, "tools": tools}], "layer_1")
    assert model.tokenizer.decode(captured.token_ids[0]) == model.tokenizer.apply_chat_template(
        chat, tools=tools, tokenize=False
    )
    texts = [{"prompt": "Rome or Paris", "entity": "Paris"}, {"prompt": "Rome", "entity": "Rome"}]
    captured = capture(model, texts, "layer_1", "entity")
    words = [captured.token_id[captured.sample == n] for n in (0, 1)]
    assert [model.tokenizer.decode(ids).strip() for ids in words] == ["Paris", "Rome"]


def test_no_inputs(model):
    captured = capture(model, [], HOOKS)
    assert len(captured) == 0
    assert captured.dense("layer_0")[0].shape == (0, 0, 48)


@pytest.mark.parametrize(
    "fields",
    [{"coefficient": np.ones(n, np.float32)} for n in (4, 1)]
    + [{"vector": np.ones((2, 48), np.float32)}],
    ids=["four of five", "one for all", "two of five"],
)
def test_what_is_of_other_samples_is_refused(model, fields):
    steer = {"layer_1": Add(**{"vector": np.ones(48, np.float32), **fields})}
    if len(next(iter(fields.values()))) == 1:
        captured = capture(model, IDS, ["layer_1"], interventions=steer)
        plain = capture(model, IDS, ["layer_1"])
        assert row_error(captured["layer_1"], plain["layer_1"] + 1) < 1e-5
        return
    with pytest.raises(ModelError, match=f"for {len(next(iter(fields.values())))} samples"):
        capture(model, IDS, ["layer_1"], interventions=steer)


NO_INPUTS = [
    np.array([1.5]), [1.0], [1, 2.0], [True, False], [1, True], [np.True_, 1], np.array([True]),
    torch.tensor([True]), [torch.tensor(True), 1], b"abc", bytearray(b"abc"), memoryview(b"abc"),
    {1, 2}, ["1"], [None], 7, None, [[1, 2], [3]], np.array(5), np.ones((1, 2), int), [[1]],
]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([[]], r"^inputs\[0\]: the prompt is empty"),
        ([np.zeros(0)], r"^inputs\[0\]: the prompt is empty"),
        ([[1], [1] * 1025], r"^inputs\[1\]: 1025 prompt tokens"),
        ([[1, 300]], r"'inputs\[0\]'.*: token id 300 is not in"),
        ([[1, -1]], r"'inputs\[0\]'.*: token id -1 is not in"),
        ([[1, 2**70]], r"'inputs\[0\]'.*: token id 1180591620717411303424 is not in"),
        (["a"], r"'inputs\[0\]' .* no tokenizer"),
        (["\ud800"], r"^inputs\[0\] holds half of a surrogate pair"),
        ([[{"role": "user", "content": "\udfff"}]], r"^inputs\[0\]: message 0 holds half of"),
        ([[{"role": "user", "content": {1}}]], r"^inputs\[0\]: message 0: content must be"),
        (
            [[{"role": "user", "content": "a", "x": {1}}]],
            "message 0 holds what JSON cannot",
        ),
        ([{"text": "a"}], r"^inputs\[0\]: exactly one of prompt, messages, token_ids"),
        ("text", "not one str"),
        (b"text", "not one bytes"),
    ]
    + [
        ([[1], content], r"^inputs\[1\] must be a text, a chat .* or token ids")
        for content in NO_INPUTS
    ],
)
def test_what_is_wrong_is_told(model, inputs, words):
    with pytest.raises(InputError, match=words):
        capture(model, inputs, HOOKS)
    with pytest.raises(InputError, match="is none of"):
        capture(model, [[1]], HOOKS, ["lst"])
    with pytest.raises(InputError, match="differ in width"):
        capture(model, [[1]], ["layers.0.attention.pattern"])


@pytest.mark.parametrize("nothing", ["", [], ()])
def test_no_hook_point_and_no_position_are_told(model, nothing):
    with pytest.raises(InputError, match="hook_points must name at least one"):
        capture(model, [[1]], nothing)
    with pytest.raises(InputError, match="positions"):
        capture(model, [[1]], HOOKS, nothing)


def test_a_batch_that_does_not_fit_is_refused_before_it_runs(model, monkeypatch):
    monkeypatch.setattr("inference.captures.device_memory", lambda device: 10_000)
    with pytest.raises(InputError, match="on each device, which has"):
        capture(model, IDS, HOOKS)
