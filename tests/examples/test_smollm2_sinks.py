"""Attention sinks of a real model: found, named, and left out, as numpy says on the rows."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples.demo import TEXT
from extraction import ActivationDataset
from extraction.report import report
from extraction.storage.local import LocalStorage
from inference import extract, load_model
from tests.extraction.report.pages import parse, real, rows_of, table, whole

ROOT = Path(__file__).parents[2]
LAYERS = (15, 20)
"""In the middle of the model."""

END = "<|endoftext|>"
PIECE = 500
"""Characters of a text."""


def texts():
    """Return eight pieces of a speech, of which two have sinks after their first token.

    One begins with two equal tokens, the other holds two documents.
    """
    lines = (ROOT / TEXT).read_text("utf-8").splitlines()
    speech = json.loads(lines[0])["text"]
    pieces = [speech[at : at + PIECE] for at in range(0, 8 * PIECE, PIECE)]
    pieces[3] = "the the " + pieces[3]
    pieces[5] = END.join(["The first document.", pieces[5]])
    return pieces


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    """The address of a run over all tokens of the texts."""
    base = tmp_path_factory.mktemp("sinks")
    hooks = [f"layer_{i}" for i in LAYERS]
    model = load_model(folder)
    run = extract(model, texts(), base, hooks, positions=["all"], format="safetensors")
    return run.address


@pytest.fixture(scope="module")
def page(address):
    return parse(report(LocalStorage(address, writable=False)))


@pytest.fixture(params=LAYERS)
def rows(request, address):
    """Name, dataset, float64 rows, norms, and which norms are above 10 times the median."""
    dataset = ActivationDataset(address, layer=request.param)
    values = dataset[:].astype(np.float64)
    norms = np.linalg.norm(values, axis=1)
    return f"layer_{request.param}", dataset, values, norms, norms > 10 * np.median(norms)


def first_component(values):
    """Return the share of the variance that the first principal component explains."""
    variances = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2
    return variances[0] / variances.sum()


def streamed_first_component(dataset, **filters):
    """Return the same of the batches of a reader, from sums as a user would keep them."""
    count, total, products = 0, 0.0, 0.0
    for batch in dataset.batches(512, shuffle_seed=0, **filters):
        wide = batch.astype(np.float64)
        count, total, products = count + len(wide), total + wide.sum(0), products + wide.T @ wide
    mean = total / count
    variances = np.linalg.eigvalsh(products / count - np.outer(mean, mean))
    return count, mean, variances[-1] / variances.sum()


def test_the_table_names_the_first_tokens_and_others(rows, page):
    name, dataset, _, norms, is_sink = rows
    keys = dataset.keys()
    shown = rows_of(page, f"Rows of largest norm of {name}")
    told = {
        (cells["task"], whole(cells["sample"]), whole(cells["position"]), int(cells["token id"]))
        for cells in shown
        if real(cells["times the median"]) > 10
    }
    expected = {
        (keys.task_ids[i], keys.sample_idx[i], keys.position[i], keys.token_id[i])
        for i in np.flatnonzero(is_sink)
    }
    assert told == expected
    is_first = keys.position[is_sink] == 0
    assert is_first.sum() == len(texts())
    assert (~is_first).sum() == 2
    if name == "layer_15":
        multiples = norms[is_sink] / np.median(norms)
        assert multiples[is_first].min() > 100
        assert multiples[~is_first].max() > 100
    for cells, norm in zip(shown, np.sort(norms)[::-1], strict=False):
        assert real(cells["norm"]) == pytest.approx(norm, rel=1e-3)


def test_means_and_norms_with_and_without_sinks(rows, page):
    name, _, values, norms, is_sink = rows
    cells = table(page, "Rows of large norm")[name]
    assert whole(cells["rows"]) == is_sink.sum()
    assert whole(cells["at position 0"]) == len(texts())
    for column, expected in (
        ("mean", values.mean()),
        ("mean without", values[~is_sink].mean()),
        ("mean norm", norms.mean()),
        ("mean norm without", norms[~is_sink].mean()),
    ):
        assert real(cells[column]) == pytest.approx(expected, rel=1e-3), column
    assert norms.mean() > 1.3 * norms[~is_sink].mean()


def test_explained_variance_with_and_without_sinks(rows):
    _, dataset, values, _, is_sink = rows
    count, mean, share = streamed_first_component(dataset)
    assert count == len(values)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-9, atol=1e-9)
    assert share == pytest.approx(first_component(values), rel=1e-6)
    count, mean, share_without = streamed_first_component(dataset, max_norm_multiple=10)
    assert count == (~is_sink).sum()
    np.testing.assert_allclose(mean, values[~is_sink].mean(axis=0), rtol=1e-9, atol=1e-9)
    assert share_without == pytest.approx(first_component(values[~is_sink]), rel=1e-6)
    # One direction, that of the sinks, is nearly all of the variance; without them it is not.
    assert share > 0.95
    assert share_without < 0.3
