"""`python -m sae convert`: every pair of formats, and one line for what cannot be converted."""

import dataclasses
import itertools

import numpy as np
import pytest

from sae import load, save
from sae.__main__ import main
from sae.files import WRITTEN
from tests.sae.autoencoders import KINDS, expected, random_autoencoder

ROWS = np.random.default_rng(3).normal(size=(20, 6)).astype(np.float32)


def holds(format: str, kind: str) -> bool:
    if format == "sparsify":
        return kind.startswith("topk")
    return format == "saelens" or kind != "transcoder"


CASES = [
    (source, target, kind)
    for source, target, kind in itertools.product(WRITTEN, WRITTEN, KINDS)
    if holds(source, kind)
]


@pytest.mark.parametrize(("source", "target", "kind"), CASES)
def test_every_pair_of_formats_gives_the_same_latents(source, target, kind, tmp_path, capsys):
    sae = dataclasses.replace(
        random_autoencoder(kind), metadata={"run_id": "r", "hook_point": "layer_6"}
    )
    save(sae, tmp_path / "source", format=source)
    words = ["convert", str(tmp_path / "source"), str(tmp_path / "out"), "--to", target]
    status = main(words)
    told = capsys.readouterr()
    if not holds(target, kind):
        assert status == 2
        assert told.err.startswith("error: ")
        assert told.err.count("\n") == 1
        assert target in told.err
        assert not (tmp_path / "out").exists()
        return
    assert status == 0
    assert f"in the format {target}" in told.out
    converted = load(tmp_path / "out", format=target)
    assert {"run_id": "r", "hook_point": "layer_6"}.items() <= converted.metadata.items()
    latents, outputs = expected(sae, ROWS)
    np.testing.assert_allclose(converted.encode(ROWS), latents, rtol=0, atol=1e-5)
    np.testing.assert_allclose(converted(ROWS), outputs, rtol=0, atol=1e-5)


def test_the_frequencies_of_latents_stand_in_a_file_of_saelens(tmp_path):
    densities = [0.0, 1.0, 0.25, *[1e-6] * 13]
    sae = dataclasses.replace(random_autoencoder("topk"), metadata={"densities": densities})
    for format in WRITTEN:
        save(sae, tmp_path / format, format=format)
        files = [path.read_text() for path in (tmp_path / format).glob("*.json")]
        assert not any("densities" in text for text in files)
    found = load(tmp_path / "saelens").metadata["densities"]
    np.testing.assert_allclose(found, densities, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere", "out", "--to", "saelens"], "nowhere holds no autoencoder of a known format"),
        (["source", "source", "--to", "sparsify"], "source has cfg.json already"),
        (["source", "out", "--to", "saelens", "--from", "sparsify"], "sae.safetensors is missing"),
        (["source", "out", "--to", "npz"], "invalid choice: 'npz'"),
        (["source", "out"], "required: --to"),
        (["source/cfg.json", "out", "--to", "saelens"], "source/cfg.json is a file"),
        (["source", "source/cfg.json/x", "--to", "saelens"], "is below"),
        (["source", "ftp://x/y", "--to", "saelens"], "ftp:// is not supported"),
    ],
)
def test_what_cannot_be_converted_is_told_in_one_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(random_autoencoder("topk"), "source")
    try:
        status = main(["convert", *words])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
