"""`python -m sae score`: figures, choice and test, categories, background, files, refusals."""

import errno
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from extraction.storage import open_storage
from extraction.storage.local import LocalStorage
from sae import save
from sae.__main__ import main
from sae.scores.labels import in_test_half
from tests.fake_gcs.fixture import fake_gcs
from tests.sae.scores.labelled_run import (
    D_SAE,
    HOOK,
    OTHER_HOOK,
    TYPES,
    autoencoder,
    samples,
    write_run,
)

__all__ = ["fake_gcs"]

ROWS = 5000
FIELD = ("--label_field", "known", "--first", "true", "--second", "false")


@pytest.fixture(scope="module")
def data():
    """Output lines, rows and latents of 5,000 samples."""
    lines, rows = samples(ROWS)
    return lines, rows, np.asarray(autoencoder().encode(rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data) -> Path:
    """An autoencoder `sae`, its run in `one` file and in `many` of 333 rows, and `background`."""
    folder = tmp_path_factory.mktemp("score")
    lines, rows, _ = data
    save(autoencoder(), folder / "sae")
    write_run(folder / "one", lines, {HOOK: rows}, rows_per_file=ROWS)
    write_run(folder / "many", lines, {HOOK: rows}, rows_per_file=333, file_format="pickle")
    background_lines, background = samples(700, seed=5)
    write_run(folder / "background", background_lines, {HOOK: 0.7 * background})
    return folder


def scored(folder: Path, *flags: str, run: str = "one", saes=("sae",), status: int = 0):
    """The content of `scores.json`."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = [*(str(folder / name) for name in saes), "--activations_dir", str(folder / run)]
    assert main(["score", *words, "--output_dir", str(out), *flags]) == status
    return json.loads((out / "scores.json").read_text()) if status == 0 else None


def masks(lines) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`known`, number of the type, and whether in the test half, of each sample."""
    return (
        np.array([line["known"] for line in lines]),
        np.array([TYPES.index(line["type"]) for line in lines]),
        np.array([in_test_half(line["task_id"], 0, 0.5) for line in lines]),
    )


@pytest.mark.parametrize("run", ["one", "many"])
def test_figures_of_chosen_latents_are_scipys(folder, data, run):
    lines, _, latents = data
    found = scored(folder, *FIELD, "--top", "7", run=run)
    known, _, test = masks(lines)
    (one,) = found["autoencoders"]
    assert found["groups"] == ["true", "false"]
    assert one["rows"]["test"] == {"all": [int((known & test).sum()), int((~known & test).sum())]}
    active = latents > 0
    for group, members in (("true", known), ("false", ~known)):
        difference = active[members & ~test].mean(0) - active[~members & ~test].mean(0)
        wanted = np.argsort(-difference, kind="stable")[:7]
        wanted = wanted[difference[wanted] > 0]
        assert [latent["latent"] for latent in one["latents"][group]] == wanted.tolist()
        p_of_test = []
        for latent in one["latents"][group]:
            number = latent["latent"]
            for half, there in (("selection", ~test), ("test", test)):
                a = latents[members & there, number].astype(np.float64)
                b = latents[~members & there, number].astype(np.float64)
                welch = stats.ttest_ind(a, b, equal_var=False)
                auroc = stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
                figures = latent[half]
                assert figures["score"] == pytest.approx((a > 0).mean() - (b > 0).mean())
                assert figures["mean_difference"] == pytest.approx(a.mean() - b.mean())
                assert figures["welch_t"] == pytest.approx(welch.statistic, rel=1e-5)
                assert figures["p"] == pytest.approx(welch.pvalue, rel=1e-4)
                assert figures["auroc"] == pytest.approx(auroc, abs=1e-9)
                assert figures["auroc_error"] == 0
            p_of_test.append(latent["test"]["p"])
        q = stats.false_discovery_control(p_of_test)
        assert [latent["test"]["q"] for latent in one["latents"][group]] == pytest.approx(q)


@pytest.mark.parametrize("metric", ["relative_difference", "mean_difference", "welch_t", "auroc"])
def test_the_least_of_the_categories_is_the_score(folder, data, metric):
    lines, _, latents = data
    flags = [*FIELD, "--category_field", "type", "--test_fraction", "0", "--metric", metric]
    found = scored(folder, *flags)
    known, kind, _ = masks(lines)
    assert found["categories"] == list(TYPES)
    for group, members in (("true", known), ("false", ~known)):
        least = np.full(D_SAE, np.inf)
        for number in range(len(TYPES)):
            a = latents[members & (kind == number)].astype(np.float64)
            b = latents[~members & (kind == number)].astype(np.float64)
            frequencies = (a > 0).mean(0), (b > 0).mean(0)
            values = {
                "relative_difference": (frequencies[0] - frequencies[1]) / (frequencies[1] + 1e-6),
                "mean_difference": a.mean(0) - b.mean(0),
                "welch_t": stats.ttest_ind(a, b, equal_var=False).statistic,
                "auroc": stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)),
            }
            least = np.minimum(least, values[metric])
        (one,) = found["autoencoders"]
        wanted = np.argsort(-least, kind="stable")[:20]
        wanted = wanted[least[wanted] > (0.5 if metric == "auroc" else 0)]
        assert len(wanted) > 3
        assert [latent["latent"] for latent in one["latents"][group]] == wanted.tolist()
        scores = [latent["selection"]["score"] for latent in one["latents"][group]]
        assert scores == pytest.approx(least[wanted], rel=1e-5)
        assert "test" not in one["latents"][group][0]
        for latent in one["latents"][group]:
            assert min(latent["selection"]["score_by_category"].values()) == pytest.approx(
                latent["selection"]["score"]
            )


