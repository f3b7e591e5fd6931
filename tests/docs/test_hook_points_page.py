"""docs/hook_points.md has the table that the code has."""

from pathlib import Path

from qwen_hooks.hook_point_table import HOOK_POINTS
from qwen_hooks.hook_points import markdown_table


def test_the_page_has_the_table_of_the_code():
    page = (Path(__file__).parents[2] / "docs/hook_points.md").read_text(encoding="utf-8")
    assert markdown_table() in page
    assert markdown_table().count("\n") == len(HOOK_POINTS) + 2
