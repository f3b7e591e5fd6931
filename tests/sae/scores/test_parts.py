"""Several processes read parts of the rows; the last one to end writes the results of all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from sae import save
from sae.__main__ import main
from sae.scores import row_groups
from tests.sae.scores.labelled_run import D_IN, HOOK, autoencoder, samples, write_run

ROWS = 2000
PIECE = 130
"""Rows of a piece, so that every part has several."""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two autoencoders, a run with labels and one of background; pieces of the rows are small."""
    monkeypatch.setattr(row_groups, "CHUNK_BYTES", 4 * D_IN * PIECE)
    lines, rows = samples(ROWS)
    rows[[7, 1500]] = np.nan
    write_run(tmp_path / "run", lines, {HOOK: rows})
    others, background = samples(700, seed=5)
    write_run(tmp_path / "background", others, {HOOK: background})
    for seed in range(2):
        save(autoencoder(seed), tmp_path / f"sae{seed}")
    return tmp_path


def score(folder: Path, out: str, *flags: str, top: int = 5) -> int:
    saes = [str(folder / f"sae{seed}") for seed in range(2)]
    return main([
        "score", *saes, "--activations_dir", str(folder / "run"), "--label_field", "known",
        "--first", "true", "--category_field", "type", "--skip_first", "1",
        "--background_dir", str(folder / "background"), "--background_frequency", "0.3",
        "--top", str(top), "--output_dir", str(folder / out), *flags,
    ])  # fmt: skip


def same(found, wanted) -> None:
    """JSON values that agree, numbers within rounding."""
    if isinstance(wanted, dict):
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            same(found[name], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
    else:
        close = isinstance(wanted, float)
        assert found == (pytest.approx(wanted, rel=1e-9, abs=1e-300) if close else wanted)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_last_part_writes_what_one_process_would(folder, capsys, order):
    assert score(folder, "alone") == 0
    for number in order:
        assert not (folder / "shared/scores.json").exists()
        assert score(folder, "shared", "--part", f"{number}/3") == 0
    assert capsys.readouterr().out.count("the results follow when the other parts") == 2
    for name in ("scores.json", "sae0/city_L_1.json", "sae1/movie_L_1.json"):
        same(*(json.loads((folder / out / name).read_text()) for out in ("shared", "alone")))
    # Each part has some of the rows, not all of them.
    for number in range(3):
        with safe_open(folder / f"shared/sums/{number}_of_3.safetensors", "numpy") as file:
            cells = [key for key in file.keys() if key.startswith("0.") and "numbers" in key]  # noqa: SIM118
            rows = sum(int(file.get_tensor(key)[0]) for key in cells if "back" not in key)
        assert 500 < rows < 900


def test_a_repeated_part_changes_nothing(folder):
    for number in (0, 1):
        assert score(folder, "shared", "--part", f"{number}/2") == 0
    before = (folder / "shared/scores.json").read_bytes()
    assert score(folder, "shared", "--part", "0/2") == 0
    assert (folder / "shared/scores.json").read_bytes() == before


def test_parts_of_other_settings_or_rows_are_refused(folder, capsys):
    assert score(folder, "shared", "--part", "0/2") == 0
    assert score(folder, "shared", "--part", "1/2", top=6) == 2
    assert "0_of_2.safetensors is of another top; choose another --output_dir" in (
        capsys.readouterr().err
    )
    shutil.rmtree(folder / "run")
    lines, rows = samples(ROWS, seed=1)
    write_run(folder / "run", lines, {HOOK: rows})
    assert score(folder, "shared", "--part", "1/2") == 2
    assert "is of another runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("0.0.keys", lambda array: array + (np.uint64(1) << np.uint64(40))),
        ("0.0.keys", lambda array: array[::-1]),
        ("0.0.keys", lambda array: array.astype(np.int64)),
        ("0.3.mean", lambda array: array[:-1]),
        ("1.2.numbers", lambda array: -array),
        ("1.background.active", None),
    ],
)
def test_a_damaged_part_is_refused(folder, capsys, key, change):
    assert score(folder, "shared", "--part", "0/2") == 0
    file = folder / "shared/sums/0_of_2.safetensors"
    with safe_open(file, "numpy") as opened:
        texts = opened.metadata()
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if change is None:
        del arrays[key]
    else:
        arrays[key] = np.ascontiguousarray(change(arrays[key]))
    save_file(arrays, file, texts)
    assert score(folder, "shared", "--part", "1/2") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "0_of_2.safetensors is damaged" in line


@pytest.mark.parametrize("part", ["2/2", "-1/2", "1", "a/b", "0/0"])
def test_what_is_no_part(folder, capsys, part):
    assert score(folder, "out", f"--part={part}") == 2
    assert f"--part {part} is no part of the rows" in capsys.readouterr().err


def test_parts_need_an_output(folder, capsys):
    words = ["--activations_dir", "run", "--label_field", "known", "--first", "true"]
    assert main(["score", "sae0", *words, "--part", "0/2"]) == 2
    assert "--part needs --output_dir" in capsys.readouterr().err
