"""Defaults as agreed, and every value out of range refused by the name of its flag."""

import dataclasses

import pytest

from inference.errors import InputError
from inference.settings import DistributedSettings


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
    with pytest.raises(InputError, match=f"^--{name} .*{value}"):
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
    with pytest.raises(InputError, match=f"^--{name} must not be empty"):
        settings(**{name: value})


@pytest.mark.parametrize("name", ["positions", "hook_points"])
def test_empty_texts_in_lists_are_refused(settings, name):
    with pytest.raises(InputError, match=f"^--{name} must not be empty"):
        settings(**{name: ["all", ""]})


def test_an_empty_cache_folder_means_none():
    ours = DistributedSettings(model_path="m", tasks_file="t", compilation_cache_dir="")
    assert ours.compilation_cache_dir == ""
