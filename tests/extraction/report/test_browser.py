"""The page as a browser shows it: without errors, without requests, readable, and usable by keys.

`make test-browser`; skipped where there is no Chromium.
"""

import math

import numpy as np
import pytest

from extraction.report import report
from extraction.report.style import TOKEN_LIMITS
from tests.extraction.report.chromium import Chromium, find_chromium
from tests.extraction.report.pages import parse
from tests.extraction.report.reported_runs import WIDTHS, write
from tests.extraction.report.test_page_safety import CONTROLS, HOSTILE, contrast

WIDTHS_SHOWN = (320, 390, 1280, 1600)
"""Widths of windows in pixels."""

TROUBLE = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded",
           "Page.javascriptDialogOpening", "Network.webSocketCreated")  # fmt: skip

TEXTS = """
(function () {
  const found = {}, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), parent = walker.currentNode.parentElement;
    if (!text || !parent.checkVisibility() || parent.closest("script, title, desc, option")) {
      continue;
    }
    const isSvg = parent.closest("svg"), style = getComputedStyle(parent);
    let under = parent;
    while (getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") {
      under = under.parentElement;
    }
    const colours = [isSvg ? style.fill : style.color, getComputedStyle(under).backgroundColor];
    found[colours.join("; ")] = text;
  }
  return found;
})()
"""
"""Colours of text and ground, with one of the texts that have them."""

OVERLAPS = """
Array.from(document.querySelectorAll("svg")).flatMap(function (svg) {
  const boxes = Array.from(svg.querySelectorAll("text")).map(
    (text) => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], n) => boxes.slice(n + 1).filter(([, b]) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
  ).map(([other]) => one + " and " + other));
})
"""

COVERED = """
Array.from(document.querySelectorAll(".wide")).filter(function (one) {
  const cell = one.querySelector("tbody td").getBoundingClientRect();
  return cell.left < one.querySelector("tbody th").getBoundingClientRect().right - 0.5
    || cell.right > one.getBoundingClientRect().right + 0.5;
}).map((one) => one.getAttribute("aria-label"))
"""
"""Tables whose second column does not show beside the first one, which stays when they scroll."""

CLIPPED = """
Array.from(document.querySelectorAll("h1, h2, h3, p, li, dd, dt, td, th, summary, label")).filter(
  (one) => !one.closest(".wide") && one.checkVisibility()
    && one.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
).map((one) => one.textContent.slice(0, 60))
"""


@pytest.fixture(scope="module")
def browser():
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with Chromium(program) as started:
        yield started


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write(tmp_path_factory.mktemp("browser") / "run")


@pytest.fixture
def opened(browser, run, tmp_path):
    """The browser, with the page of the run in a window of 1,280 pixels."""
    path = tmp_path / "page.html"
    path.write_bytes(report(run.storage))
    browser.show_as(1280)
    browser.open(path)
    return browser


def assert_quiet(browser, path):
    """No error, no dialog, and no request but that for the page."""
    browser.run("new Promise((done) => setTimeout(done, 100))", wait=True)
    assert [event for event in browser.events if event["method"] in TROUBLE] == []
    requests = [event["params"]["request"]["url"] for event in browser.events
                if event["method"] == "Network.requestWillBeSent"]  # fmt: skip
    assert requests == [path.as_uri()]


def assert_fits(browser, width):
    """The page does not scroll sideways, no text is cut off, no table hides under its names."""
    browser.show_as(width)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(CLIPPED) == []
    assert browser.run(COVERED) == []


@pytest.mark.parametrize(
    "body",
    ["<img src='other.png'>", "<script>throw 1</script>", "<script>console.error(1)</script>",
     "<link rel=stylesheet href='https://localhost:1/x.css'>"],
)  # fmt: skip
def test_errors_and_requests_are_seen(browser, tmp_path, body):
    path = tmp_path / "page.html"
    path.write_text(f"<!DOCTYPE html><title>x</title>{body}")
    browser.open(path)
    with pytest.raises(AssertionError):
        assert_quiet(browser, path)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_shown_as_texts(browser, tmp_path, name):
    text = HOSTILE[name]
    settings = {"dataset": text, text: [text, {text: text}], "positions": [text]}
    run = write(
        tmp_path / "run",
        texts=(text,),
        model_name=text,
        run={"settings": settings, "versions": {text: text}, "command": text},
        fingerprint={"config": {"model_type": text}},
    )
    path = tmp_path / "page.html"
    path.write_bytes(report(run.storage))
    browser.open(path)
    for width in WIDTHS_SHOWN:
        assert_fits(browser, width)
    assert_quiet(browser, path)
    assert browser.run("document.scripts.length") == 1
    assert browser.run("document.querySelectorAll('img, iframe, object, embed, link').length") == 0
    shown = text.encode("unicode_escape").decode() if CONTROLS.search(text) else text
    assert browser.run("document.querySelector('h1').textContent").startswith(shown[:60])
    assert browser.run("document.querySelector('.prompt').textContent").startswith(shown[:60])


@pytest.mark.parametrize("dark", [False, True])
def test_all_texts_have_contrast(opened, dark):
    opened.show_as(1280, dark=dark)
    opened.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = {tuple(map(hexadecimal, colours.split("; "))): text
             for colours, text in opened.run(TEXTS).items()}  # fmt: skip
    assert len(found) > 10
    weak = {text: pair for pair, text in found.items() if contrast(*pair) < 4.5}
    assert weak == {}
    page = opened.run("getComputedStyle(document.body).backgroundColor")
    assert (contrast(hexadecimal(page), "#ffffff") > 10) == dark


