"""The page of an evaluation: its numbers, and texts of others that stay texts."""

import re

import pytest

from sae.evaluation.page import page_of
from tests.extraction.report.pages import pairs, parse, real, table, whole
from tests.extraction.report.test_page_safety import ALLOWED, CONTROLS, HOSTILE
from tests.sae.evaluation.evaluations import evaluation


def test_the_numbers_of_each_autoencoder():
    made = evaluation(["k=16", "k=32", "k=64"])
    page = parse(page_of(made).encode())
    rows, model = table(page, "Figures of rows"), table(page, "Figures in the model")
    counted, tokens = (
        table(page, "Rows of each autoencoder"),
        table(page, "Tokens of each autoencoder"),
    )
    ends, spread = table(page, "Metrics at the end"), table(page, "Densities of latents")
    for number, one in enumerate(made.autoencoders):
        assert real(rows[one.name]["FVU"]) == pytest.approx(one.rows.all_rows.fvu, rel=1e-3)
        without = one.rows.without_sinks
        assert real(rows[one.name]["FVU without sinks"]) == pytest.approx(without.fvu, rel=1e-3)
        assert real(rows[one.name]["bias"]) == pytest.approx(without.bias, rel=1e-3)
        assert whole(rows[one.name]["dead"]) == one.rows.dead == whole(spread[one.name]["dead"])
        assert real(model[one.name]["CE recovered"]) == pytest.approx(0.95 - number / 10)
        assert (counted[one.name]["sinks"], counted[one.name]["not finite"]) == ("1", "1")
        assert tokens[one.name]["predictions"] == "1,234"
        assert real(ends[one.name]["Active latents of a row"]) == 32 + number
    assert pairs(page, "Addresses of the autoencoders")["k=32"] == "texts.jsonl/k=32"


def test_each_autoencoder_has_a_line_in_every_plot_and_a_histogram():
    names = [f"k={number}" for number in range(8)]
    page = parse(page_of(evaluation(names)).encode())
    plots = [
        figure for figure in page.nodes("figure") if list(figure.nodes(None, class_="bar")) == []
    ]
    assert len(plots) == 5
    for plot in plots:
        lines = [
            node for node in plot.nodes("g") if "series" in (node.attributes.get("class") or "")
        ]
        assert [line.one("title").text for line in lines] == names
        assert len({line.attributes["class"] for line in lines}) == 8  # told apart
        for line in lines:
            assert len(re.findall("[ML]", line.one("path").attributes["d"] or "")) == 200
    histograms = [figure for figure in page.nodes("figure") if figure not in plots]
    assert [figure.one("figcaption").text for figure in histograms] == names


def test_without_a_model_and_metrics_the_page_says_so():
    made = evaluation(["a"], model=False)
    (one,) = made.autoencoders
    one.metrics.clear()  # pyright: ignore[reportAttributeAccessIssue]
    page = parse(page_of(made).encode())
    titles = [heading.text for heading in page.nodes("h2")]
    assert "In the model" not in titles
    assert "There is no metrics.jsonl beside" in page.one("section", id="training").text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_text(name):
    text = HOSTILE[name]
    data = page_of(evaluation([text, f"{text} 2"], text))
    page = parse(data.encode())
    assert {node.name for node in page.nodes()} <= ALLOWED
    assert not CONTROLS.search(data)
    assert len(data) < 400_000
    for node in page.nodes():
        assert not any(key.startswith("on") or key == "style" for key in node.attributes)
        href = node.attributes.get("href")
        assert "src" not in node.attributes
        assert href is None or href.startswith("#")
    assert len(list(page.nodes("script"))) == 1
    policies = [
        meta.attributes["content"] or ""
        for meta in page.nodes("meta", http_equiv="Content-Security-Policy")
    ]
    assert [policy.split(";")[0] for policy in policies] == ["default-src 'none'"]
    shown = text.encode("unicode_escape").decode() if CONTROLS.search(text) else text
    assert shown[:40] in page.one("table", aria_label="Figures of rows").text
