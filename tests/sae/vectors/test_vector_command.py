"""`python -m sae vector` and the file that it writes, also read by the safetensors library."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from extraction import ActivationDataset
from extraction.errors import StoreError
from extraction.storage import open_storage
from inference.errors import InputError
from inference.inputs.steering import read_steering
from sae import Vector, decoder_vectors, load_vectors, save, save_vectors
from sae.__main__ import main
from tests.fake_gcs.fixture import fake_gcs
from tests.sae.scores.labelled_run import D_IN, D_SAE, HOOK, autoencoder, samples, write_run

__all__ = ["fake_gcs"]

DIGEST = "c" * 64
FIELD = ("--label_field", "known", "--first", "true")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run `run` of 900 samples, and an autoencoder `sae` of its model."""
    folder = tmp_path_factory.mktemp("vector")
    lines, rows = samples(900)
    rows[5] = np.inf
    write_run(
        folder / "run", lines, {HOOK: rows}, rows_per_file=77,
        fingerprint={"weights_sha256": DIGEST},
    )  # fmt: skip
    save(autoencoder(weights_sha256=DIGEST, model_name="m"), folder / "sae")
    return folder


def texts(file: Path) -> dict:
    """The metadata of a file as the safetensors library reads them."""
    with safe_open(file, "numpy") as opened:
        found = opened.metadata()
    assert found.pop("weights_sha256", DIGEST) == DIGEST  # no JSON, for other programs
    return {name: json.loads(text) for name, text in found.items()}


def test_decoder_rows(folder, tmp_path, capsys):
    file = tmp_path / "v.safetensors"
    words = ["--sae", str(folder / "sae"), "--latents", "47", "3", "--output_file", str(file)]
    assert main(["vector", *words]) == 0
    decoder = autoencoder().W_dec
    with safe_open(file, "numpy") as opened:
        assert set(opened.keys()) == {"latent_47", "latent_3"}
        for latent in (47, 3):
            tensor = opened.get_tensor(f"latent_{latent}")
            assert tensor.dtype == np.float32
            assert np.array_equal(tensor, decoder[latent])
    norm = np.linalg.norm(decoder[47].astype(np.float64))
    assert texts(file)["latent_47"] == {
        "kind": "decoder_row",
        "hook_point": HOOK,
        "norm": pytest.approx(norm),
        "model_name": "m",
        "weights_sha256": DIGEST,
        "sae": str(folder / "sae"),
        "latent": 47,
    }
    assert f"norm {norm:.4g}" in capsys.readouterr().out.splitlines()[0]
    found = load_vectors(file)["latent_47"]
    assert np.array_equal(found.values, decoder[47])
    assert (found.hook_point, found.weights_sha256) == (HOOK, DIGEST)
    assert found.details["latent"] == 47


@pytest.mark.parametrize("labelled", [True, False])
def test_differences_of_means(folder, tmp_path, labelled):
    lines, rows = samples(900)
    known = np.array([line["known"] for line in lines])
    finite = np.arange(900) != 5
    flags = [*FIELD]
    run = folder / "run"
    if not labelled:
        bad = rows.copy()
        bad[5] = np.nan
        for name, members in (("a", known), ("b", ~known)):
            kept = [line for line, member in zip(lines, members, strict=True) if member]
            write_run(tmp_path / name, kept, {HOOK: bad[members]})
        run, flags = tmp_path / "a", ["--second_activations_dir", str(tmp_path / "b")]
    file = tmp_path / "v.safetensors"
    words = ["--activations_dir", str(run), *flags, "--output_file", str(file)]
    assert main(["vector", *words]) == 0
    first, second = (rows[m & finite].astype(np.float64).mean(0) for m in (known, ~known))
    name = "true_minus_not true" if labelled else "first_minus_second"
    (found,) = load_vectors(file).values()
    assert found.name == name
    assert np.allclose(found.values, first - second, rtol=1e-6, atol=1e-7)
    assert found.hook_point == HOOK
    assert found.weights_sha256 == (DIGEST if labelled else None)
    assert found.details["rows"] == [int((known & finite).sum()), int((~known & finite).sum())]
    assert found.details["rows_not_finite"] == 1


