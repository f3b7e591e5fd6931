"""Defaults as agreed, and every value out of range refused by the name of its flag."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inference.errors import InputError
from inference.planner.command import PlanFlags
from inference.settings.commands import DistributedSettings

ROOT = Path(__file__).parents[3]


def test_defaults(settings):
    ours = settings()
    assert ours.layers_to_extract is None
    assert (ours.max_new_tokens, ours.save_every_n_samples, ours.dtype) == (1, None, "auto")
    assert (ours.temperature, ours.predictions_per_task) == (0, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", -1),
        ("save_every_n_samples", 0),
        ("predictions_per_task", 0),
        ("random_seed", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", -0.5),
        ("top_p", float("nan")),
        ("grid_encoder", "braille"),
    ],
)
def test_out_of_range(settings, name, value):
    with pytest.raises(InputError, match=f"^{name}.*{value}"):
        settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("save_every_n_samples", 1),
        ("predictions_per_task", 1),
        ("random_seed", 2**31 - 1),
        ("temperature", 0.0),
        ("top_p", 1e-6),
        ("grid_encoder", "json"),
    ],
)
def test_border_of_the_range(settings, name, value):
    assert getattr(settings(**{name: value}), name) == value


NASTY_NUMBERS = (
    "-inf", "-1", "-0.0", "0", "1e-320", "1e-45", "1e-39", "1e39", "1e308", "inf", "nan",
    "2147483647", "2147483648", str(2**63), "1" + "0" * 40,
)  # fmt: skip


def numeric_flags():
    """Names and types of all flags that take a number."""
    for entry in dataclasses.fields(DistributedSettings):
        if entry.type in (int, int | None):
            yield entry.name, int
        elif entry.type is float:
            yield entry.name, float


@pytest.mark.parametrize(("name", "kind"), [*numeric_flags()])
def test_a_numeric_flag_is_refused_by_name_or_fits_the_device(name, kind):
    inputs = {"dataset": "a.jsonl"} if name == "context_length" else {"tasks_file": "tasks.json"}
    refused = 0
    for text in NASTY_NUMBERS:
        try:
            value = kind(text)
        except ValueError:  # as argparse refuses it
            continue
        words = ""
        try:
            DistributedSettings(model_path="m", **{"max_new_tokens": 0} | inputs | {name: value})
        except InputError as error:
            words = str(error)
        refused += words.startswith(f"{name} must be ")
        assert words.startswith(f"{name} must be ") or 0 <= np.float32(value) < np.inf
    assert refused >= 4


@pytest.mark.parametrize("separator", ["-1", "2147483648", "9" * 5000, "1.0", "١" * 11])
def test_a_separator_is_a_token_id(settings, separator):
    with pytest.raises(InputError, match=r"^separator"):
        settings(tasks_file=None, dataset="a.jsonl", separator=separator)


@pytest.mark.parametrize(
    "penalty", ["0", "-1", "nan", "inf", "1e-39", "1e39", "automatic", "", "٣x"]
)
def test_a_repetition_penalty_is_a_number_that_logits_survive(settings, penalty):
    with pytest.raises(InputError, match=r"^repetition_penalty"):
        settings(repetition_penalty=penalty)


@pytest.mark.parametrize("penalty", ["auto", "1.0", "1.05", "0.8", "1000", "0.001"])
def test_repetition_penalties(settings, penalty):
    assert settings(repetition_penalty=penalty).repetition_penalty == penalty


def test_settings_do_not_change(settings):
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings().max_new_tokens = 5


@pytest.mark.parametrize("value", ["", "  "])
@pytest.mark.parametrize(
    "name",
    ["model_path", "tasks_file", "dataset", "activations_dir", "output_dir", "gcs_bucket",
     "revision", "text_field", "id_field", "dataset_split"],
)  # fmt: skip
def test_empty_texts_are_refused(settings, name, value):
    with pytest.raises(InputError, match=f"^{name} must not be empty"):
        settings(**{name: value})


@pytest.mark.parametrize("name", ["positions", "hook_points"])
def test_empty_texts_in_lists_are_refused(settings, name):
    with pytest.raises(InputError, match=f"^{name} must not be empty"):
        settings(**{name: ["all", ""]})


def test_an_empty_cache_folder_means_none():
    ours = DistributedSettings(model_path="m", tasks_file="t", compilation_cache_dir="")
    assert ours.compilation_cache_dir == ""


WRONG_TYPES = [
    ("batch_size", 2.5, "must be a whole number, not 2.5"),
    ("batch_size", True, "must be a whole number, not True"),
    ("batch_size", "8", "must be a whole number, not '8'"),
    ("temperature", "hot", "must be a number, not 'hot'"),
    ("scan_layers", 1, "must be true or false, not 1"),
    ("positions", "last", "must be a list, such as [a, b], not 'last'"),
    ("positions", [3], "must be text, not 3; put it in quotes"),
    ("layers_to_extract", [6, 1.5], "must be a whole number, not 1.5"),
    ("dtype", "float16", "must be one of auto, float32, bfloat16, not 'float16'"),
    ("dtype", ["float32"], "must be one of auto, float32, bfloat16, not ['float32']"),
    ("model_path", 3, "must be text, not 3; put it in quotes"),
    ("model_path", None, "must be text, not nothing"),
    ("random_seed", 10**400, "must be at most 2147483647"),
    ("temperature", 10**400, "must be at most 1e+30"),
]

# In a process of its own, since the tests' own type checks refuse such values first.
OF_ANOTHER_TYPE = """
import sys, pathlib, numpy as np
from inference.errors import InputError
from inference.settings.commands import DistributedSettings
for name, value, _ in eval(sys.argv[1]):
    try:
        DistributedSettings(**{"model_path": "m", "tasks_file": "t"} | {name: value})
    except InputError as error:
        print(error)
taken = DistributedSettings(
    model_path=pathlib.Path("a") / "b", tasks_file="t", batch_size=np.int64(8), temperature=1,
    layers_to_extract=(np.int32(3),),
)
print([taken.model_path, taken.batch_size, taken.temperature, taken.layers_to_extract])
"""


def test_a_value_of_another_type_is_refused_by_name():
    command = [sys.executable, "-c", OF_ANOTHER_TYPE, repr(WRONG_TYPES)]
    *refusals, taken = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    for (name, _, words), refusal in zip(WRONG_TYPES, refusals, strict=True):
        assert refusal.startswith(name)
        assert words in refusal
    assert taken == "['a/b', 8, 1.0, [3]]"


def test_every_setting_says_what_it_decides_and_shows_a_value():
    for entry in dataclasses.fields(PlanFlags):
        assert entry.metadata["decides"] in ("rows", "files", "resolved", "nothing")
        has_default = entry.default not in (None, dataclasses.MISSING)
        assert has_default or entry.metadata["example"] is not None, entry.name
        assert entry.metadata["help"].endswith(".")
