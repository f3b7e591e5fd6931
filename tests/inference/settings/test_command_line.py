"""Flags as founding document 004 writes them, and what ends with which exit status."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from extraction.errors import StoreError
from extraction.interruption import Interrupted
from inference.errors import InputError, SelfCheckError
from inference.settings.command_line import run_command
from inference.settings.commands import ExtractionSettings
from qwen_hooks.errors import ModelError

NEEDED = ["--model_path", "Qwen/Qwen2.5-0.5B", "--tasks_file", "arc_tasks.json"]
COMMAND = Path(__file__).parents[3] / "inference" / "simple_extraction_inference.py"


def parse(*flags):
    """The settings that a command's work is given; its status is 0."""
    given = []
    assert run_command(given.append, ExtractionSettings, "", [*NEEDED, *flags]) == 0
    (settings,) = given
    return settings


def write_config(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return ["--config", str(path)]


@pytest.mark.parametrize(
    "text",
    [
        "model_path: m\ntasks_file: t\nlayers_to_extract: [3]\ntemperature: 1e-1\n",
        "name: a\nextraction:\n  model_path: m\n  tasks_file: t\n  layers_to_extract: [3]\n"
        "  temperature: 0.1\n",
    ],
)
def test_a_settings_file_has_the_names_of_the_flags(tmp_path, text):
    given = []
    flags = write_config(tmp_path, text)
    assert run_command(given.append, ExtractionSettings, "", flags) == 0
    assert run_command(given.append, ExtractionSettings, "", [*flags, "--temperature", "2"]) == 0
    expected = ExtractionSettings(
        model_path="m", tasks_file="t", layers_to_extract=[3], temperature=0.1
    )
    assert given == [expected, dataclasses.replace(expected, temperature=2.0)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_pat: m", "there is no field 'model_pat'; did you mean model_path?"),
        ("model_path: [m]", "model_path must be text, not ['m']"),
        ("tasks_file: t", "--model_path"),
        ("[", "line 1"),
        ("- a", "fields are needed here"),
        ("model_path: m\ntasks_file: t\ntop_p: 2", "--top_p must be above 0"),
        ("x: " + "y" * 200_000, "has more than 128 KiB"),
        ("batch_size: 8", "there is no field 'batch_size'"),
    ],
)
def test_a_settings_file_that_is_wrong(tmp_path, capsys, text, words):
    assert words in refusal(capsys, *write_config(tmp_path, text))


def test_what_a_settings_file_holds_for_other_commands_is_named(tmp_path, caplog):
    given = []
    flags = write_config(tmp_path, "model_path: m\ntasks_file: t\nbatch_size: 8\n")
    with caplog.at_level("INFO"):
        status = run_command(given.append, ExtractionSettings, "", flags, ignored=["batch_size"])
    assert status == 0
    assert given == [ExtractionSettings(model_path="m", tasks_file="t")]
    assert "not for this command: batch_size" in caplog.text


@pytest.mark.parametrize(
    ("words", "value"),
    [("", True), ("True", True), ("yes", True), ("1", True), ("False", False), ("no", False)],
)
def test_true_and_false(words, value):
    assert parse("--resume", *words.split()).resume is value


def must_not_run(settings):
    pytest.fail(f"ran with {settings}")


def refusal(capsys, *flags):
    """The one line on stderr of a command line that ends with status 2 before the work."""
    try:
        status = run_command(must_not_run, ExtractionSettings, "", flags)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def test_flags_of_the_founding_document():
    flags = (
        "--output_dir ./o --activations_dir ./a --layers_to_extract 6 12 18 23"
        " --save_every_n_samples 256 --max_new_tokens 16 --dtype bfloat16 --temperature 0.7"
        " --top_p 0.9 --random_seed 5 --predictions_per_task 2 --grid_encoder json"
        " --prompt_style plain --revision main"
    )
    assert parse(*flags.split()) == ExtractionSettings(
        model_path="Qwen/Qwen2.5-0.5B",
        tasks_file="arc_tasks.json",
        output_dir="./o",
        activations_dir="./a",
        layers_to_extract=[6, 12, 18, 23],
        save_every_n_samples=256,
        max_new_tokens=16,
        dtype="bfloat16",
        temperature=0.7,
        top_p=0.9,
        random_seed=5,
        predictions_per_task=2,
        grid_encoder="json",
        prompt_style="plain",
        revision="main",
    )


def test_what_is_not_told_has_its_default():
    assert parse() == ExtractionSettings(model_path=NEEDED[1], tasks_file=NEEDED[3])


def test_own_arguments_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", *NEEDED, "--layers_to_extract", "3"])
    given = []
    assert run_command(given.append, ExtractionSettings, "") == 0
    assert given[0].layers_to_extract == [3]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--no_such_flag", "3"], "--no_such_flag"),
        (["--temp", "1"], "--temp"),  # no abbreviations: they break when flags are added
        (["stray"], "stray"),
        (["--layers_to_extract", "six"], "'six'"),
        (["--layers_to_extract", "6", "1.5"], "'1.5'"),
        (["--layers_to_extract"], "--layers_to_extract"),
        (["--max_new_tokens", "many"], "'many'"),
        (["--max_new_tokens", "-3"], "--max_new_tokens must be at least 0, not -3"),
        (["--top_p", "nan"], "--top_p"),
        (["--dtype", "float16"], "'float16'"),
        (["--prompt_style", "rap"], "'rap'"),
        (["--grid_encoder", "braille"], "braille"),
        (["--resume", "perhaps"], "'perhaps' is neither True nor False"),
    ],
)
def test_flags_that_are_refused(capsys, flags, word):
    assert word in refusal(capsys, *NEEDED, *flags)


@pytest.mark.parametrize("missing", ["--model_path", "--tasks_file"])
def test_flags_that_are_needed(capsys, missing):
    at = NEEDED.index(missing)
    assert missing in refusal(capsys, *NEEDED[:at], *NEEDED[at + 2 :])


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as exit:
        run_command(must_not_run, ExtractionSettings, "What it is for.", ["--help"])
    assert exit.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "What it is for." in out
    flags = [f"--{field.name}" for field in dataclasses.fields(ExtractionSettings)]
    assert [flag for flag in flags if f"  {flag} " not in out] == []


@pytest.mark.parametrize("kind", [InputError, ModelError, StoreError])
def test_refusals_of_the_work(capsys, kind):
    def work(settings):
        raise kind("no such thing")

    assert run_command(work, ExtractionSettings, "", NEEDED) == 2
    assert capsys.readouterr() == ("", "error: no such thing\n")


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_other_exceptions_are_no_refusals(kind):
    def work(settings):
        raise kind("a defect")

    with pytest.raises(kind, match="a defect"):
        run_command(work, ExtractionSettings, "", NEEDED)


@pytest.mark.parametrize(
    "command", [["-m", "inference.simple_extraction_inference"], [str(COMMAND)]]
)
def test_processes(command, tmp_path):
    flags = [*NEEDED, "--layers_to_extract", "six"]
    ended = subprocess.run(
        [sys.executable, *command, *flags],
        cwd=COMMAND.parents[1] if "-m" in command else tmp_path,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert "'six'" in ended.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (Interrupted(signal.SIGINT, "stopped; 2 of 3"), 130),
        (Interrupted(signal.SIGTERM), 143),
        (SelfCheckError("rows differ"), 5),
    ],
)
def test_what_ends_a_run_is_told_in_one_line(error, status, capsys):
    def work(settings):
        raise error

    assert run_command(work, ExtractionSettings, "", NEEDED) == status
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert str(error) in told
