"""`python -m sae train`: files, sweeps, going on, refusals."""

import contextlib
import dataclasses
import errno
import functools
import io
import json
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest

from extraction import ActivationDataset
from extraction.checksums import crc32c
from sae.__main__ import main
from sae.files import load
from sae.training import checkpoints
from sae.training.run import Training
from sae.training.run_settings import TrainSettings
from sae.training.sweep import entries
from tests.sae.small_run import HOOK, TARGET, write_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


def flags(run: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--activations_dir", str(run), "--output_dir", str(out), "--hook_points", HOOK),
        *("--d_sae", "3x", "--k", "4", "--batch_size", "50", "--train_rows", "1500"),
        *("--pool_rows", "200", "--learning_rate", "0.003", "--dead_rows", "300", *more),
    ]


def weights(folder: Path) -> bytes:
    return (folder / "sae_weights.safetensors").read_bytes()


def lines(folder: Path) -> list[dict]:
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder_that_reconstructs_the_rows(run_folder, tmp_path, capsys):
    assert main(["train", *flags(run_folder, tmp_path / "out", "--train_rows", "30000")]) == 0
    assert f"{tmp_path}/out/{HOOK}: SparseAutoencoder(jumprelu" in capsys.readouterr().out
    sae = load(tmp_path / "out" / HOOK)
    rows = ActivationDataset(run_folder, HOOK)[:]
    errors = sae(rows) - rows
    assert (errors**2).sum() / ((rows - rows.mean(0)) ** 2).sum() < 0.35
    assert 2 < (sae.encode(rows) > 0).sum(1).mean() < 7
    assert sae.metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert sae.metadata["hf_hook_name"] == "model.layers.1"
    assert sae.metadata["rows_trained_on"] == 30_000
    told = lines(tmp_path / "out")
    assert told[-1]["rows"] == 30_000
    assert told[-1]["fvu"] < told[0]["fvu"]


def test_a_relative_folder(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *flags(run_folder, Path("out"))]) == 0
    assert main(["train", *flags(run_folder, Path("out"), "--resume", "True")]) == 0
    assert load("out/layer_1").d_in == 16


def test_the_files_do_to_rows_what_was_trained_on_scaled_rows(run_folder, tmp_path):
    """The scale, which makes the mean norm the square root of the width, is folded exactly."""
    assert main(["train", *flags(run_folder, tmp_path / "out", "--architecture", "topk")]) == 0
    sae = load(tmp_path / "out" / HOOK)
    rows = ActivationDataset(run_folder, HOOK)[:].astype(np.float64)
    scale = sae.metadata["normalization"]["scales"][0]
    assert np.linalg.norm(rows, axis=1).mean() * scale == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("architecture", ["batch_topk", "topk", "jumprelu", "standard"])
def test_autoencoders_of_a_sweep_are_trained_as_if_alone(architecture, run_folder, tmp_path):
    config = tmp_path / "sweep.yaml"
    config.write_text("saes:\n  - {k: 3}\n  - {k: 5, random_seed: 7, name: other}\n")
    common = ["--architecture", architecture]
    sweep = flags(run_folder, tmp_path / "sweep", "--config", str(config), *common)
    assert main(["train", *sweep]) == 0
    alone = {"k=3": ["--k", "3"], "other": ["--k", "5", "--random_seed", "7"]}
    for name, more in alone.items():
        assert main(["train", *flags(run_folder, tmp_path / name, *common, *more)]) == 0
        assert weights(tmp_path / "sweep" / f"{HOOK}.{name}") == weights(tmp_path / name / HOOK)
    assert {line["autoencoder"] for line in lines(tmp_path / "sweep")} == {
        f"{HOOK}.k=3",
        f"{HOOK}.other",
    }


def test_a_short_training_has_the_threshold_of_its_active_latents(run_folder, tmp_path):
    """The running average begins at zero; what it lacks after few steps is made up for."""
    words = [*flags(run_folder, tmp_path / "out"), "--train_rows", "250"]  # 5 steps
    assert main(["train", *words]) == 0
    sae = load(tmp_path / "out" / HOOK)
    rows = ActivationDataset(run_folder, HOOK)[:]
    assert 3 < (sae.encode(rows) > 0).sum(1).mean() < 10  # k is 4, and thresholds still rise
    begun_at_zero = dataclasses.replace(sae, threshold=sae.threshold * (1 - 0.99**5))
    assert (begun_at_zero.encode(rows) > 0).sum(1).mean() > 15


def test_k_means_nothing_without_a_selection(run_folder, tmp_path):
    words = flags(run_folder, tmp_path / "out", "--architecture", "standard", "--k", "1000")
    assert main(["train", *words]) == 0


