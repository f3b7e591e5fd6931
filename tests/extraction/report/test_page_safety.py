"""What a run says stays text, and the page needs nothing but itself."""

import base64
import hashlib
import itertools
import re

import pytest

from extraction.report import report
from extraction.report.style import DARK, DARK_TOKENS, LIGHT, LIGHT_TOKENS
from tests.extraction.report.pages import Node, parse
from tests.extraction.report.reported_runs import write

HOSTILE = {
    "script": "</script><script>alert(1)</script>",
    "image": '<img src=x onerror="alert(1)">',
    "quotes": "\"' onmouseover='alert(1)' x=\"",
    "marks": "abc\u202edef\u2066ghi",
    "hebrew": "\u05d0\u05d1\u05d2 (1)",
    "NUL": "a\0b\x1b[2J\x07",
    "comment": "<!-- --><![CDATA[ ]]>&amp;&#0;",
    "long": "x" * 1_000_000,
}
CONTROLS = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
ALLOWED = {
    *("document", "html", "head", "meta", "title", "style", "body", "script", "header", "main"),
    *("footer", "section", "nav", "h1", "h2", "h3", "p", "a", "b", "ul", "li", "dl", "dt", "dd"),
    *("div", "span", "bdi", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "figure"),
    *("wbr", "figcaption", "details", "summary", "label", "select", "option", "button"),
    *("svg", "g", "rect", "line", "path", "circle", "text", "desc"),
}


@pytest.fixture(scope="module", params=HOSTILE)
def hostile(request, tmp_path_factory) -> tuple[str, bytes]:
    text = HOSTILE[request.param]
    settings = {"dataset": text, text: [text, {text: text}], "positions": [text]}
    run = write(
        tmp_path_factory.mktemp("hostile") / "run",
        texts=(text,),
        model_name=text,
        run={"settings": settings, "versions": {text: text}, "command": text, "mesh": {text: 1}},
        fingerprint={"config": {"model_type": text}},
    )
    return text, report(run.storage)


def test_hostile_texts_are_text(hostile):
    text, data = hostile
    page = parse(data)
    assert {node.name for node in page.nodes()} <= ALLOWED
    assert not CONTROLS.search(data.decode())
    for node in page.nodes():
        assert not any(name.startswith("on") for name in node.attributes), node
        assert node.name == "a" or not {"src", "href", "xlink:href"} & node.attributes.keys()
    assert len(list(page.nodes("script"))) == 1
    assert len(data) < 300_000
    title = page.one("h1")
    shown = text.encode("unicode_escape").decode() if CONTROLS.search(text) else text
    if len(text) < 100:
        assert title.text == shown
    else:
        assert title.text.startswith("xxx")
        assert title.text.endswith("… (1,000,000 characters)")
    if not text.isascii() and not CONTROLS.search(text):
        assert title.one("bdi").text == text


def test_nothing_else_is_loaded_and_nothing_else_may_run(hostile):
    data = hostile[1].decode()
    page = parse(hostile[1])
    assert not re.search(r"url\(|@import|https?:", re.sub(r"<bdi>.*?</bdi>", "", data))
    assert all(node.attributes["href"].startswith("#") for node in page.nodes("a"))
    ids = {node.attributes["id"] for node in page.nodes() if "id" in node.attributes}
    assert {node.attributes["href"][1:] for node in page.nodes("a")} <= ids
    (policy,) = [
        meta.attributes["content"]
        for meta in page.nodes("meta")
        if meta.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none';")
    for name in ("style", "script"):
        (content,) = page.one(name).children
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}';" in policy
    assert not any("style" in node.attributes for node in page.nodes())


def test_controls_have_names(tmp_path):
    page = parse(report(write(tmp_path / "run").storage))
    assert page.one("html").attributes["lang"] == "en"
    for svg in page.nodes("svg"):
        hidden = svg.attributes.get("aria-hidden") == "true"
        assert hidden or (svg.attributes["role"] == "img" and svg.attributes["aria-label"])
    assert page.one("label").one("select")
    for node in page.nodes():
        if node.attributes.get("tabindex") == "0":
            assert node.attributes["aria-label"]
    for name in ("section", "nav"):
        for node in page.nodes(name):
            assert node.attributes.keys() & {"aria-label", "aria-labelledby"}
    for cell in page.nodes("th"):
        assert cell.attributes["scope"] in ("row", "col")
    levels = [int(node.name[1]) for node in page.nodes() if re.fullmatch("h[1-6]", node.name)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """By WCAG 2.2."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_definition():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(("colours", "tokens"), [(LIGHT, LIGHT_TOKENS), (DARK, DARK_TOKENS)])
def test_texts_have_contrast(colours, tokens):
    pairs = [(colours[text], colours[ground]) for text in ("text", "soft", "accent")
             for ground in ("page", "card", "code")]  # fmt: skip
    pairs += [(colours[f"{kind}-text"], colours[kind]) for kind in ("good", "warning", "note")]
    pairs += [(text, ground) for ground, text in tokens]
    pairs.append((colours["card"], colours["text"]))
    assert all(contrast(text, ground) >= 4.5 for text, ground in pairs)
    lines = [name for name in colours if name.startswith("series-")]
    marks = [colours[name] for name in ("bar", "large", "soft", *lines)]
    assert all(contrast(mark, colours["card"]) >= 3 for mark in marks)


def test_every_colour_of_the_styles_is_defined(tmp_path):
    page = parse(report(write(tmp_path / "run").storage))
    (style,) = page.one("style").children
    used = set(re.findall(r"var\(--([\w-]+)\)", style))
    assert used <= {*LIGHT, *(f"{kind}{n}" for kind in "bf" for n in range(len(LIGHT_TOKENS)))}
    assert LIGHT.keys() == DARK.keys()
    classes = {c for node in page.nodes() for c in (node.attributes.get("class") or "").split()}
    styled = set(re.findall(r"\.([a-z][\w-]*)", style))
    assert classes - styled <= {"n", "messages"}


def test_pages_are_text_of_utf8(hostile):
    assert isinstance(parse(hostile[1]), Node)
    assert hostile[1].startswith(b"<!DOCTYPE html>")
