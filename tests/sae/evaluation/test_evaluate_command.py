"""`python -m sae evaluate`: table, evaluation.json, training.html, refusals."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from extraction import ActivationDataset
from extraction.storage import open_storage
from inference import load_model
from sae import load, save
from sae.__main__ import main
from sae.evaluation.model import Spliced, evaluate_model
from sae.evaluation.rows import RowEvaluator
from tests.extraction.report.pages import parse, table
from tests.fake_gcs.fixture import fake_gcs
from tests.oracle import make_checkpoint, random_tokens
from tests.sae.autoencoders import random_autoencoder
from tests.sae.scores import labelled_run
from tests.sae.scores.labelled_run import autoencoder, samples
from tests.sae.small_run import HOOK, TARGET, write_run

__all__ = ["fake_gcs", "folder"]

NAMES = [f"{HOOK}.k=3", f"{HOOK}.k=5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run `train`, another run `held`, two autoencoders and a transcoder in `saes`."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_run(folder / "train")
    write_run(folder / "held", rows=350, bad=2)
    (folder / "sweep.yaml").write_text("saes:\n  - {k: 3}\n  - {k: 5}\n")
    common = [
        *("--activations_dir", str(folder / "train"), "--d_sae", "3x", "--batch_size", "50"),
        *("--train_rows", "3000", "--pool_rows", "200", "--log_steps", "5", "--k", "4"),
    ]
    sweep = ["--output_dir", str(folder / "saes"), "--config", str(folder / "sweep.yaml")]
    assert main(["train", *common, *sweep, "--hook_points", HOOK]) == 0
    one = ["--output_dir", str(folder / "transcoder"), "--target_hook_point", TARGET]
    kind = ["--architecture", "standard", "--l1_coefficient", "0.1"]
    assert main(["train", *common, *one, *kind, "--hook_points", HOOK]) == 0
    return folder


def evaluated(folder: Path, saes: list[str], *flags: str, status: int = 0, run="held"):
    """The result of the command, from `evaluation.json`."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = [*(str(folder / name) for name in saes), "--activations_dir", str(folder / run)]
    assert main(["evaluate", *words, "--output_dir", str(out), *flags]) == status
    return json.loads((out / "evaluation.json").read_text()) if status == 0 else None


def test_figures_of_two_autoencoders_and_a_transcoder(folder, capsys):
    saes = [*(f"saes/{name}" for name in NAMES), f"transcoder/{HOOK}"]
    found = evaluated(folder, saes, "--max_norm_multiple", "1.3")
    printed = capsys.readouterr().out.splitlines()
    dataset = ActivationDataset(folder / "held", [HOOK, TARGET])
    rows, targets = dataset[:][HOOK], dataset[:][TARGET]
    limit = 1.3 * dataset.info.statistics[HOOK]["median_norm"]
    for sae, one in zip(saes, found["autoencoders"], strict=True):
        evaluator = RowEvaluator(load(folder / sae), limit)
        evaluator.add(rows, targets if "transcoder" in sae else None)
        wanted = evaluator.result()
        assert wanted.not_finite == 2
        assert 0 < wanted.without_sinks.rows < wanted.all_rows.rows == 348
        figures = one["rows"]
        assert figures["all_rows"] == pytest.approx(dataclasses.asdict(wanted.all_rows))
        assert figures["without_sinks"] == pytest.approx(dataclasses.asdict(wanted.without_sinks))
        assert figures["dead"] == wanted.dead
        assert (one["hook_point"], one["model"]) == (HOOK, None)
        assert not one["trained_on_these_rows"]
        (line,) = [line for line in printed if line.split()[:1] == [one["name"]]]
        assert f"{wanted.all_rows.fvu:#.4g}" in line.split()
    assert found["autoencoders"][2]["target_hook_point"] == TARGET
    page = parse((folder / "out/training.html").read_bytes())
    shown = table(page, "Figures of rows")
    assert set(shown) == {one["name"] for one in found["autoencoders"]}
    ends = table(page, "Metrics at the end")
    last = json.loads((folder / "saes/metrics.jsonl").read_text().splitlines()[-2])
    assert last["autoencoder"] == NAMES[0]
    assert float(ends[NAMES[0]]["Active latents of a row"]) == pytest.approx(last["l0"], rel=1e-3)