def test_a_transcoder_reconstructs_another_hook_point(run_folder, tmp_path):
    more = ["--target_hook_point", TARGET, "--architecture", "standard", "--l1_coefficient", "0.1"]
    assert main(["train", *flags(run_folder, tmp_path / "out", *more)]) == 0
    sae = load(tmp_path / "out" / HOOK)
    assert (sae.d_in, sae.d_out, sae.apply_b_dec_to_input) == (16, 12, False)
    assert sae.metadata["hook_name_out"] == "blocks.1.hook_mlp_out"


def test_rows_that_are_not_finite_are_left_out_and_counted(tmp_path):
    run = write_run(tmp_path / "run", bad=7)
    assert main(["train", *flags(run, tmp_path / "out")]) == 0
    metadata = load(tmp_path / "out" / HOOK).metadata
    assert metadata["rows_left_out"]["not_finite"] >= 7
    assert metadata["rows_left_out"]["not_finite"] % 7 == 0  # in every epoch


@pytest.mark.parametrize("architecture", ["batch_topk", "jumprelu"])
def test_a_stopped_training_goes_on_to_the_same_bytes(
    architecture, run_folder, tmp_path, monkeypatch
):
    common = ["--architecture", architecture, "--max_norm_multiple", "1.2", "--log_steps", "7"]
    assert main(["train", *flags(run_folder, tmp_path / "whole", *common)]) == 0
    real = Training.advance
    for stop_after in (4, 11, 26):  # steps; in the first, a second and a third epoch

        def advance(self, stop_after=stop_after):
            real(self)
            if self.step == stop_after:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Training, "advance", advance)
        words = flags(run_folder, tmp_path / "out", *common, "--resume", "True")
        assert main(["train", *words]) == 143
    monkeypatch.setattr(Training, "advance", real)
    words = flags(run_folder, tmp_path / "out", *common, "--resume", "True")
    assert main(["train", *words]) == 0
    for name in ("sae_weights.safetensors", "sparsity.safetensors", "cfg.json"):
        one, other = (tmp_path / folder / HOOK / name for folder in ("whole", "out"))
        assert one.read_bytes() == other.read_bytes(), name
    without_speed = [
        [{k: v for k, v in line.items() if k != "rows_per_second"} for line in lines(folder)]
        for folder in (tmp_path / "whole", tmp_path / "out")
    ]
    assert without_speed[0] == without_speed[1]


def test_only_the_newest_checkpoints_are_kept(run_folder, tmp_path):
    words = flags(run_folder, tmp_path / "out", "--checkpoint_seconds", "0")
    assert main(["train", *words, "--keep_checkpoints", "3"]) == 0
    names = sorted(path.name for path in (tmp_path / "out/checkpoints").iterdir())
    assert [name[:15] for name in names] == [
        f"step_{step:010d}" for step in (28, 29, 30) for _ in range(2)
    ]


def test_refusals(run_folder, tmp_path, capsys):
    out = tmp_path / "out"

    def refused(*words: str, run: Path = run_folder) -> str:
        assert main(["train", *flags(run, out, *words)]) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1, error
        return error

    assert "nowhere" in refused(run=tmp_path / "nowhere")
    assert "600 rows, less than one batch of --batch_size 601" in refused(
        "--batch_size", "601", "--train_rows", "601"
    )
    assert "layer_7" in refused("--hook_points", "layer_7")
    assert "--k 49 is more than --d_sae 3x, which is 48 latents" in refused("--k", "49")
    assert "--train_rows 49.0 is less than one batch" in refused("--train_rows", "49")
    assert "--d_sae must be" in refused("--d_sae", "many")
    assert "--architecture must be one of" in refused("--architecture", "mlp")
    assert "--target_l0" in refused("--architecture", "jumprelu", "--sparsity_loss", "quadratic")
    assert "--matryoshka_widths must rise" in refused(
        "--architecture", "matryoshka_batch_topk", "--matryoshka_widths", "8", "4"
    )
    assert "--decoder_norm unit needs" in refused("--decoder_norm", "unit")
    assert "special" in refused("--exclude_special")
    assert not out.exists() or not (out / "training.json").exists()
    for text, told in (
        ("saes: 3", "must be a list"),
        ("saes: []", "is empty"),
        ("saes: [{q: 1}]", "unknown settings: q"),
        ("saes: [{k: 2}, {k: 2}]", "name of another"),
        ("saes: [{name: ../up}]", "cannot be the name"),
        ("saes: [7]", "must hold settings"),
        ("saes: [{k: 3}, {k: many}]", "saes[1]: --k must be a whole number"),
    ):
        config = tmp_path / "sweep.yaml"
        config.write_text(text)
        assert told in refused("--config", str(config))
    assert main(["train", *flags(run_folder, out)]) == 0
    assert "go on with it by --resume True" in refused()
    told = refused("--resume", "True", "--k", "3", "--shuffle_seed", "4")
    assert f"autoencoders.{HOOK}.k 4 there, 3 here" in told
    assert "data.shuffle_seed 0 there, 4 here" in told
    assert main(["train", *flags(run_folder, out, "--resume", "True")]) == 0  # it is finished


