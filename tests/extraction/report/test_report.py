"""Every number on the page of a run is that of a plain computation on its rows."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from extraction.__main__ import main
from extraction.report import report
from extraction.run.identity import read_identity
from extraction.storage.local import LocalStorage
from tests.extraction.report.pages import Node, pairs, parse, real, rows_of, table, whole
from tests.extraction.report.reported_runs import SETTINGS, UNITS, WIDTHS, Written, write
from tests.extraction.written_runs import edit_json
from tests.golden.test_golden_runs import FOLDERS, expected, hook_points

SHOWN = 1e-3
"""Four digits are shown."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Written:
    return write(tmp_path_factory.mktemp("reported") / "run")


@pytest.fixture(scope="module")
def page(run) -> Node:
    return parse(report(run.storage))


def approx(value: float):
    return pytest.approx(value, rel=SHOWN)


def norms_of(run: Written, hook: str) -> np.ndarray:
    return np.linalg.norm(run.finite(hook), axis=1)


def is_large(run: Written, hook: str) -> np.ndarray:
    norms = norms_of(run, hook)
    return norms > 10 * np.median(norms)


@pytest.mark.parametrize("hook", WIDTHS)
def test_statistics_of_hook_points(run, page, hook):
    cells = table(page, "Hook points of the run")[hook]
    finite, norms = run.finite(hook), norms_of(run, hook)
    assert whole(cells["rows"]) == len(run.rows[hook])
    assert whole(cells["width"]) == WIDTHS[hook]
    assert whole(cells["files"]) == UNITS
    files = run.storage.folder.glob(f"{hook}_batch_*")
    stored = sum(path.stat().st_size for path in files)
    assert cells["size"] == f"{stored / 1000:.3g} kB"
    assert real(cells["mean"]) == approx(finite.mean())
    assert real(cells["root mean square"]) == approx(np.sqrt((finite**2).mean()))
    assert real(cells["median norm"]) == pytest.approx(np.median(norms), rel=0.06)
    assert real(cells["mean norm"]) == approx(norms.mean())
    assert real(cells["largest norm"]) == approx(norms.max())
    assert whole(cells["non-finite rows"]) == len(run.rows[hook]) - len(finite)


@pytest.mark.parametrize("hook", WIDTHS)
def test_large_norms(run, page, hook):
    told = table(page, "Rows of large norm")
    assert list(told) == [name for name in WIDTHS if is_large(run, name).any()]
    if hook not in told:
        assert f"without such rows: {hook}." in page.one("section", id="large").text
        return
    cells = told[hook]
    large, finite, norms = is_large(run, hook), run.finite(hook), norms_of(run, hook)
    assert whole(cells["rows"]) == large.sum()
    assert cells["share"] == f"{large.mean():.3%}"
    assert whole(cells["at position 0"]) == large.sum()
    assert real(cells["mean"]) == approx(finite.mean())
    assert real(cells["mean without"]) == approx(finite[~large].mean())
    assert real(cells["mean norm"]) == approx(norms.mean())
    assert real(cells["mean norm without"]) == approx(norms[~large].mean())
    assert cells["positions"] == f"0 ({large.sum()}×)"


@pytest.mark.parametrize("hook", WIDTHS)
def test_the_rows_of_largest_norm(run, page, hook):
    rows = run.rows[hook].astype(np.float64)
    is_finite = np.isfinite(rows).all(axis=1)
    norms = np.where(is_finite, np.linalg.norm(rows, axis=1), -1)
    order = np.argsort(-norms)
    shown = rows_of(page, f"Rows of largest norm of {hook}")
    assert len(shown) == 12
    for cells, i in zip(shown, order, strict=False):
        found = (cells["task"], *(whole(cells[c]) for c in ("sample", "position", "token id")))
        assert found == run.keys[i]
        assert real(cells["norm"]) == approx(norms[i])
        median = np.median(norms[is_finite])
        assert real(cells["times the median"]) == pytest.approx(norms[i] / median, rel=0.06)