def test_rows_are_left_out_as_in_a_training(folder, tmp_path):
    lines, _ = samples(900)
    dataset = ActivationDataset(folder / "run", HOOK)
    numbers = dataset.kept_rows(max_norm_multiple=1.0, skip_first=1).numbers
    keys = dataset.keys(numbers)
    of_task = {line["task_id"]: line["known"] for line in lines}
    group = np.array([of_task[task] for task in keys.task_ids.tolist()])
    values = dataset[numbers].astype(np.float64)
    finite = np.isfinite(values).all(1)
    assert 0 < len(numbers) < 900
    file = tmp_path / "v.safetensors"
    words = ["--activations_dir", str(folder / "run"), *FIELD, "--output_file", str(file)]
    assert main(["vector", *words, "--max_norm_multiple", "1", "--skip_first", "1"]) == 0
    (found,) = load_vectors(file).values()
    wanted = values[finite & group].mean(0) - values[finite & ~group].mean(0)
    assert np.allclose(found.values, wanted, rtol=1e-5, atol=1e-6)
    assert found.details["skip_first"] == 1


def test_both_in_one_file_of_norm_1(folder, tmp_path):
    file = tmp_path / "v.safetensors"
    words = ["--sae", str(folder / "sae"), "--latents", "3", "--unit_norm", "True"]
    words += ["--activations_dir", str(folder / "run"), *FIELD, "--output_file", str(file)]
    assert main(["vector", *words]) == 0
    found = load_vectors(file)
    assert set(found) == {"latent_3", "true_minus_not true"}
    row = autoencoder().W_dec[3]
    norm = np.linalg.norm(row)
    assert found["latent_3"].details["norm_before"] == pytest.approx(norm)
    assert np.allclose(found["latent_3"].values, row / norm, rtol=1e-6)
    assert all(
        text["norm"] == pytest.approx(1) for name, text in texts(file).items() if name in found
    )


def test_interventions_take_the_file(folder, tmp_path):
    file = tmp_path / "v.safetensors"
    words = ["--sae", str(folder / "sae"), "--latents", "3", "9", "--output_file", str(file)]
    assert main(["vector", *words]) == 0
    entry = {"hook_point": HOOK, "vectors": "v.safetensors", "name": "latent_9"}
    (tmp_path / "steer.yaml").write_text(json.dumps({"interventions": [entry]}))
    (found,) = read_steering(tmp_path / "steer.yaml", DIGEST).vectors
    assert np.array_equal(found, autoencoder().W_dec[9])
    with pytest.raises(InputError, match="was made for other weights"):
        read_steering(tmp_path / "steer.yaml", "e" * 64)


def test_one_file_is_for_one_model(folder, tmp_path, capsys):
    save(autoencoder(weights_sha256="e" * 64), tmp_path / "other")
    words = ["--sae", str(tmp_path / "other"), "--latents", "3"]
    words += ["--activations_dir", str(folder / "run"), *FIELD]
    assert main(["vector", *words, "--output_file", str(tmp_path / "v.safetensors")]) == 2
    assert "models of different weights, cccccccccccc and eeeeeeeeeeee" in capsys.readouterr().err


def test_in_a_bucket(folder, fake_gcs, monkeypatch):
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    where = "gs://bucket/deep/v.safetensors"
    words = ["--sae", str(folder / "sae"), "--latents", "3", "--output_file", where]
    assert main(["vector", *words]) == 0
    assert open_storage("gs://bucket/deep").names() == ["v.safetensors"]
    assert np.array_equal(load_vectors(where)["latent_3"].values, autoencoder().W_dec[3])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sae", "sae", "--latents", str(D_SAE)], f"no latent {D_SAE}; sae has 0 to {D_SAE - 1}"),
        (["--sae", "sae", "--latents", "-1"], "--latents must be at least 0, not -1"),
        (["--sae", "sae", "--latents", "nan"], "invalid int value: 'nan'"),
        (["--sae", "sae", "--latents", "3", "3"], "two vectors have the name 'latent_3'"),
        (["--sae", "sae"], "--sae and --latents go together"),
        ([], "give --sae with --latents, or --activations_dir"),
        (["--activations_dir", "run"], "two groups need one of"),
        (["--label_field", "known", "--first", "true"], "or --activations_dir with two groups"),
        (["--activations_dir", "run", *FIELD, "--hook_point", "layer_3"], "there is no layer_3"),
        (["--activations_dir", "run", *FIELD, "false"], "group not true false has no rows"),
        (["--activations_dir", "run", "--label_field", "k", "--first", "1"], "--label_field k"),
        (
            ["--activations_dir", "run", "--second_activations_dir", "run"],
            "--second_activations_dir is --activations_dir too",
        ),
    ],
)
def test_refusals(folder, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["vector", *flags, "--output_file", "none.safetensors"]))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not Path("none.safetensors").exists()


