"""`python -m sae latents`: figures and rows against a search of all rows, parts, bad input."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from extraction import ActivationWriter
from extraction.storage import open_storage
from extraction.storage.local import LocalStorage
from sae import save
from sae.__main__ import main
from sae.latents import run as latents_run
from sae.scores import of_rows
from tests.fake_gcs.fixture import fake_gcs
from tests.sae.autoencoders import KINDS, random_autoencoder
from tests.sae.latents.described_run import HOOK, DescribedRun, texts

__all__ = ["fake_gcs"]

TOP, RANGES, PER_RANGE, CONTEXT = 4, 3, 2, 5
FEW = ("--top", TOP, "--ranges", RANGES, "--rows_per_range", PER_RANGE, "--context", CONTEXT)
AT_HOOK = ("--hook_point", HOOK)


@pytest.fixture(scope="module")
def data() -> DescribedRun:
    return DescribedRun()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data) -> Path:
    """Autoencoders by kind, and the run as `run`."""
    folder = tmp_path_factory.mktemp("latents")
    for kind in KINDS:
        save(random_autoencoder(kind), folder / kind)
    data.write(folder / "run")
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Rows are encoded 11 at a time, so that blocks end within files."""
    monkeypatch.setattr(of_rows, "LATENT_BYTES", 11 * 4 * 16)


def command(folder: Path, *flags: object, sae="jumprelu", run="run", out="out") -> int:
    words = [folder / sae, "--activations_dir", folder / run, "--output_dir", folder / out]
    return main(["latents", *map(str, [*words, *AT_HOOK, *FEW, *flags])])


