"""The table of docs/founding.md leads to what is there."""

import random
import re
from pathlib import Path

import pytest

from inference.captures import capture
from inference.engine.language_model import load_model
from qwen_hooks import QwenConfig
from qwen_hooks.hook_points import select

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "founding.md").read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", PAGE))))
def test_links_lead_somewhere(link):
    page, _, anchor = link.partition("#")
    assert (DOCS / page).exists()
    assert not anchor or anchor in anchors(page)


def test_every_page_but_the_faults_is_run_by_a_test():
    for page in set(re.findall(r"\]\((\w+)\.md", PAGE)):
        assert (Path(__file__).parent / f"test_{page}_page.py").exists()


def test_the_names_of_002_are_understood():
    config = QwenConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    (row,) = (line for line in PAGE.split("\n") if "`output_head`" in line)
    names = re.findall(r"`([^`]+)`", row.split("|")[1])
    assert len(names) == 7
    assert all(len(select(name, config)) == 1 for name in names)


def find_string_in_tokens(target, tokens, tokenizer):
    """The token finder of document 003: the least end, then the greatest start, by decoding."""
    tokens = list(tokens)
    stop = next(n for n in range(len(tokens) + 1) if target in tokenizer.decode(tokens[:n]))
    start = max(n for n in range(stop) if target in tokenizer.decode(tokens[n:stop]))
    return start, stop


def entity_prompts():
    """60 prompts that name their entity from once to three times, alone and inside of words."""
    source = random.Random(3)
    entities = ["Paris", "Ångström", "東京", "New York City", "a", "Nile 🧩", "É", "Hans-Peter"]
    words = ["where", "is", "the", "Comparisons", "of", "river", "NewYork", "京都", "?", "1999"]
    prompts = []
    for number in range(60):
        entity = entities[number % len(entities)]
        parts = [source.choice(words) for _ in range(12)]
        for place in source.sample(range(13), 1 + number % 3):
            parts.insert(place, entity)
        prompts.append({"prompt": " ".join(parts), "entity": entity})
    return prompts


def test_the_entity_selectors_choose_what_the_token_finder_of_003_does(demo_checkpoint):
    model, prompts = load_model(str(demo_checkpoint)), entity_prompts()
    (row,) = (line for line in PAGE.split("\n") if line.startswith("| 2.2"))
    one, two = re.findall(r"`(entity\[[^`]+\])`", row)
    assert set(re.findall(r"entity\[[^\]]+\]", PAGE)) == {one, two}  # 4.1 says the same
    counts = []
    for expression, n_positions in ((one, 1), (two, 2)):
        captured = capture(model, prompts, "layer_0", expression)
        for number, prompt in enumerate(prompts):
            ids = captured.token_ids[number]
            start, stop = find_string_in_tokens(prompt["entity"], ids, model.tokenizer)
            wanted = list(range(max(start, stop - n_positions), stop))
            assert captured.position[captured.sample == number].tolist() == wanted
            counts.append(prompt["prompt"].count(prompt["entity"]))
    assert len(counts) == 120
    assert counts.count(1) < 100
