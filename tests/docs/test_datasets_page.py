"""docs/datasets.md: its command is accepted, its table is the code's, its promises are settings."""

import dataclasses
import re
import shlex
from pathlib import Path

from inference.inputs.datasets import READERS
from inference.settings.command_line import make_parser, parse_settings
from inference.settings.commands import DistributedSettings

PAGE = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")


def test_the_command_is_accepted():
    (command,) = re.findall(r"(?:^    .*\n)+", PAGE, re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "inference.distributed_inference_with_activations"]
    parser = make_parser(DistributedSettings, "")
    settings = parse_settings(parser, DistributedSettings, words[3:])
    assert settings.pack_length == settings.context_length == 512


def test_every_kind_of_file_is_told():
    assert all(f"{extension}`" in PAGE for extension in READERS)


def test_every_flag_exists():
    names = {field.name for field in dataclasses.fields(DistributedSettings)}
    assert set(re.findall(r"--(\w+)", PAGE)) <= names