def hexadecimal(colour: str) -> str:
    """The `#rrggbb` of a browser's `rgb(r, g, b)`."""
    assert colour.startswith("rgb("), colour
    return "#" + "".join(f"{int(part):02x}" for part in colour[4:-1].split(","))


@pytest.mark.parametrize("width", WIDTHS_SHOWN)
def test_nothing_is_cut_off_or_covered(opened, width):
    assert_fits(opened, width)
    assert opened.run(OVERLAPS) == []


def test_medians_stand_in_their_bars(opened, run):
    """The plots' geometry: the mark of the median, and bars above the limit in another colour."""
    script = """
    Array.from(document.querySelectorAll("figure")).filter((one) => one.querySelector(".bar")).map(
      (figure) => ({
        hook: figure.querySelector("figcaption").textContent,
        median: figure.querySelector(".marker.median").getBoundingClientRect().x,
        bars: Array.from(figure.querySelectorAll(".bar")).map((bar) => {
          const box = bar.getBoundingClientRect();
          return [bar.querySelector("title").textContent, box.left, box.right,
                  bar.querySelector(".large") !== null];
        }),
      }))
    """
    figures = opened.run(script)
    assert [figure["hook"] for figure in figures] == list(WIDTHS)
    for figure in figures:
        norms = np.linalg.norm(run.finite(figure["hook"]), axis=1)
        median = np.median(norms)
        bars = [(title.split(), *rest) for title, *rest in figure["bars"]]
        limits = [(float(t[1].replace(",", "")), float(t[3].rstrip(":").replace(",", "")))
                  for t, *_ in bars]  # fmt: skip
        # The median of the histogram is the middle of a bin, and may be in the bin beside.
        (place,) = [n for n, (low, high) in enumerate(limits) if low <= median < high]
        near = bars[max(0, place - 1) : place + 2]
        assert near[0][1] <= figure["median"] <= near[-1][2]
        marked = sum(int(t[4].replace(",", "")) for t, _, _, is_large in bars if is_large)
        assert marked == np.sum(norms > 10 * median)
        # Equal ratios have equal lengths.
        scale = [(right_low, math.log(low)) for (_, right_low, *_), (low, _) in
                 zip(bars, limits, strict=True)]  # fmt: skip
        slope, offset = np.polyfit([log for _, log in scale], [x for x, _ in scale], 1)
        assert all(abs(slope * log + offset - x) < 1 for x, log in scale)


def test_tokens_are_coloured_by_the_chosen_hook_point(opened, run):
    for n, hook in enumerate(WIDTHS):
        opened.run(f"""(function () {{
            const select = document.getElementById("hook");
            select.selectedIndex = {n};
            select.dispatchEvent(new Event("change"));
        }})()""")
        classes = opened.run(
            "Array.from(document.querySelectorAll('.tokens button')).map((one) => one.className)"
        )
        median = np.median(np.linalg.norm(run.finite(hook), axis=1))
        norms = np.linalg.norm(run.rows[hook][: len(classes)].astype(np.float64), axis=1)
        for name, norm in zip(classes, norms, strict=True):
            # The median of the page is read from a histogram.
            low, high = (sum(norm > limit * median * off for limit in TOKEN_LIMITS)
                         for off in (1.06, 1 / 1.06))  # fmt: skip
            assert name == "cx" if not np.isfinite(norm) else low <= int(name[1:]) <= high


def test_values_are_told_by_mouse_and_by_keys(opened):
    told = "document.querySelector('.readout').textContent"
    titles = opened.run(
        "Array.from(document.querySelector('.tokens').querySelectorAll('button'))"
        ".map((one) => one.title)"
    )
    assert len(set(titles)) == len(titles) > 10
    opened.run("document.querySelector('.tokens button').scrollIntoView({block: 'center'})")
    opened.run("document.querySelector('.tokens button').focus({preventScroll: true})")
    assert opened.run(told) == titles[0]
    for key, wanted in (("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1), ("End", -1),
                        ("ArrowRight", -1), ("Home", 0), ("ArrowUp", 0)):  # fmt: skip
        opened.press(key)
        assert opened.run(told) == titles[wanted], key
    stops = "document.querySelector('.tokens').querySelectorAll('button[tabindex=\"0\"]').length"
    assert opened.run(stops) == 1
    x, y = opened.run("""(function () {
        const box = document.querySelectorAll(".tokens button")[3].getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    })()""")
    opened.point_at(x, y)
    assert opened.run(told) == titles[3]
    assert opened.run("""(function () {
        const box = document.querySelector(".readout").getBoundingClientRect();
        return box.top >= 0 && box.bottom <= innerHeight;
    })()""")


def test_prints_light_and_within_the_page(opened):
    opened.show_as(718, dark=True)  # A4 less margins, at 96 pixels an inch
    opened.call("Emulation.setEmulatedMedia", media="print")
    assert opened.run("document.documentElement.scrollWidth") <= 718
    wide = "Array.from(document.querySelectorAll('table')).map((one) => one.offsetWidth)"
    assert max(opened.run(wide)) <= 718
    assert opened.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    text = opened.run("getComputedStyle(document.querySelector('h1')).color")
    assert contrast(hexadecimal(text), "#ffffff") > 10
    opened.call("Emulation.setEmulatedMedia", media="")
    assert opened.pdf().startswith(b"%PDF-")


def test_the_pages_own_parser_and_the_browser_agree(opened, run):
    """Texts that other tests read with the standard library's parser are those that are shown."""
    page = parse(report(run.storage))
    cells = [node.text.strip() for node in page.nodes("td")]
    shown = opened.run("Array.from(document.querySelectorAll('td')).map((one) => one.textContent)")
    assert [text.strip() for text in shown] == cells