def test_two_trainings_in_one_folder(run_folder, tmp_path, capsys):
    settings = TrainSettings(
        activations_dir=str(run_folder), output_dir=str(tmp_path / "out"), batch_size=50
    )
    with contextlib.ExitStack() as stack:
        Training(
            TrainSettings(
                activations_dir=str(run_folder),
                output_dir=settings.output_dir,
                hook_points=[HOOK],
                batch_size=50,
            ),
            entries(settings.autoencoder(), None),
            stack,
        )
        assert main(["train", *flags(run_folder, tmp_path / "out")]) == 2
        assert "another process is writing" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(run_folder, tmp_path, caplog):
    words = flags(run_folder, tmp_path / "out", "--checkpoint_seconds", "0")
    assert main(["train", *words]) == 0
    before = weights(tmp_path / "out" / HOOK)
    _, newer = sorted((tmp_path / "out/checkpoints").glob("*.tar"))
    data = bytearray(newer.read_bytes())
    data[len(data) // 2] ^= 1
    newer.write_bytes(data)
    (tmp_path / "out" / HOOK / "sae_weights.safetensors").unlink()
    assert main(["train", *words, "--resume", "True"]) == 0
    assert f"{newer}: is damaged" in caplog.text
    assert weights(tmp_path / "out" / HOOK) == before


def tar_with(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size, entry.type, entry.linkname = len(content), kind, "/etc/passwd"
        archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


FOREIGN = {
    "nothing": b"",
    "garbage": b"\x00\xff" * 700,
    "text": b"no archive",
    "empty archive": tar_with("x", b""),
    "out of the folder": tar_with("../../escaped", b"x"),
    "absolute": tar_with("/tmp/escaped_by_a_checkpoint", b"x"),
    "a link": tar_with("progress.json", b"", tarfile.SYMTYPE),
    "a device": tar_with("progress.json", b"", tarfile.CHRTYPE),
    "progress is a number": tar_with("progress.json", b"7"),
    "counters are text": tar_with(
        "progress.json", b'{"counters": ["a", 1, 2], "metrics": [], "positions": []}'
    ),
    "no state": tar_with(
        "progress.json", b'{"counters": [1, 50, 50], "metrics": [], "positions": []}'
    ),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_checkpoints_of_others_are_refused_and_write_nowhere(content, run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["train", *flags(run_folder, out)]) == 0
    (path,) = (out / "checkpoints").glob("*.tar")
    path.write_bytes(content)
    record = {"bytes": len(content), "crc32c": crc32c(content), "step": 30}
    path.with_suffix(".json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["train", *flags(run_folder, out, "--resume", "True")]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "no checkpoint can be read" in line
    assert not (tmp_path / "escaped").exists()
    assert not Path("/tmp/escaped_by_a_checkpoint").exists()


def test_damaged_records_of_a_training_are_named(run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["train", *flags(run_folder, out)]) == 0
    (record,) = (out / "checkpoints").glob("*.json")
    for text in ("", "[]", '{"bytes": "7"}', "{" * 1000):
        record.write_text(text)
        assert main(["train", *flags(run_folder, out, "--resume", "True")]) == 2
        assert "no checkpoint can be read" in capsys.readouterr().err
    (out / "training.json").write_text("{")
    assert main(["train", *flags(run_folder, out, "--resume", "True")]) == 2
    assert "training.json is damaged" in capsys.readouterr().err


def test_a_full_disk_at_a_checkpoint_ends_with_74_and_goes_on(
    run_folder, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    assert main(["train", *flags(run_folder, tmp_path / "whole")]) == 0
    real = checkpoints.patiently
    monkeypatch.setattr(checkpoints, "patiently", functools.partial(real, stall_timeout=0.2))
    publish = checkpoints.Checkpoints._publish

    def full(self, step, packed):
        if step > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        publish(self, step, packed)

    monkeypatch.setattr(checkpoints.Checkpoints, "_publish", full)
    words = flags(run_folder, out, "--checkpoint_seconds", "0")
    assert main(["train", *words]) == 74
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "--resume True" in error
    monkeypatch.setattr(checkpoints.Checkpoints, "_publish", publish)
    assert main(["train", *words, "--resume", "True"]) == 0
    assert weights(out / HOOK) == weights(tmp_path / "whole" / HOOK)


@pytest.mark.parametrize("bad", ["damaged", "missing"])
def test_a_bad_file_of_the_run_is_named(bad, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    path = run / f"{HOOK}_batch_000003.safetensors"
    if bad == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(data)
    assert main(["train", *flags(run, tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert path.name in error


def test_rows_that_are_all_bad_and_places_that_cannot_be_written(run_folder, tmp_path, capsys):
    run = write_run(tmp_path / "run", bad=600)
    for more in ([], ["--normalize", "none"]):
        assert main(["train", *flags(run, tmp_path / "out", *more)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "finite" in error or "readable rows" in error
    (tmp_path / "file").write_text("")
    assert main(["train", *flags(run_folder, tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
