"""The examples of docs/positions.md choose what they show."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from examples.make_demo import make_tokenizer
from inference.captures import capture
from inference.engine.language_model import load_model
from inference.extractions import extract
from inference.inputs.chats import Chat, RenderedChat
from inference.inputs.position_selectors import SELECTORS
from inference.inputs.positions import Positions
from inference.inputs.prompt_tokens import PromptTokens, special_ids
from inference.inputs.shown_positions import CLOSE, OPEN, mark_tokens

PAGE = (Path(__file__).parents[2] / "docs/positions.md").read_text(encoding="utf-8")
EXAMPLES = [
    (shlex.split(flags), shown)
    for flags, shown in re.findall(r"```text\n--positions ([^\n]+)\n(.*?)\n```", PAGE, re.DOTALL)
]


def selectors_of(expressions):
    """Names of the selectors."""
    return {re.match("(not )?([a-z]+)", expression)[2] for expression in expressions}


CHAT = [
    {"role": "user", "content": "Where is Paris?"},
    {"role": "assistant", "content": "In France."},
    {"role": "user", "content": "Sure?"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.mark.parametrize(
    ("expressions", "shown"), [e for e in EXAMPLES if "--max_new_tokens" not in e[0]]
)
def test_prompts(tokenizer, expressions, shown):
    text = shown.replace(OPEN, "").replace(CLOSE, "")
    chat = None
    if text.startswith("<|im_start|>"):
        chat = RenderedChat(
            task_id="example",
            chat=Chat(messages=CHAT),
            tokenizer=tokenizer,
            add_generation_prompt=True,
        )
        assert text == chat.text
    prompt = PromptTokens(
        task_id="example",
        token_ids=tokenizer(text)["input_ids"],
        text=text,
        tokenizer=tokenizer,
        special=special_ids(tokenizer),
        chat=chat,
        entity="Paris",
    )
    chosen = Positions(expressions).of_prompt(prompt)
    assert mark_tokens(tokenizer, prompt.token_ids, chosen) == shown


@pytest.mark.parametrize(("flags", "shown"), [e for e in EXAMPLES if "--max_new_tokens" in e[0]])
def test_generated_tokens(tokenizer, flags, shown):
    *expressions, _, new_tokens = flags
    prompt = PromptTokens(task_id="example", token_ids=[40, 41, 42])
    positions = Positions(expressions)
    ran = [50 + number for number in range(int(new_tokens) - 1)]
    steps = [0] * len(positions.of_prompt(prompt))
    steps += [1 + number for number in positions.of_generated(3, ran, frozenset())]
    assert f"steps {' '.join(map(str, steps))}" == shown


def test_every_selector_has_an_example():
    shown = {re.split(r"[\[:]", e.removeprefix("not "))[0] for flags, _ in EXAMPLES for e in flags}
    assert set(SELECTORS) <= shown


IN_BATCHES = [
    (expressions, shown)
    for expressions, shown in EXAMPLES
    if "--max_new_tokens" not in expressions and not {"entity", "role"} & selectors_of(expressions)
]
"""Those that need no more than the tokens, so that a batch of token ids can be asked for them."""


@pytest.fixture(scope="module")
def model(demo_checkpoint):
    return load_model(str(demo_checkpoint))


def shown_rows(tokenizer, captured, number):
    chosen = captured.position[captured.sample == number].tolist()
    return mark_tokens(tokenizer, captured.token_ids[number], chosen)


@pytest.mark.parametrize(("expressions", "shown"), IN_BATCHES)
def test_padding_on_either_side_changes_nothing(tokenizer, model, expressions, shown):
    tokens = tokenizer(shown.replace(OPEN, "").replace(CLOSE, ""))["input_ids"]
    longest = len(tokens) + 3
    left, right = slice(longest - len(tokens), None), slice(0, len(tokens))
    ids, mask = np.full((2, longest), tokens[0]), np.zeros((2, longest), int)
    ids[0, left], mask[0, left], ids[1, right], mask[1, right] = tokens, 1, tokens, 1
    captured = capture(model, ids, "layer_0", expressions, attention_mask=mask)
    is_random = "random" in selectors_of(expressions)  # each prompt its own
    for number in (0,) if is_random else (0, 1):
        assert shown_rows(tokenizer, captured, number) == shown
    for number, start in enumerate((left.start, right.start)):
        mine = captured.sample == number
        np.testing.assert_array_equal(captured.slot[mine], captured.position[mine] + start)


@pytest.mark.parametrize(
    ("expressions", "shown"), [e for e in IN_BATCHES if "random" not in selectors_of(e[0])][::4]
)
def test_packing_changes_nothing(tokenizer, model, tmp_path, expressions, shown):
    text = shown.replace(OPEN, "").replace(CLOSE, "")
    length = len(tokenizer(text)["input_ids"])
    run = extract(
        model, ["東京", text, "Paris", text], tmp_path, "layer_0", expressions,
        pack_length=2 * length + 40, format="safetensors", add_special_tokens=False,
    )  # fmt: skip
    keys = run.open("layer_0").keys()
    for number in (1, 3):
        line = run.outputs()[number]
        chosen = keys.position[keys.task_ids == line["task_id"]].tolist()
        assert mark_tokens(tokenizer, line["prompt_token_ids"], chosen) == shown