def test_runs_of_other_models_have_no_difference(folder, tmp_path, capsys):
    lines, rows = samples(50)
    write_run(tmp_path / "other", lines, {HOOK: rows}, fingerprint={"weights_sha256": "d" * 64})
    words = ["--second_activations_dir", str(tmp_path / "other")]
    words += ["--output_file", str(tmp_path / "v.safetensors")]
    assert main(["vector", "--activations_dir", str(folder / "run"), *words]) == 2
    assert "differ in weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (".", "names a folder"),
        ("new/", "names a folder"),
        ("gs://bucket", "names no file"),
        ("gs://bucket/x/", "names no file"),
        ("run/_run/run.json/v", "run.json"),
    ],
)
def test_what_is_no_file_to_write(folder, monkeypatch, capsys, file, message):
    monkeypatch.chdir(folder)
    assert main(["vector", "--sae", "sae", "--latents", "1", "--output_file", file]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not Path("gs:").exists()


def vector(**changes) -> Vector:
    fields = {"name": "a", "values": np.ones(4, np.float32), "hook_point": HOOK, "kind": "mine"}
    return Vector(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.array([1, np.nan], np.float32)}, "not finite"),
        ({"values": np.zeros(3, np.float32)}, "is 0"),
        ({"values": np.ones(3)}, r"float64 \[3\]"),
        ({"values": np.ones((2, 3), np.float32)}, r"float32 \[2, 3\]"),
        ({"name": ""}, "cannot be the name"),
        ({"name": "software"}, "cannot be the name"),
        ({"name": "weights_sha256"}, "cannot be the name"),
        ({"hook_point": "../x"}, "is no name of a hook point"),
        ({"kind": None}, "does not name its kind"),
    ],
)
def test_what_is_no_direction(changes, message):
    with pytest.raises(StoreError, match=message):
        vector(**changes)


def test_from_python(tmp_path):
    made = [vector(details={"layer": 3}), *decoder_vectors(autoencoder(), [1], hook_point=HOOK)]
    save_vectors(made, tmp_path / "v.safetensors")
    found = load_vectors(tmp_path / "v.safetensors")
    assert list(found) == ["a", "latent_1"]
    assert found["a"].details == {"layer": 3}
    assert len(found["latent_1"].values) == D_IN
    assert vector(hook_point="blocks.1.hook_resid_post").hook_point == HOOK
    with pytest.raises(StoreError, match="not JSON"):
        save_vectors([vector(details={"x": np.nan})], tmp_path / "bad.safetensors")
    with pytest.raises(StoreError, match="no vector"):
        save_vectors([], tmp_path / "bad.safetensors")


ENTRY = {
    "kind": "mine",
    "hook_point": HOOK,
    "norm": 2.0,
    "model_name": None,
    "weights_sha256": None,
}


@pytest.mark.parametrize(
    ("values", "text", "message"),
    [
        (np.ones(4, np.float32), None, "says nothing about 'a'"),
        (np.ones(4, np.float32), "{", "not JSON"),
        (np.ones(4, np.float32), "[1]", "no JSON object"),
        (np.ones(4, np.float32), json.dumps(ENTRY | {"norm": 3}), "norm 2, 3 by its metadata"),
        (np.ones(4, np.float32), json.dumps(ENTRY | {"hook_point": 3}), "name its hook_point"),
        (np.ones(4, np.float32), json.dumps(ENTRY | {"model_name": 3}), "model_name is no text"),
        (np.full(4, np.inf, np.float32), json.dumps(ENTRY), "not finite"),
        (np.ones((1, 4), np.float32), json.dumps(ENTRY), r"float32 \[1, 4\]"),
        (np.ones(4, np.int32), json.dumps(ENTRY), "I32"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, values, text, message):
    file = tmp_path / "v.safetensors"
    save_file({"a": values}, file, {} if text is None else {"a": text})
    with pytest.raises(StoreError, match=message):
        load_vectors(file)


def test_a_damaged_or_missing_file_is_refused(tmp_path):
    save_vectors([vector()], tmp_path / "v.safetensors")
    whole = (tmp_path / "v.safetensors").read_bytes()
    for size in (0, 7, 40, len(whole) - 1):
        (tmp_path / "v.safetensors").write_bytes(whole[:size])
        with pytest.raises(StoreError, match="damaged"):
            load_vectors(tmp_path / "v.safetensors")
    save_vectors([vector()], tmp_path / "v.safetensors")
    (tmp_path / "link.safetensors").symlink_to("v.safetensors")
    assert "a" in load_vectors(tmp_path / "link.safetensors")
    for missing in (tmp_path / "none.safetensors", tmp_path / "none" / "v.safetensors"):
        with pytest.raises(StoreError, match="none"):
            load_vectors(missing)