def test_latents_of_the_background_are_left_out(folder, data):
    flags = [*FIELD, "--background_dir", str(folder / "background")]
    limit = 0.1
    found = scored(folder, *flags, "--background_frequency", str(limit))
    rows = 0.7 * samples(700, seed=5)[1]
    frequency = (np.asarray(autoencoder().encode(rows)) > 0).mean(0)
    without = scored(folder, *FIELD, "--top", "48")
    for group in ("true", "false"):
        (one,), (all_of,) = found["autoencoders"], without["autoencoders"]
        every = [latent["latent"] for latent in all_of["latents"][group]]
        wanted = [latent for latent in every if frequency[latent] <= limit][:20]
        assert 0 < len(wanted) < len(every)
        assert [latent["latent"] for latent in one["latents"][group]] == wanted
        told = [latent["background_frequency"] for latent in one["latents"][group]]
        assert told == pytest.approx(frequency[wanted])


def test_the_file_of_all_latents_of_a_layer(folder, data):
    lines, _, latents = data
    scored(folder, *FIELD, "--category_field", "type")
    known, kind, test = masks(lines)
    assert {path.name for path in (folder / "out/sae").iterdir()} == {
        "city_L_1.json",
        "movie_L_1.json",
    }
    found = json.loads((folder / "out/sae/movie_L_1.json").read_text())
    there = (kind == TYPES.index("movie")) & ~test
    freq_true = (latents[known & there] > 0).mean(0)
    freq_false = (latents[~known & there] > 0).mean(0)
    assert list(found) == ["true", "false"]
    for group, sign, members in (("true", 1, known), ("false", -1, ~known)):
        entries = list(found[group].values())
        assert list(found[group]) == [str(place) for place in range(len(entries))]
        assert {entry["latent_idx"] for entry in entries} == set(
            np.flatnonzero((freq_true > 0) | (freq_false > 0)).tolist()
        )
        scores = [entry["score"] for entry in entries]
        assert scores == sorted(scores, reverse=True)
        for entry in entries:
            number = entry["latent_idx"]
            assert entry["layer"] == 1
            assert entry["score"] == pytest.approx(sign * (freq_true - freq_false)[number])
            assert entry["freq_acts_true"] == pytest.approx(freq_true[number])
            assert entry["freq_acts_false"] == pytest.approx(freq_false[number])
            mean = latents[members & there, number].astype(np.float64).mean()
            assert entry["mean_features_acts"] == pytest.approx(mean)


def test_two_runs_are_two_groups(folder, data, tmp_path):
    lines, rows, _ = data
    known = masks(lines)[0]
    for name, members in (("known", known), ("unknown", ~known)):
        kept = [line for line, member in zip(lines, members, strict=True) if member]
        write_run(tmp_path / name, kept, {HOOK: rows[members]})
    shutil.copytree(folder / "sae", tmp_path / "sae")
    found = scored(tmp_path, "--second_activations_dir", str(tmp_path / "unknown"), run="known")
    wanted = scored(folder, *FIELD)
    assert found["groups"] == ["first", "second"]
    (one,), (other,) = found["autoencoders"], wanted["autoencoders"]
    assert one["rows"] == other["rows"]
    for group, same in (("first", "true"), ("second", "false")):
        for latent, expected in zip(one["latents"][group], other["latents"][same], strict=True):
            assert latent["latent"] == expected["latent"]
            for half in ("selection", "test"):
                for name in ("score", "welch_t", "p", "q", "auroc", "mean_first"):
                    assert latent[half][name] == pytest.approx(expected[half][name], rel=1e-6)


