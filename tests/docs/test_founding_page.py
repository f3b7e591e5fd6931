"""The table of docs/founding.md leads to what is there."""

import re
from pathlib import Path

import pytest

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
