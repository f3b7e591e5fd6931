"""What an address is: one answer for every command, flag and argument that takes one."""

from pathlib import Path

import pytest

from extraction import (
    ActivationDataset,
    ActivationExtractionConfig,
    ActivationExtractor,
    StoreError,
)
from extraction.__main__ import main
from extraction.storage import open_storage, scheme_of
from extraction.storage.local import LocalStorage
from inference.errors import InputError
from inference.inputs.files import read_input_files
from inference.settings.commands import ExtractionSettings

UNKNOWN = [
    "abfss://bucket/run",
    "file:///tmp/run",
    "GS://bucket/run",
    "hdfs://host/run",
    "gs:/bucket",
]
REFUSED = 2


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, which stays empty."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "scheme"),
    [
        ("gs://bucket/run", "gs"),
        (Path("gs://bucket/run"), "gs"),
        ("s3://bucket", "s3"),
        ("abfss://c@a/run", "abfss"),
        ("./gs://bucket/run", None),
        ("/runs/gs://x", None),
        ("runs/12:30", None),
        ("c:", None),
        ("", None),
    ],
)
def test_schemes(address, scheme):
    assert scheme_of(address) == scheme


@pytest.mark.parametrize("address", UNKNOWN)
def test_an_address_of_no_storage_is_refused_by_name(address, capsys):
    for refused in (
        lambda: open_storage(address),
        lambda: LocalStorage(address),
        lambda: ActivationDataset(address),
        lambda: ActivationDataset(Path(address)),
        lambda: list(read_input_files("--tasks_file", address, ".json")),
    ):
        with pytest.raises(StoreError):
            refused()
    for command in (
        ["verify", address],
        ["inspect", address],
        ["repair", address],
        ["merge", address, "run"],
        ["convert", address, "out", "--format", "npz"],
        ["convert", "run", address, "--format", "npz"],
        ["export", "run", address, "--to", "npz"],
        ["upload", "run", address],
        ["selftest", address],
    ):
        assert main(command) == REFUSED
        error = capsys.readouterr().err
        assert (error.count("\n"), error[:7]) == (1, "error: ")


@pytest.mark.parametrize("address", UNKNOWN)
@pytest.mark.parametrize("as_text", [True, False])
def test_a_writer_refuses_an_address_of_no_storage(address, as_text):
    config = ActivationExtractionConfig(
        output_dir=address if as_text else Path(address),
        layers_to_extract=[6],
        hidden_dim=4,
        model_name="m",
    )
    with pytest.raises(StoreError, match=address[:3]):
        ActivationExtractor(config)


@pytest.mark.parametrize("address", UNKNOWN)
@pytest.mark.parametrize("flag", ["activations_dir", "output_dir"])
def test_flags_of_folders_name_themselves(address, flag):
    with pytest.raises(InputError, match=f"^{flag}.*{address}"):
        ExtractionSettings(model_path="m", tasks_file="t", **{flag: address})


def test_activations_go_straight_into_a_bucket(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    needed = {"model_path": "m", "tasks_file": "t"}
    settings = ExtractionSettings(**needed, activations_dir="gs://bucket/run")
    assert settings.cloud() == "gs://bucket/run"
    assert settings.spool.is_relative_to("/cache/qwen-activation-extraction/spool")
    same = ExtractionSettings(**needed, activations_dir="gs://bucket/run/")
    other = ExtractionSettings(**needed, activations_dir="gs://bucket/run2")
    assert same.spool == settings.spool != other.spool
    folder = ExtractionSettings(**needed, activations_dir="here", gcs_bucket="gs://bucket/run")
    assert (folder.cloud(), folder.spool) == ("gs://bucket/run", Path("here"))
    with pytest.raises(InputError, match="both in a bucket"):
        ExtractionSettings(**needed, activations_dir="gs://bucket/a", gcs_bucket="gs://bucket/b")
    with pytest.raises(InputError, match="output_dir must be a folder"):
        ExtractionSettings(**needed, output_dir="gs://bucket/run")