def test_labels_from_a_file(folder, data, tmp_path):
    lines, *_ = data
    by_position = [
        {"task_id": line["task_id"], "sample_idx": 0, "position": 3, "it": str(line["known"])}
        for line in lines[:2000]
    ]
    by_task = [{"task_id": line["task_id"], "it": line["known"] * 2} for line in lines[2000:4000]]
    nothing = [{"task_id": line["task_id"], "it": None} for line in lines[4000:4100]]
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in by_position + by_task + nothing))
    flags = ["--labels_file", str(file), "--label_field", "it", "--first", "True", "2"]
    found = scored(folder, *flags, "--test_fraction", "0")
    known = masks(lines)[0][:4000]
    (one,) = found["autoencoders"]
    assert one["rows"]["selection"]["all"] == [int(known.sum()), int((~known).sum())]
    assert found["groups"] == ["True+2", "not True 2"]
    assert found["samples_without_label"] == {str(folder / "one"): 100}
    assert found["rows_left_out"][str(folder / "one")]["in no group"] == 1000


def test_several_autoencoders_of_two_hook_points(folder, data, tmp_path):
    lines, rows, _ = data
    save(autoencoder(), tmp_path / "a")
    save(autoencoder(seed=1), tmp_path / "b")
    save(autoencoder(seed=2, hook_point=OTHER_HOOK), tmp_path / "c")
    other = np.roll(rows, 1, axis=1)
    write_run(tmp_path / "run", lines, {HOOK: rows, OTHER_HOOK: other}, rows_per_file=700)
    together = scored(tmp_path, *FIELD, run="run", saes=("a", "b", "c"))
    assert [one["hook_point"] for one in together["autoencoders"]] == [HOOK, HOOK, OTHER_HOOK]
    for name, of_all in zip("abc", together["autoencoders"], strict=True):
        (alone,) = scored(tmp_path, *FIELD, run="run", saes=(name,))["autoencoders"]
        assert of_all == alone
    assert (tmp_path / "out/c/all_L_2.json").exists()


def test_filters_leave_rows_out(folder, data):
    found = scored(folder, *FIELD, "--max_norm_multiple", "1.3")
    rows = data[1]
    norms = np.linalg.norm(rows, axis=1)
    left = found["rows_left_out"][str(folder / "one")]["max_norm_multiple"]
    assert left == pytest.approx((norms > 1.3 * np.median(norms)).sum(), rel=0.2)
    (one,) = found["autoencoders"]
    assert sum(sum(one["rows"][half]["all"]) for half in one["rows"]) == ROWS - left


def test_rows_that_are_not_finite_are_counted(data, tmp_path):
    lines, rows, _ = data
    rows = rows.copy()
    rows[[1, 4000], 2] = np.nan
    save(autoencoder(), tmp_path / "sae")
    write_run(tmp_path / "run", lines, {HOOK: rows})
    (one,) = scored(tmp_path, *FIELD, run="run")["autoencoders"]
    assert one["rows_not_finite"] == 2
    assert sum(sum(one["rows"][half]["all"]) for half in one["rows"]) == ROWS - 2


def test_the_table(folder, capsys):
    (one,) = scored(folder, *FIELD, "--top", "3")["autoencoders"]
    printed = capsys.readouterr().out.splitlines()
    first = one["latents"]["true"][0]
    line = printed[2].split()
    assert line[0] == str(first["latent"])
    assert line[1:3] == [f"{first[half]['score']:#.4g}" for half in ("selection", "test")]
    assert line[-1] == f"{first['test']['q']:.3e}" or float(line[-1]) == pytest.approx(
        first["test"]["q"], rel=1e-3
    )
    assert printed[-1] == str(folder / "out/scores.json")


def test_runs_and_results_in_a_bucket(folder, data, fake_gcs, monkeypatch):
    for name, value in fake_gcs.environment.items():
        monkeypatch.setenv(name, value)
    here = LocalStorage(folder / "one")
    cloud = open_storage("gs://bucket/one")
    for place in ("", "_run/", "_run/commits/", "_run/outputs/"):
        for name in here.names(place):
            cloud.replace(name, here.get(name))
    words = [str(folder / "sae"), "--activations_dir", "gs://bucket/one", *FIELD]
    assert main(["score", *words, "--output_dir", "gs://bucket/scores"]) == 0
    found = json.loads(open_storage("gs://bucket/scores").get("scores.json"))
    wanted = scored(folder, *FIELD)
    assert found["autoencoders"][0]["latents"] == wanted["autoencoders"][0]["latents"]