def test_rows_of_the_training_are_told(folder, capsys):
    found = evaluated(folder, [f"saes/{NAMES[0]}"], run="train")
    assert found["autoencoders"][0]["trained_on_these_rows"]
    assert "trained on these rows" in capsys.readouterr().out
    page = parse((folder / "out/training.html").read_bytes())
    assert "Trained on these rows." in page.one("section", class_="warnings").text


def test_filters_and_a_limit_choose_rows(folder):
    sae = [f"saes/{NAMES[0]}"]
    found = evaluated(folder, sae, "--skip_first", "100")
    assert found["autoencoders"][0]["rows"]["all_rows"]["rows"] == 250
    assert found["rows_left_out"]["skip_first"] == 100
    limited = evaluated(folder, sae, "--row_limit", "77", run="train")
    assert limited["autoencoders"][0]["rows"]["all_rows"]["rows"] == 77
    whole = evaluated(folder, sae, run="train")
    assert limited["autoencoders"][0]["rows"]["all_rows"] != whole["autoencoders"][0]["rows"]


def test_in_a_model(folder):
    model = folder / "model"
    if not model.exists():
        make_checkpoint(model, hidden_size=16, num_attention_heads=2, num_key_value_heads=1)
    texts = [random_tokens(length, seed=length) for length in (9, 40, 1, 25)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text(lines)
    flags = ["--model_path", str(model), "--dataset", str(folder / "texts.jsonl")]
    saes = [f"saes/{NAMES[1]}", f"transcoder/{HOOK}"]
    found = evaluated(folder, saes, *flags, "--context_length", "16", "--max_norm_multiple", "3")
    limit = 3 * ActivationDataset(folder / "held", HOOK).info.statistics[HOOK]["median_norm"]
    pieces = [text[start : start + 16] for text in texts for start in range(0, len(text), 16)]
    spliced = {"a": Spliced(load(folder / saes[0]), HOOK, limit)}
    wanted = evaluate_model(load_model(model), spliced, pieces)["a"]
    assert wanted.sinks > 0
    first, transcoder = found["autoencoders"]
    assert first["model"] == pytest.approx(dataclasses.asdict(wanted), rel=1e-5)
    assert transcoder["model"] is None
    page = parse((folder / "out/training.html").read_bytes())
    assert list(table(page, "Figures in the model")) == [first["name"]]


def test_another_hook_point_of_the_same_width(folder, tmp_path):
    sae = random_autoencoder("topk", d_in=12)
    save(sae, tmp_path / "plain")
    words = [str(tmp_path / "plain"), "--activations_dir", str(folder / "held")]
    assert main(["evaluate", *words]) == 2  # it does not say which hook point it is of
    assert main(["evaluate", *words, "--hook_point", "blocks.1.hook_mlp_out"]) == 0


@pytest.mark.parametrize(
    ("saes", "flags", "words"),
    [
        (["saes/nothing"], [], "there is no file"),
        (["saes"], [], "holds no autoencoder of a known format"),
        (["saes/" + NAMES[0]] * 2, [], "is given twice"),
        (["saes/" + NAMES[0]], ["--hook_point", "layer_9"], "there is no layer_9"),
        (["saes/" + NAMES[0]], ["--hook_point", TARGET], "has rows of width 12"),
        (["saes/" + NAMES[0]], ["--skip_first", "99999"], "has no rows to evaluate on"),
        (["saes/" + NAMES[0]], ["--activations_dir", "/nowhere"], "/nowhere"),
        (["saes/" + NAMES[0]], ["--dataset", "x.jsonl"], "--dataset is for a model"),
        (["saes/" + NAMES[0]], ["--model_path", "m"], "neither was given"),
        (["saes/" + NAMES[0]], ["--max_norm_multiple", "0"], "--max_norm_multiple must be at"),
    ],
)
def test_refusals_of_one_line(saes, flags, words, folder, capsys):
    evaluated(folder, saes, *flags, status=2)
    message = capsys.readouterr().err.strip()
    assert words in message
    assert len(message.splitlines()) == 1


def test_an_autoencoder_of_another_model_is_refused(tmp_path, capsys):
    lines, rows = samples(40)
    fingerprint = {"weights_sha256": "a" * 64}
    labelled_run.write_run(tmp_path / "run", lines, {HOOK: rows}, fingerprint=fingerprint)
    for name, digest in (("same", "a" * 64), ("other", "b" * 64)):
        save(autoencoder(weights_sha256=digest, hook_point=HOOK), tmp_path / name)
    words = ["--activations_dir", str(tmp_path / "run")]
    assert main(["evaluate", str(tmp_path / "same"), *words]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "other"), *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "take an autoencoder of that model" in line


def test_no_autoencoder_is_named(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--activations_dir", str(folder / "held")])
    assert ended.value.code == 2
    assert "SAE" in capsys.readouterr().err


def test_a_folder_of_hostile_name(folder, tmp_path):
    name = "<img src=x onerror=alert(1)>\x1b[2J\u202e"
    shutil.copytree(folder / "saes" / NAMES[0], tmp_path / name)
    metrics = (folder / "saes/metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) | {"autoencoder": name} for line in metrics]
    torn = '{"autoencoder": "x", "ro'
    (tmp_path / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), torn]))
    words = [str(tmp_path / name), "--activations_dir", str(folder / "held")]
    assert main(["evaluate", *words, "--output_dir", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/training.html").read_text()
    assert "<img" not in text
    assert "\x1b" not in text
    assert len(list(parse(text.encode()).nodes("figure"))) == 6


def test_a_run_without_statistics(folder, tmp_path):
    """The median is computed of the rows, as the folder does not say it."""
    rows = ActivationDataset(folder / "held", HOOK)
    run = tmp_path / "run"
    shutil.copytree(folder / "held", run)
    shutil.rmtree(run / "_run")
    metadata = json.loads((run / "metadata.json").read_text())
    del metadata["statistics"]
    (run / "metadata.json").write_text(json.dumps(metadata))
    assert ActivationDataset(run, HOOK).info.statistics == {}
    out = tmp_path / "out"
    words = [str(folder / "saes" / NAMES[0]), "--activations_dir", str(run)]
    assert main(["evaluate", *words, "--output_dir", str(out)]) == 0
    (one,) = json.loads((out / "evaluation.json").read_text())["autoencoders"]
    norms = np.linalg.norm(rows[2:], axis=1)
    assert one["rows"]["max_norm"] == pytest.approx(10 * np.median(norms), rel=0.05)


def test_reconstructions_that_overflow_are_null(folder, tmp_path):
    sae = load(folder / "saes" / NAMES[0])
    large = {"W_enc": sae.W_enc * np.float32(1e4), "W_dec": sae.W_dec + np.float32(3e38)}
    save(dataclasses.replace(sae, **large), tmp_path / "broken")
    out = tmp_path / "out"
    words = [str(tmp_path / "broken"), "--activations_dir", str(folder / "held")]
    assert main(["evaluate", *words, "--output_dir", str(out)]) == 0
    (one,) = json.loads((out / "evaluation.json").read_text())["autoencoders"]
    assert one["rows"]["all_rows"]["fvu"] is None


@pytest.mark.parametrize("address", ["gs://bucket/saes/layer_1.k=3", "gs://bucket"])
def test_from_a_bucket_into_a_bucket(address, folder, fake_gcs, monkeypatch):
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    save(load(folder / "saes" / NAMES[0]), address)
    metrics = (folder / "saes/metrics.jsonl").read_bytes()
    if address.count("/") > 2:
        open_storage("gs://bucket/saes").replace("metrics.jsonl", metrics)
    out = "gs://bucket/evaluation"
    words = [address, "--activations_dir", str(folder / "held"), "--output_dir", out]
    assert main(["evaluate", *words]) == 0
    page = parse(open_storage(out).get("training.html"))
    assert len(list(page.nodes("figure"))) == (6 if address.count("/") > 2 else 1)
    assert json.loads(open_storage(out).get("evaluation.json"))["autoencoders"][0]["rows"]
