"""The page of latents as a browser shows it; skipped where there is no Chromium."""

import pytest

from tests.extraction.report.chromium import Chromium, find_chromium
from tests.extraction.report.test_browser import (
    OVERLAPS,
    TEXTS,
    TROUBLE,
    assert_fits,
    assert_quiet,
    hexadecimal,
)
from tests.extraction.report.test_page_safety import HOSTILE, contrast
from tests.sae.latents.described import described, written

TITLE = "document.querySelector('#latent h3').textContent"
LISTED = "Array.from(document.querySelectorAll('#list b')).map((one) => one.textContent)"
FOCUS = "document.activeElement.textContent"


@pytest.fixture(scope="module")
def browser():
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with Chromium(program) as started:
        yield started


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return described(tmp_path_factory.mktemp("described"))


@pytest.fixture(scope="module")
def page(latents, tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), latents)


@pytest.fixture
def opened(browser, page):
    browser.show_as(1280)
    browser.open(page)
    return browser


def type_into(browser, text: str) -> None:
    browser.run(f"""(function () {{
        const search = document.getElementById("search");
        search.value = {text!r};
        search.dispatchEvent(new Event("input"));
    }})()""")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_shown_as_texts(browser, tmp_path, name):
    path = written(tmp_path, described(tmp_path, HOSTILE[name]))
    browser.open(path)
    for width in (320, 390, 1280):
        assert_fits(browser, width)
        assert browser.run(OVERLAPS) == []
    assert_quiet(browser, path)
    assert browser.run("document.querySelectorAll('img, iframe, object, embed, link').length") == 0
    assert browser.run("document.querySelectorAll('#latent .example').length") > 6


def test_data_beside_the_page_are_read_from_there_alone(browser, latents, tmp_path):
    path = written(tmp_path, latents, beside=True)
    assert path.stat().st_size < 60_000
    browser.open(path)
    browser.run("new Promise((done) => setTimeout(done, 300))", wait=True)
    assert [event for event in browser.events if event["method"] in TROUBLE] == []
    asked = [event["params"]["request"]["url"] for event in browser.events
             if event["method"] == "Network.requestWillBeSent"]  # fmt: skip
    folder = path.parent.as_uri()
    assert asked == [
        path.as_uri(), f"{folder}/latents_data/index.js", f"{folder}/latents_data/0.js",
    ]  # fmt: skip
    assert browser.run(TITLE).startswith("Latent ")
    (path.parent / "latents_data/0.js").unlink()
    browser.open(path)
    browser.run("new Promise((done) => setTimeout(done, 300))", wait=True)
    assert "0.js cannot be read" in browser.run("document.getElementById('latent').textContent")


@pytest.mark.parametrize("dark", [False, True])
def test_all_texts_have_contrast(opened, dark):
    opened.show_as(1280, dark=dark)
    opened.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = {tuple(map(hexadecimal, c.split("; "))): text for c, text in opened.run(TEXTS).items()}
    assert len(found) > 6
    assert {text: pair for pair, text in found.items() if contrast(*pair) < 4.5} == {}


def test_the_list_is_sorted_and_searched(opened, latents):
    found = latents.found
    listed = opened.run(LISTED)
    order = [f"#{n}" for n in (-found.largest).argsort(kind="stable") if found.active[n]]
    assert listed == order
    opened.run("""(function () {
        const sort = document.getElementById("sort"), dead = document.getElementById("dead");
        sort.value = "0 1";
        dead.checked = false;
        sort.dispatchEvent(new Event("change"));
    })()""")
    assert opened.run(LISTED) == [f"#{n}" for n in range(16)]
    type_into(opened, "#7")
    assert opened.run(LISTED)[0] == "#7"
    type_into(opened, "T17")  # a token of top rows, in another case
    own = latents.contexts.token_ids[:, latents.contexts.before]
    top = latents.examples.ranges < 0
    wanted = sorted(set(latents.examples.latents[top & (own == 17)].tolist()))
    assert wanted
    assert opened.run(LISTED) == [f"#{n}" for n in wanted]
    type_into(opened, "nowhere")
    assert opened.run(LISTED) == []
    assert "no latent" in opened.run("document.getElementById('count').textContent")


def test_tokens_are_coloured_by_activation(opened, latents):
    examples, contexts = latents.examples, latents.contexts
    opened.run("location.hash = '#latent-3'")
    opened.run("new Promise((done) => setTimeout(done, 100))", wait=True)
    assert opened.run(TITLE) == "Latent 3"
    rows = opened.run("""Array.from(document.querySelectorAll(".example")).map((one) =>
        Array.from(one.querySelectorAll(".tokens > :not(br)")).map((token) => token.className))""")
    mine = (examples.latents == 3).nonzero()[0]
    assert len(rows) == len(mine)
    for classes, example in zip(rows, mine, strict=True):
        known = contexts.token_ids[example] >= 0
        values = contexts.activations[example][known] / latents.found.largest[3]
        for name, value in zip(classes, values, strict=True):
            if not value > 0:
                assert name.split()[0] == ("zero" if value == 0 else "none")
            else:
                low, high = (min(6, 3 + int(4 * part)) for part in (value - 0.002, value + 0.002))
                assert low <= int(name.split()[0][1:]) <= high
        (own,) = (n for n, name in enumerate(classes) if "own" in name)
        assert own == known[: contexts.before].sum()


def test_keys(opened):
    opened.press("/")
    assert opened.run("document.activeElement.id") == "search"
    opened.press("ArrowDown")
    first, second = opened.run(LISTED)[:2]
    assert opened.run(FOCUS).startswith(first)
    opened.press("ArrowDown")
    assert opened.run(TITLE) == f"Latent {second[1:]}"
    assert opened.run("location.hash") == f"#latent-{second[1:]}"
    opened.press("k")
    assert opened.run(TITLE) == f"Latent {first[1:]}"
    told = "document.querySelector('.readout').textContent"
    tokens = "document.querySelectorAll('.example .tokens')"
    opened.run(f"{tokens}[0].querySelector('[tabindex=\"0\"]').focus()")
    assert "activation" in opened.run(told)
    opened.press("ArrowDown")
    second_row = f"{tokens}[1].querySelector('.own').title"
    assert opened.run(told) == opened.run(second_row)
    opened.press("Home")
    assert opened.run(told) == opened.run(f"{tokens}[1].querySelector('button').title")


def test_a_phone_goes_to_the_latent_and_back(opened):
    opened.show_as(390)
    in_view = """(function (one) {
        const box = document.querySelector(one).getBoundingClientRect();
        return box.top >= -1 && box.top < innerHeight;
    })"""
    opened.run("document.querySelectorAll('#list button')[4].click()")
    assert opened.run(f"{in_view}('#latent h3')")
    opened.run("document.querySelector('.back').click()")
    assert opened.run(f"{in_view}('#search')")
    small = """Array.from(document.querySelectorAll('#list button, select, .step')).filter(
        (one) => one.checkVisibility() && one.tagName !== "LI"
            && one.getBoundingClientRect().height < 40).length"""
    assert opened.run(small) == 0
