"""What a notebook shows of runs, datasets, rows and autoencoders; hostile texts are text."""

import re

import numpy as np
import pytest

from extraction import ActivationDataset, ActivationWriter
from extraction.run.rows import RowBlock
from inference.captures import Captured
from inference.extractions import ExtractedRun
from qwen_hooks.activations import NamedActivations
from sae import SparseAutoencoder

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x00"
ALLOWED = {"div", "strong", "table", "tr", "th", "td", "bdi", "wbr"}


@pytest.fixture
def dataset(tmp_path) -> ActivationDataset:
    block = RowBlock.of(
        {"layer_1": np.arange(80, dtype=np.float32).reshape(20, 4)},
        [HOSTILE] * 20,
        position=np.arange(20),
        token_id=np.arange(20) % 3,
    )
    with ActivationWriter(
        tmp_path, {"layer_1": 4}, model_name=HOSTILE, token_text={0: HOSTILE, 1: "\n", 2: b"\xe2"}
    ) as writer:
        writer.add(block)
    return ActivationDataset(tmp_path)


def text_of(html: str) -> str:
    """Return the text of a piece of HTML, which has none but harmless elements."""
    names = re.findall(r"</?([a-zA-Z]+)", html)
    assert set(names) <= ALLOWED, set(names) - ALLOWED
    assert "\x00" not in html
    assert "\u202e" not in html
    return re.sub(r"<[^>]*>", " ", html)


def test_a_dataset_and_its_run(dataset):
    assert "[20, 4]" in text_of(dataset._repr_html_())
    shown = text_of(dataset.info._repr_html_())
    norms = np.linalg.norm(np.arange(80.0).reshape(20, 4), axis=1)
    assert f"mean norm {norms.mean():.4g}" in shown
    assert "20 of 1 samples" in shown


def test_keys_have_the_text_of_tokens_and_say_how_many_more(dataset):
    shown = text_of(dataset.keys()._repr_html_())
    assert shown.count("&lt;script&gt;") == 8 + 3  # a task each, and the tokens of ids 0, 3 and 6
    assert "and 12 more rows" in shown
    assert "\\xe2" in shown
    assert "more rows" not in text_of(dataset.keys(slice(0, 3))._repr_html_())


def test_kept_rows_say_how_many_each_filter_left_out(dataset):
    kept = dataset.kept_rows(max_norm_multiple=1.5, skip_first=2)
    norms = np.linalg.norm(np.arange(80.0).reshape(20, 4), axis=1)
    large = norms > 1.5 * dataset.info.statistics["layer_1"]["median_norm"]
    stay = 20 - int((large | (np.arange(20) < 2)).sum())
    counts = f"max_norm_multiple {large.sum()}, skip_first 2, together {20 - stay}"
    assert repr(kept) == f"KeptRows({stay} rows; left out: {counts})"
    words = text_of(kept._repr_html_()).split()
    assert words[2:4] == ["kept", str(stay)]
    assert words[-4:] == ["left", "out", "together", str(20 - stay)]
    assert repr(dataset.kept_rows()) == "KeptRows(20 rows; left out: together 0)"


def test_names_of_any_length_stay_small(tmp_path):
    hooks = {f"hook_{number}": 2 for number in range(40)}
    with ActivationWriter(tmp_path, hooks, model_name="<b>m</b>" * 100_000) as writer:
        rows = {hook: np.ones((1, 2), np.float32) for hook in hooks}
        writer.add(RowBlock.of(rows, ["t"]))
    dataset = ActivationDataset(tmp_path, list(hooks))
    info = dataset.info
    for shown in (dataset, info, dataset.keys()):
        assert len(repr(shown)) < 600
        assert len(shown._repr_html_()) < 4000
    assert "and 32 more lines" in text_of(info._repr_html_())
    assert "(800,007 characters)" in text_of(info._repr_html_())
    run = ExtractedRun(
        run_id="r",
        folder=tmp_path,
        address=str(tmp_path),
        metadata={"layers_extracted": [*hooks], "total_sequences": 1, "total_samples": 1}
        | {"batches": [{"batch_id": 1}]},
    )
    assert "hook_5 and 34 more" in text_of(run._repr_html_()).replace("_ ", "_")
    captured = captured_of(dict(rows))
    assert len(captured._repr_html_()) < 4000
    assert "norm of hook_5" in text_of(captured._repr_html_()).replace("_ ", "_")
    assert "norm of hook_6" not in text_of(captured._repr_html_()).replace("_ ", "_")


def captured_of(activations: dict[str, np.ndarray]) -> Captured:
    """Return rows of as many inputs of one token each."""
    count = len(next(iter(activations.values())))
    return Captured(
        activations=NamedActivations(activations),
        sample=np.arange(count, dtype=np.int32),
        position=np.zeros(count, np.int32),
        slot=np.zeros(count, np.int32),
        token_id=np.zeros(count, np.int32),
        token_ids=((0,),) * count,
        generated=((),) * count,
        width=1,
    )


def test_captured_rows_have_norms():
    captured = Captured(
        activations=NamedActivations({"layer_1": np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)}),
        sample=np.array([0, 1], np.int32),
        position=np.array([0, 5], np.int32),
        slot=np.array([0, 5], np.int32),
        token_id=np.array([7, 8], np.int32),
        token_ids=((7,), (8,)),
        generated=((), ()),
        width=6,
    )
    cells = text_of(captured._repr_html_()).split()
    assert cells[-8:] == ["0", "0", "7", "5", "1", "5", "8", "2"]
    many = captured_of({"layer_1": np.full((1000, 1), 2, np.float32)})
    assert "and 992 more rows" in text_of(many._repr_html_())


def test_an_autoencoder_says_what_it_is_of():
    sae = SparseAutoencoder(
        architecture="topk",
        W_enc=np.zeros((4, 8), np.float32),
        W_dec=np.zeros((8, 4), np.float32),
        b_enc=np.zeros(8, np.float32),
        b_dec=np.zeros(4, np.float32),
        k=2,
        metadata={"hook_point": HOSTILE, "l0": 1.25},
    )
    assert "1.25" in text_of(sae._repr_html_())
