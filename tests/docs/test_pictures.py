"""Pictures that pages show are in the repository, are small, and are described in words."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LARGEST = 150_000
"""Bytes of a picture, which everyone who clones the repository gets."""


def test_pictures_exist_are_small_and_are_described():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    shown = [
        (page, re.search(r'src="([^"]+)"', tag)[1], re.search(r'alt="([^"]+)"', tag)[1])
        for page in pages
        for tag in re.findall(r"<img[^>]*>", page.read_text("utf-8"))
    ]
    assert [(page.name, source) for page, source, _ in shown] == [("README.md", "docs/report.webp")]
    for page, source, words in shown:
        data = (page.parent / source).read_bytes()
        assert data[:4] + data[8:12] == b"RIFFWEBP"
        assert len(data) < LARGEST
        assert len(words) > 40