@pytest.mark.parametrize("hook", WIDTHS)
def test_histograms(run, page, hook):
    norms = norms_of(run, hook)
    shown = [c for c in rows_of(page, "Histograms of norms") if c["hook point"] == hook]
    assert sum(whole(cells["rows"]) for cells in shown) == len(norms)
    edges = sorted({real(c["norm from"]) for c in shown} | {real(c["below"]) for c in shown})
    slack = 1 + SHOWN  # shown edges are rounded
    for cells in shown:
        low, high = real(cells["norm from"]), real(cells["below"])
        inside = np.sum((norms >= low * slack) & (norms < high / slack))
        around = np.sum((norms >= low / slack) & (norms < high * slack))
        if high == 0:
            inside = around = np.sum(norms == 0)
        assert inside <= whole(cells["rows"]) <= around
    assert min(edges) <= norms.min() * slack
    (figure,) = [f for f in page.nodes("figure") if f.one("figcaption").text == hook]
    bars = [re.fullmatch(r"norms (\S+) to (\S+): (\S+) rows", t.text)
            for t in figure.nodes("title")]  # fmt: skip
    drawn = [(low, high, rows) for low, high, rows in (bar.groups() for bar in bars if bar)]
    assert drawn == [tuple(c[k] for k in ("norm from", "below", "rows")) for c in shown
                     if c["below"] != "0"]  # fmt: skip
    bars = list(figure.nodes("g", class_="bar"))
    heights = [float(next(bar.nodes("rect")).attributes["height"]) for bar in bars]
    counts = [whole(rows) for _, _, rows in drawn]
    assert [np.argsort(heights, kind="stable").tolist()] == [
        np.argsort(counts, kind="stable").tolist()
    ]


def test_norms_over_the_blocks(run, page):
    shown = table(page, "Norms over the blocks")
    assert list(shown) == ["layer_0", "layer_3"]  # of one block alone there is nothing to compare
    for hook, cells in shown.items():
        norms, large = norms_of(run, hook), is_large(run, hook)
        assert int(cells["block"]) == int(re.search(r"\d", hook)[0])
        assert real(cells["mean norm"]) == approx(norms.mean())
        assert real(cells["mean norm without large rows"]) == approx(norms[~large].mean())
        assert real(cells["median norm"]) == pytest.approx(np.median(norms), rel=0.06)
    (figure,) = [f for f in page.nodes("figure") if f.one("figcaption").text == "layer_{i}"]
    marks = {title.text for title in figure.nodes("title")}
    assert f"block 3, mean norm: {shown['layer_3']['mean norm']}" in marks
    assert f"block 0, median norm: {shown['layer_0']['median norm']}" in marks


def test_what_the_run_is(run, page):
    model, data, about = (pairs(page, name) for name in ("Model", "Data", "Run"))
    assert model["name"] == "Qwen/Qwen2.5-0.5B"
    assert (model["blocks"], model["residual width"]) == ("6", "8")
    ran = [line for line in run.lines if line["finish_reason"] != "skipped"]
    assert data["dataset"] == SETTINGS["dataset"]
    assert whole(data["samples"]) == len(run.lines)
    assert whole(data["prompt tokens"]) == sum(len(line["prompt_token_ids"]) for line in ran)
    assert whole(data["generated tokens"]) == len(ran)
    identity = read_identity(run.storage)
    begun = identity.created_at.replace("T", " ").replace("+00:00", " UTC")
    assert (about["run"], about["begun"]) == (identity.run_id, begun)
    assert pairs(page, "Versions") == {"jax": "0.10.2"}
    settings = pairs(page, "Settings of the first attempt")
    assert settings.keys() == SETTINGS.keys()
    facts = page.one("dl")
    told = {dt.text: dd.text for dt, dd in zip(facts.nodes("dt"), facts.nodes("dd"), strict=True)}
    assert whole(told["rows per hook point"]) == len(run.keys)
    assert whole(told["samples with rows"]) == len({key[:2] for key in run.keys})
    assert whole(told["batches"]) == UNITS


def test_kept_tokens_have_the_norms_of_their_rows(run, page):
    samples = list(page.nodes("div", class_="sample"))
    assert len(samples) == 4
    hooks = [option.text for option in page.one("select").nodes("option")]
    assert hooks == list(WIDTHS)
    for number, sample in enumerate(samples):
        line = run.lines[number]
        ids = line["prompt_token_ids"] + line["generated_token_ids"]
        tokens = sample.one("div", class_="tokens mono")
        shown = [c for c in tokens.children if isinstance(c, Node)]
        assert [int(token.text) for token in shown] == ids
        kept = {token for token in range(len(ids)) if shown[token].name == "button"}
        mine = [i for i, key in enumerate(run.keys) if key[:2] == (line["task_id"], number)]
        assert kept == {run.keys[i][2] for i in mine}
        for i in mine:
            token = shown[run.keys[i][2]]
            norms = [np.linalg.norm(run.rows[hook][i].astype(np.float64)) for hook in hooks]
            assert [float(n) for n in token.attributes["data-n"].split()] == approx(norms)
            assert (
                f"position {run.keys[i][2]}, token id {run.keys[i][3]}"
                in (token.attributes["title"])
            )


