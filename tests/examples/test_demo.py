"""The first command of the README, on the real model."""

import re

import pytest

from examples.demo import main
from examples.smollm2 import GgufError, find_gguf
from extraction import ActivationDataset


def test_the_demo_ends_with_checked_rows(tmp_path, capfd):
    try:
        find_gguf()
    except GgufError as error:  # `make test` installs it
        pytest.skip(str(error))
    assert main([str(tmp_path / "demo")]) == 0
    out = capfd.readouterr().out
    assert out.count("$ python -m ") == len(re.findall(r"^\(\d+\.\d s\)$", out, re.MULTILINE)) == 4
    assert "verdict: good" in out
    assert re.search(r"layer_15 +39 ", out)  # sinks: the first token of each of 39 pieces
    dataset = ActivationDataset(tmp_path / "demo/activations", layer=15)
    assert len(dataset) > 19_000
    assert dataset[0:4].shape == (4, 576)


def test_a_step_that_fails_ends_the_demo(tmp_path, capfd):
    (tmp_path / "demo").write_text("a file where the folder should be")
    assert main([str(tmp_path / "demo")]) != 0
    assert "[2 of" not in capfd.readouterr().out