def test_a_full_disk_is_told(folder, capsys, monkeypatch):
    def replace(self, name, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalStorage, "replace", replace)
    scored(folder, *FIELD, status=74)
    assert told(capsys).endswith("out cannot be written: No space left on device")


def told(capsys) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label_field", "know", "--first", "true"], "--label_field know: none of the 5,000"),
        (["--label_field", "known", "--first", "yes"], "--first yes: no line"),
        (["--label_field", "known", "--first", "true", "--second", "no"], "--second no: no line"),
        ([*FIELD, "--category_field", "kind"], "--category_field kind: none of"),
        ([*FIELD, "--category_field", "task_id"], "5,000 values; at most 100"),
        ([*FIELD, "--labels_file", "none.jsonl"], "--labels_file none.jsonl: there is no such"),
        (["--label_field", "known"], "--label_field and --first go together"),
        (["--first", "true"], "need one of --label_field and --second_activations_dir"),
        (["--label_field", "known", "--first", "a", "--second", "a"], "a is in --first and in"),
        ([*FIELD, "--test_fraction", "1e-9"], "none of them for the test"),
        ([*FIELD, "--hook_point", "layer_9"], "there is no layer_9"),
        ([*FIELD, "--metric", "accuracy"], "invalid choice: 'accuracy'"),
        ([*FIELD, "--top", "0"], "--top must be at least 1"),
    ],
)
def test_what_cannot_be_scored_is_told_in_one_line(folder, capsys, flags, message):
    words = ["score", str(folder / "sae"), "--activations_dir", str(folder / "one"), *flags]
    with pytest.raises(SystemExit) as ended:  # of the parser, or of the command
        sys.exit(main(words))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_one_label_alone_leaves_the_other_group_empty(folder, capsys):
    both = ["--label_field", "known", "--first", "true", "false"]
    scored(folder, *both, status=2)
    assert "group not true false has no rows" in told(capsys)


def test_a_category_that_one_group_lacks_is_refused(data, tmp_path, capsys):
    lines, rows, _ = data
    lines = [line | ({"known": True} if line["type"] == "city" else {}) for line in lines]
    save(autoencoder(), tmp_path / "sae")
    write_run(tmp_path / "run", lines, {HOOK: rows})
    scored(tmp_path, *FIELD, "--category_field", "type", run="run", status=2)
    assert "group false has no rows of category city" in told(capsys)


def test_an_autoencoder_of_another_width_or_model_is_refused(folder, data, tmp_path, capsys):
    lines, rows, _ = data
    save(autoencoder(d_in=7), tmp_path / "narrow")
    save(autoencoder(weights_sha256="a" * 64), tmp_path / "sae")
    write_run(tmp_path / "run", lines, {HOOK: rows}, fingerprint={"weights_sha256": "b" * 64})
    write_run(tmp_path / "same", lines, {HOOK: rows}, fingerprint={"weights_sha256": "a" * 64})
    scored(tmp_path, *FIELD, run="run", saes=("narrow",), status=2)
    assert "narrow is for rows of width 7, and layer_1 of 'm' has rows of width 12" in told(capsys)
    scored(tmp_path, *FIELD, run="run", status=2)
    assert "weights aaaaaaaaaaaa" in told(capsys)
    background = ["--background_dir", str(tmp_path / "run")]
    scored(tmp_path, *FIELD, *background, run="same", status=2)
    assert "weights bbbbbbbbbbbb" in told(capsys)
    assert scored(tmp_path, *FIELD, run="same")


def test_a_run_without_output_lines_needs_labels(folder, tmp_path, capsys):
    from tests.sae.small_run import write_run as write_without_lines

    write_without_lines(tmp_path / "run")
    save(autoencoder(d_in=16), tmp_path / "sae")
    scored(tmp_path, *FIELD, run="run", status=2)
    assert "run has no lines with labels; give --labels_file" in told(capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"task_id": 3}', "line 1 names no rows"),
        ('\n{"task_id": "a", "position": 3}', "line 2 names no rows"),
        ('{"task_id": "a", "known": 1}\n{"task_id": "a", "known": true}', "two different labels"),
    ],
)
def test_a_bad_file_of_labels_is_refused(folder, tmp_path, capsys, text, message):
    file = tmp_path / "labels.jsonl"
    file.write_text(text)
    flags = ["--label_field", "known", "--first", "true", "--labels_file", str(file)]
    scored(folder, *flags, status=2)
    assert message in told(capsys)