def test_warnings_come_first(run, page):
    told = [item.text for item in page.one("ul", class_="messages").nodes("li")]
    text = "\n".join(told)
    assert "2 of 240 rows of layer_3 hold infinity or NaN" in text
    assert "3 of 15 samples were skipped" in text
    assert "too long (3)" in text
    largest = norms_of(run, "layer_0").max() / np.median(norms_of(run, "layer_0"))
    multiple = re.search(r"layer_0: 12 of 240 rows, 12 at position 0, up to (\S+) × median", text)
    assert real(multiple[1]) == pytest.approx(largest, rel=0.06)
    assert "No self-check" in told[-1]
    assert "No warnings" not in text
    order = [node.text for node in page.nodes("h2")]
    assert order == ["Warnings", "The run", "Hook points", "Norms of rows", "Rows of large norm",
                     "Time", "Samples", "Files, and how to load them"]  # fmt: skip


def test_a_failed_self_check_and_missing_batches_are_the_first_warnings(tmp_path):
    run = write(tmp_path / "run")
    check = b'{"rows": 4, "largest_error": 0.5, "failed": "2 rows differ"}'
    run.storage.put_new("_run/self_check/00000.json", check)
    run.storage.remove("_run/commits/000002.json")
    page = parse(report(run.storage))
    first, second, *_ = page.one("ul", class_="messages").nodes("li")
    assert "self-check failed" in first.text
    assert "2 rows differ (4 rows computed again, largest relative error 0.5)" in first.text
    assert "2 of 3 batches are committed; missing: 2" in second.text
    edit_json(run.storage, "_run/run.json", lambda d: d | {"planned_batches": None})
    page = parse(report(run.storage))
    assert "not closed" in page.one("ul", class_="messages").text


def test_a_damaged_file_is_told_and_the_rest_is_shown(tmp_path):
    run = write(tmp_path / "run")
    run.storage.replace("layer_0_batch_000001.safetensors", b"damaged")
    page = parse(report(run.storage))
    assert "layer_0_batch_000001.safetensors" in page.one("section", id="samples").text
    run.storage.replace("_run/outputs/000001.jsonl", b"damaged")
    page = parse(report(run.storage))
    assert "_run/outputs/000001.jsonl" in page.one("ul", class_="messages").text
    assert whole(table(page, "Rows of large norm")["layer_0"]["rows"]) == 12


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "plain"])
def test_runs_of_the_version_before_say_what_they_lack(name):
    page = parse(report(LocalStorage(FOLDERS[name], writable=False)))
    assert (
        "recorded no mean norms and no keys of large rows" in page.one("ul", class_="messages").text
    )
    for hook in hook_points(name):
        norms = np.linalg.norm(expected(name, hook).astype(np.float64), axis=1)
        assert norms.max() < 10 * np.median(norms)
        assert table(page, "Hook points of the run")[hook]["mean norm"] == "–"
    without = ", ".join(read_identity(LocalStorage(FOLDERS[name])).hook_points)
    assert f"without such rows: {without}." in page.one("section", id="large").text


def test_a_run_without_rows(tmp_path):
    run = write(tmp_path / "run")
    for number in range(1, UNITS + 1):
        run.storage.remove(f"_run/commits/{number:06d}.json")
    page = parse(report(run.storage))
    assert "There are no rows" in page.one("ul", class_="messages").text
    assert "nan" not in page.text.lower()


def test_a_run_whose_rows_are_all_zero(tmp_path):
    run = write(tmp_path / "run", scale=0.0)
    page = parse(report(run.storage))
    cells = table(page, "Hook points of the run")["embed_tokens"]
    assert (cells["mean"], cells["mean norm"]) == ("0", "0")
    tokens = list(page.nodes("button"))
    assert tokens
    assert all("embed_tokens norm 0 (– × median)" in t.attributes["title"] for t in tokens)


def test_commands_on_the_page_can_be_pasted(tmp_path):
    run = write(tmp_path / "a run; of 'mine'")
    page = parse(report(run.storage))
    commands = [
        shlex.split(line)
        for code in page.nodes("code")
        for line in code.text.splitlines()
        if line.startswith("python -m")
    ]
    assert len(commands) == 3
    assert {command[4] for command in commands} == {run.storage.address}


def test_the_command_writes_the_page_and_refuses_what_it_cannot(tmp_path, capsys):
    run = write(tmp_path / "run")
    output = tmp_path / "page.html"
    assert main(["report", run.storage.address, "--output", str(output)]) == 0
    assert output.read_bytes() == report(run.storage)
    assert f"{output}: {output.stat().st_size:,} bytes" in capsys.readouterr().out
    for wrong in (tmp_path / "no" / "x", tmp_path, "/dev/null"):
        assert main(["report", run.storage.address, "--output", str(wrong)]) == 2
    assert Path("/dev/null").is_char_device()
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty"), "--output", str(output)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert output.exists()
