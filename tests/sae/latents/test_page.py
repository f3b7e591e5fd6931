"""The page of latents: its data, and that texts of others stay text."""

import json
import re

import pytest

from sae.latents.page import page_of
from sae.latents.page_data import data_of
from sae.latents.results import lines_of
from tests.extraction.report.pages import parse
from tests.extraction.report.test_page_safety import ALLOWED, CONTROLS, HOSTILE
from tests.sae.latents.described import described


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return described(tmp_path_factory.mktemp("page"))


def test_the_data_are_those_of_the_lines(latents):
    data = data_of(latents)
    index = json.loads(data.index)
    chunks = [json.loads(chunk) for chunk in data.chunks]
    for entry, line in zip(index["latents"], lines_of(latents), strict=True):
        number, density, active, mean, largest, norm, chunk, peaks, lens = entry
        assert (number, active) == (line["latent"], line["active_rows"])
        figures = [line[name] for name in ("density", "mean", "max", "decoder_norm")]
        assert [density, mean, largest, norm] == pytest.approx(figures, rel=1e-3)
        own = [row["token_ids"][row["at"]] for row in line["top"]]
        assert peaks == list(dict.fromkeys(own))
        assert lens == [one["token_id"] for one in line["logit_lens"]["top"]]
        told = chunks[chunk]["latents"][str(number)]
        rows = [*line["top"], *(row for one in line["ranges"] for row in one["rows"])]
        assert len(told["rows"]) == len(rows)
        for found, row in zip(told["rows"], rows, strict=True):
            assert found[1] == row["row"]
            assert chunks[chunk]["tasks"][found[2]] == row["task_id"]
            assert found[3:5] == [row["sample_idx"], row["position"]]
            assert found[6:8] == [row["at"], row["token_ids"]]
            for level, value in zip(found[8], row["activations"], strict=True):
                if value is None:
                    assert level == -1
                else:
                    share = 1000 * value / line["max"]
                    assert level == pytest.approx(share, abs=1 + 1e-3 * share)
                    assert (level > 0) == (value > 0)


def test_what_is_never_active_has_no_rows(latents):
    *_, last = lines_of(latents)
    assert (last["active_rows"], last["density"], last["mean"], last["max"]) == (0, 0, 0, 0)
    assert last["top"] == last["ranges"] == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_text(tmp_path, name):
    text = HOSTILE[name]
    latents = described(tmp_path, text)
    page = page_of(latents, data_of(latents))
    scripts = re.findall(r"<script[^>]*>", page)
    assert set(scripts[:-1]) == {
        '<script type="application/json" id="index">',
        '<script type="application/json" id="chunk-0">',
    }
    assert scripts[-1] == "<script>"
    assert page.count("</script>") == len(scripts)
    tree = parse(page.encode())
    assert {node.name for node in tree.nodes()} <= ALLOWED | {"ol", "input"}
    assert not CONTROLS.search(page)
    for node in tree.nodes():
        assert not any(attribute.startswith("on") for attribute in node.attributes)
    texts = json.loads(tree.one("script", id="index").children[0])["words"].values()
    assert not any(CONTROLS.search(word) for word in texts)
    assert len(page) < 500_000


def test_controls_have_names(latents):
    page = parse(page_of(latents, data_of(latents)).encode())
    labels = {node.name for one in page.nodes("label") for node in one.nodes()}
    assert labels >= {"input", "select"}
    assert all(node.attributes.get("aria-label") for node in page.nodes("ol"))
