"""The first command of the README, on the real model."""

import re
import shlex

import numpy as np
import pytest

from examples.demo import main
from extraction import ActivationDataset
from inference.settings.command_line import make_parser, parse_settings
from sae.training.run_settings import TrainSettings
from tests.extraction.report.pages import parse, real, table, whole


@pytest.mark.usefixtures("source")  # without the model's package the test is skipped
def test_the_demo_ends_with_checked_rows_and_their_page(tmp_path, capfd):
    folder = tmp_path / "demo"
    assert main([str(folder)]) == 0
    out = capfd.readouterr().out
    titles = re.findall(r"^\[(\d) of 5\] .*about \d+ s$", out, re.MULTILINE)
    assert titles == list("12345")
    assert out.count("$ python -m ") == len(re.findall(r"^\(\d+\.\d s\)$", out, re.MULTILINE)) == 5
    assert "verdict: good" in out
    assert re.search(r"layer_15 +39 ", out)  # sinks: the first token of each of 39 pieces
    dataset = ActivationDataset(folder / "activations", layer=15)
    assert len(dataset) > 19_000
    assert dataset[0:4].shape == (4, 576)

    (address,) = re.findall(r"^  the page    open (.*) in a browser$", out, re.MULTILINE)
    assert address == str(folder / "report.html")
    page = parse((folder / "report.html").read_bytes())
    assert page.one("h1").text == "smollm2"
    cells = table(page, "Rows of large norm")["layer_15"]
    assert (whole(cells["rows"]), whole(cells["at position 0"])) == (39, 39)
    largest = table(page, "Hook points of the run")["layer_15"]["largest norm"]
    norms = np.linalg.norm(dataset[:].astype(np.float64), axis=1)
    assert real(largest) == pytest.approx(norms.max(), rel=1e-4)

    lines = re.search(r"  in Python   (.*\n)((?: {14}.*\n)+)", out)
    code = lines[1] + re.sub("^ {14}", "", lines[2], flags=re.MULTILINE)
    found = {}
    exec(code, found)
    assert found["dataset"][0:4].tolist() == dataset[0:4].tolist()
    (train,) = re.findall(r"python -m sae train (.*?)\n {14}a sparse", out, re.DOTALL)
    parser = make_parser(TrainSettings, "")
    asked = parse_settings(parser, TrainSettings, shlex.split(train.replace("\\\n", " ")))
    assert asked.activations_dir == str(folder / "activations")
    assert asked.hook_points == ["layer_15"]
    named = re.findall(r"--[a-z_]+", out.partition("your model")[2].partition("all flags")[0])
    step = re.search(r"\[2 of 5\].*\n(.*)", out)[1]
    assert named == ["--model_path", "--dataset", "--layers_to_extract"]
    assert set(named) <= set(step.split())


def test_a_step_that_fails_ends_the_demo(tmp_path, capfd):
    (tmp_path / "demo").write_text("a file where the folder should be")
    assert main([str(tmp_path / "demo")]) != 0
    assert "[2 of" not in capfd.readouterr().out
