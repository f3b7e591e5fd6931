"""The page of an evaluation as a browser shows it; skipped where there is no Chromium."""

import pytest

from sae.evaluation.page import page_of
from tests.extraction.report.chromium import Chromium, find_chromium
from tests.extraction.report.test_browser import (
    OVERLAPS,
    TEXTS,
    assert_fits,
    assert_quiet,
    hexadecimal,
)
from tests.extraction.report.test_page_safety import HOSTILE, contrast
from tests.sae.evaluation.evaluations import evaluation


@pytest.fixture(scope="module")
def browser():
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with Chromium(program) as started:
        yield started


@pytest.mark.parametrize("text", [*HOSTILE.values(), "texts.jsonl"], ids=[*HOSTILE, "plain"])
def test_it_fits_and_needs_nothing(browser, tmp_path, text):
    path = tmp_path / "page.html"
    path.write_text(page_of(evaluation([text, f"{text} of k=32", "layer_12.k=64"], text)))
    browser.open(path)
    for width in (320, 390, 1280):
        assert_fits(browser, width)
        assert browser.run(OVERLAPS) == []
    assert_quiet(browser, path)


@pytest.mark.parametrize("dark", [False, True])
def test_all_texts_have_contrast(browser, tmp_path, dark):
    path = tmp_path / "page.html"
    path.write_text(page_of(evaluation(["k=16", "k=32"])))
    browser.show_as(1280, dark=dark)
    browser.open(path)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = {tuple(map(hexadecimal, c.split("; "))): text for c, text in browser.run(TEXTS).items()}
    assert len(found) > 4
    assert {text: pair for pair, text in found.items() if contrast(*pair) < 4.5} == {}