def lines(folder: Path, *flags: object, **names) -> list[dict]:
    """The lines of a command."""
    out = folder / names.get("out", "out")
    if not flags or "--resume" not in flags:
        shutil.rmtree(out, ignore_errors=True)
    assert command(folder, *flags, **names) == 0
    return [json.loads(line) for line in (out / "latents.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_figures_and_top_rows_are_those_of_a_search_of_all_rows(folder, data, kind):
    latents = data.latents(random_autoencoder(kind))
    found = lines(folder, sae=kind)
    assert [line["latent"] for line in found] == list(range(16))
    for line, values in zip(found, latents.T, strict=True):
        active = values > 0
        assert line["active_rows"] == active.sum()
        assert line["density"] == pytest.approx(active.mean())
        assert line["mean"] == pytest.approx(values[active].mean() if active.any() else 0, rel=1e-5)
        assert line["max"] == pytest.approx(values.max(), rel=1e-5)
        wanted = [row for row in np.argsort(-values, kind="stable")[:TOP] if active[row]]
        assert [row["row"] for row in line["top"]] == wanted
        told = [row["activation"] for row in line["top"]]
        assert told == pytest.approx(values[wanted], rel=1e-5)


def test_ranges_divide_a_latents_active_rows_by_activation(folder, data):
    values = data.latents(random_autoencoder("jumprelu"))
    found = lines(folder, "--ranges", 10, "--rows_per_range", 100)
    for line in found:
        of = values[:, line["latent"]]
        active = np.flatnonzero(of > 0)  # fewer than the sample holds, so all of them are in it
        parts = np.array_split(active[np.argsort(-of[active], kind="stable")], 10)
        parts = [part for part in parts if len(part)]
        assert [sorted(r["row"] for r in one["rows"]) for one in line["ranges"]] == [
            sorted(part.tolist()) for part in parts
        ]
        for one, part in zip(line["ranges"], parts, strict=True):
            assert one["from"] == pytest.approx(of[part].min(), rel=1e-5)
            assert one["to"] == pytest.approx(of[part].max(), rel=1e-5)


def test_random_rows_are_of_their_range_and_follow_the_seed(folder, data):
    values = data.latents(random_autoencoder("standard"))
    chosen = []
    for seed in (0, 0, 1):
        found = lines(folder, "--random_seed", seed, sae="standard")
        chosen.append([[r["row"] for one in line["ranges"] for r in one["rows"]] for line in found])
        for line in found:
            for one in line["ranges"]:
                assert 1 <= len(one["rows"]) <= PER_RANGE
                for row in one["rows"]:
                    assert one["from"] <= row["activation"] <= one["to"]
                    value = values[row["row"], line["latent"]]
                    assert row["activation"] == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_sample_is_uniform_over_the_active_rows():
    from sae.latents.latent_pass import LatentPass

    taken = np.zeros(100)
    for seed in range(400):
        found = LatentPass(None, 1, top=1, sampled=10, seed=seed)
        found.add(np.arange(100), np.ones((100, 1), np.float32), np.ones(100, bool))
        found.settle()
        taken[found.sample.rows[0]] += 1
    # Binomial(400, 0.1): mean 40, standard deviation 6.
    assert taken.sum() == 4000
    assert np.abs(taken - 40).max() < 5 * 6
    assert taken.std() == pytest.approx(6, rel=0.3)


@pytest.mark.parametrize("keep", [1.0, 0.4])
@pytest.mark.parametrize("outputs", [True, False])
def test_the_tokens_around_a_row(folder, tmp_path, keep, outputs):
    data = DescribedRun(seed=1, keep=keep)
    data.write(tmp_path / "run", outputs=outputs)
    shutil.copytree(folder / "topk", tmp_path / "topk")
    values = data.latents(random_autoencoder("topk"))
    row_at = {
        key: row
        for row, key in enumerate(zip(data.samples.tolist(), data.position.tolist(), strict=True))
    }
    shown = 0
    for line in lines(tmp_path, sae="topk"):
        for row in [*line["top"], *(r for one in line["ranges"] for r in one["rows"])]:
            sample, position = int(data.samples[row["row"]]), int(data.position[row["row"]])
            assert (row["task_id"], row["sample_idx"]) == (data.task_id(sample), sample % 2)
            assert row["position"] == position
            ids = data.token_ids[sample]
            near = range(max(0, position - CONTEXT), min(len(ids), position + CONTEXT // 2 + 1))
            rows = [row_at.get((sample, p)) for p in near]
            if not outputs:
                known = [n for n, one in enumerate(rows) if one is not None]
                near = list(near)[known[0] : known[-1] + 1]
                rows = rows[known[0] : known[-1] + 1]
            assert row["at"] == list(near).index(position)
            wanted = [
                ids[p] if outputs or r is not None else -1 for p, r in zip(near, rows, strict=True)
            ]
            assert row["token_ids"] == wanted
            assert row["tokens"] == [
                None if i < 0 else texts(i).decode("utf-8", "backslashreplace") for i in wanted
            ]
            for value, one in zip(row["activations"], rows, strict=True):
                if one is None:
                    assert value is None
                else:
                    assert value == pytest.approx(values[one, line["latent"]], rel=1e-3, abs=1e-6)
            shown += 1
    assert shown > 50


def test_nearest_latents(folder):
    decoder = random_autoencoder("jumprelu").W_dec.astype(np.float64)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    cosines = decoder @ decoder.T - 9 * np.eye(16)
    for line in lines(folder, "--nearest", 3):
        wanted = np.argsort(-cosines[line["latent"]])[:3]
        assert [one["latent"] for one in line["nearest"]] == wanted.tolist()
        told = [one["cosine"] for one in line["nearest"]]
        assert told == pytest.approx(cosines[line["latent"], wanted], abs=1e-3)


def test_some_latents_alone(folder):
    every = lines(folder)
    assert lines(folder, "--latents", 7, 2) == [every[7], every[2]]


@pytest.mark.parametrize("parts", [2, 9, 40])
def test_parts_give_what_one_process_gives(folder, capsys, parts):
    wanted = lines(folder)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    capsys.readouterr()
    for part in reversed(range(parts)):
        assert command(folder, "--part", f"{part}/{parts}", out="parts") == 0
        assert ("the results follow" in capsys.readouterr().out) == (part > 0)
    found = (folder / "parts/latents.jsonl").read_text().splitlines()
    for line, same in zip(map(json.loads, found), wanted, strict=True):
        assert line.pop("mean") == pytest.approx(same["mean"], rel=1e-12)
        assert line == {name: value for name, value in same.items() if name != "mean"}


@pytest.mark.parametrize("run_files", [{"samples_per_file": 60}, {"file_format": "pickle"}])
def test_files_of_another_size_or_format_give_the_same(folder, data, tmp_path, run_files):
    data.write(tmp_path / "run", **run_files)
    shutil.copytree(folder / "jumprelu", tmp_path / "jumprelu")
    for line, same in zip(lines(tmp_path), lines(folder), strict=True):
        assert line["mean"] == pytest.approx(same["mean"], rel=1e-6)
        for one, other in zip(line["top"], same["top"], strict=True):
            assert (one["row"], one["tokens"]) == (other["row"], other["tokens"])


def test_a_stopped_command_goes_on_where_it_stands(folder, monkeypatch):
    wanted = lines(folder)
    shutil.rmtree(folder / "out")
    seen: list[int] = []
    limit = [0]
    add = latents_run.LatentPass.add

    def adding(self, numbers, latents, finite):
        if len(seen) == limit[0]:
            raise KeyboardInterrupt
        seen.extend([len(numbers)])
        add(self, numbers, latents, finite)

    monkeypatch.setattr(latents_run, "SAVE_SECONDS", -1)
    monkeypatch.setattr(latents_run.LatentPass, "add", adding)
    for blocks in (1, 5, 6, 20):
        limit[0] = blocks
        with pytest.raises(KeyboardInterrupt):
            raise_of(command, folder, "--resume", "True")
    limit[0] = -1
    assert lines(folder, "--resume", "True") == wanted
    rows = sum(line["active_rows"] for line in wanted) / sum(line["density"] for line in wanted)
    assert sum(seen) == round(rows)  # each row was encoded once
    seen.clear()
    assert lines(folder, "--resume", "True", "--nearest", 2) == [
        line | {"nearest": line["nearest"][:2]} for line in wanted
    ]
    assert not seen  # the pass was finished


@pytest.fixture
def heard_signals():
    """A shell's background job ignores SIGINT, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_pass(folder, monkeypatch, heard_signals, number, status):
    wanted = lines(folder)
    shutil.rmtree(folder / "out")
    add, blocks = latents_run.LatentPass.add, []

    def adding(self, numbers, latents, finite):
        blocks.append(len(numbers))
        if len(blocks) == 9:
            os.kill(os.getpid(), number)
        add(self, numbers, latents, finite)

    monkeypatch.setattr(latents_run.LatentPass, "add", adding)
    assert command(folder) == status
    assert len(blocks) == 9
    assert lines(folder, "--resume", "True") == wanted
    rows = sum(line["active_rows"] for line in wanted) / sum(line["density"] for line in wanted)
    assert sum(blocks) == round(rows)


def raise_of(function, *arguments) -> None:
    """Call a command; raise KeyboardInterrupt if it was stopped."""
    if function(*arguments) == 130:
        raise KeyboardInterrupt


def test_a_pass_of_other_settings_or_a_damaged_one_is_refused(folder, capsys):
    lines(folder)
    assert command(folder, "--resume", "True", "--top", 5) == 2
    assert "is of another top; choose another --output_dir" in told(capsys)
    assert command(folder, "--resume", "True", sae="standard") == 2
    assert "is of another sae" in told(capsys)
    (file,) = (folder / "out/pass").iterdir()
    good = file.read_bytes()
    for bad in (b"", good[:100], good[:-8], good.replace(b'"next_row', b'"text_row')):
        file.write_bytes(bad)
        assert command(folder, "--resume", "True") == 2
        assert "is damaged" in told(capsys)


def test_filters_and_rows_that_are_not_finite(folder, data, tmp_path):
    damaged = DescribedRun()
    damaged.rows[[3, 40], 2] = np.nan
    damaged.write(tmp_path / "run")
    shutil.copytree(folder / "jumprelu", tmp_path / "jumprelu")
    values = data.latents(random_autoencoder("jumprelu"))
    kept = data.position >= 2
    kept[[3, 40]] = False
    for line in lines(tmp_path, "--skip_first", 2):
        of = np.where(kept, values[:, line["latent"]], 0)
        assert line["active_rows"] == (of > 0).sum()
        assert line["density"] == pytest.approx((of > 0).sum() / kept.sum())
        wanted = [row for row in np.argsort(-of, kind="stable")[:TOP] if of[row] > 0]
        assert [row["row"] for row in line["top"]] == wanted


def test_a_run_and_results_in_a_bucket(folder, fake_gcs, monkeypatch):
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    here, cloud = LocalStorage(folder / "run"), open_storage("gs://bucket/run")
    for place in ("", "_run/", "_run/commits/", "_run/outputs/"):
        for name in here.names(place):
            cloud.replace(name, here.get(name))
    words = [folder / "jumprelu", "--activations_dir", "gs://bucket/run", *AT_HOOK, *FEW]
    assert main(["latents", *map(str, words), "--output_dir", "gs://bucket/out"]) == 0
    found = open_storage("gs://bucket/out").get("latents.jsonl").splitlines()
    assert list(map(json.loads, found)) == lines(folder)


def test_a_full_disk_is_told(folder, capsys, monkeypatch):
    def replace(self, name, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalStorage, "replace", replace)
    assert command(folder) == 74
    assert told(capsys).endswith("out cannot be written: No space left on device")


def told(capsys) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--latents", "16"], "--latents 16: "),
        (["--latents", "3", "3"], "--latents names a latent twice"),
        (["--latents", "-1"], "--latents must be at least 0"),
        (["--hook_point", "layer_9"], "there is no layer_9"),
        (["--part", "2/2"], "--part 2/2 is no part"),
        (["--top", "0"], "--top must be at least 1"),
        (["--skip_first", "999"], "has no finite rows that the filters leave"),
    ],
)
def test_what_cannot_be_described_is_told_in_one_line(folder, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:  # of the parser, or of the command
        sys.exit(command(folder, *flags))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_another_width_another_model_and_an_empty_run_are_refused(folder, data, tmp_path, capsys):
    data.write(tmp_path / "run", fingerprint={"weights_sha256": "b" * 64})
    save(random_autoencoder("topk", d_in=7), tmp_path / "wide")
    other = random_autoencoder("topk")
    other = dataclasses.replace(other, metadata={"weights_sha256": "a" * 64})
    save(other, tmp_path / "other")
    assert command(tmp_path, sae="wide") == 2
    assert "wide is for rows of width 7, and layer_1 of 'm' has rows of width 6" in told(capsys)
    assert command(tmp_path, sae="other") == 2
    assert "weights aaaaaaaaaaaa" in told(capsys)
    with ActivationWriter(tmp_path / "empty", {HOOK: 6}, model_name="m"):
        pass
    assert command(tmp_path, sae="other", run="empty") == 2
    assert "empty has no rows" in told(capsys)
