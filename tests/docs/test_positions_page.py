"""The examples of docs/positions.md choose what they show."""

import re
import shlex
from pathlib import Path

import pytest

from examples.make_demo import make_tokenizer
from inference.positions import SELECTORS, Positions, PromptTokens, special_ids
from inference.shown_positions import CLOSE, OPEN, mark_tokens

PAGE = (Path(__file__).parents[2] / "docs/positions.md").read_text(encoding="utf-8")
EXAMPLES = [
    (shlex.split(flags), shown)
    for flags, shown in re.findall(r"```text\n--positions ([^\n]+)\n(.*?)\n```", PAGE, re.DOTALL)
]
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
    is_chat = text.startswith("<|im_start|>")
    if is_chat:
        assert text == tokenizer.apply_chat_template(
            CHAT, tokenize=False, add_generation_prompt=True
        )
    prompt = PromptTokens(
        task_id="example",
        token_ids=tokenizer(text)["input_ids"],
        text=text,
        tokenizer=tokenizer,
        special=special_ids(tokenizer),
        messages=CHAT if is_chat else None,
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
