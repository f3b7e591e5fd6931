"""A folder appears whole; nothing is overwritten unless told; buckets hold autoencoders too."""

import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
import pytest

from extraction.errors import StorageUnavailableError, StoreError
from extraction.storage import file_operations, open_storage
from sae import load, save
from sae.files import FORMATS, WRITTEN
from tests.extraction.bucket_environment import REFUSED_DOWNLOADS, bucket, collected
from tests.extraction.failing_os import FailingOs
from tests.fake_gcs.fixture import fake_gcs
from tests.sae.autoencoders import random_autoencoder

__all__ = ["bucket", "collected", "fake_gcs"]
SAE = random_autoencoder("topk")


@pytest.mark.parametrize("format", WRITTEN)
def test_a_new_folder_appears_whole_or_not_at_all(format, tmp_path, monkeypatch):
    real, written = Path.write_bytes, []

    def full(self, data):
        written.append(self.name)
        if len(written) == 2:
            real(self, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageUnavailableError, match=r"new/sae cannot be written: No space left"):
        save(SAE, tmp_path / "new" / "sae", format=format)
    assert len(written) == 2
    assert not list((tmp_path / "new").iterdir())
    monkeypatch.undo()
    save(SAE, tmp_path / "new" / "sae", format=format)
    np.testing.assert_array_equal(load(tmp_path / "new" / "sae").W_dec, SAE.W_dec)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sae"]


@pytest.mark.parametrize("format", WRITTEN)
def test_in_a_folder_that_exists_an_unfinished_autoencoder_is_none(format, tmp_path, monkeypatch):
    names = set()
    for failing in range(1, 100):
        folder = tmp_path / str(failing)
        folder.mkdir()
        fails = FailingOs(lambda call, _, at=failing: errno.EIO if call == at else None)
        with monkeypatch.context() as patched:
            patched.setattr(file_operations, "os", fails)
            try:
                save(SAE, folder, format=format)
            except StorageUnavailableError:
                pass
            else:
                if len(fails.calls) < failing:  # every operation has failed once
                    break
        names |= {path.name for path in folder.iterdir() if not path.name.startswith(".tmp-")}
        if {path.name for path in folder.iterdir()} >= FORMATS[format].files:
            np.testing.assert_array_equal(load(folder).W_dec, SAE.W_dec)
        else:
            with pytest.raises(StoreError, match="holds no autoencoder"):
                load(folder)
    else:
        raise AssertionError("it never ended")
    assert names >= FORMATS[format].files


def test_files_of_another_autoencoder_stay(tmp_path):
    save(SAE, tmp_path / "sae")
    before = (tmp_path / "sae" / "cfg.json").read_bytes()
    for format in WRITTEN:
        with pytest.raises(StoreError, match=r"has cfg\.json already; choose another folder"):
            save(SAE, tmp_path / "sae", format=format)
    assert (tmp_path / "sae" / "cfg.json").read_bytes() == before
    other = random_autoencoder("jumprelu")
    save(other, tmp_path / "sae", replace=True)
    np.testing.assert_array_equal(load(tmp_path / "sae").threshold, other.threshold)


def test_files_of_two_formats_are_not_guessed_between(tmp_path):
    save(SAE, tmp_path / "sae")
    save(SAE, tmp_path / "sae", format="dictionary_learning", replace=True)
    with pytest.raises(StoreError, match="several formats: saelens, dictionary_learning"):
        load(tmp_path / "sae")
    for format in ("saelens", "dictionary_learning"):
        np.testing.assert_array_equal(load(tmp_path / "sae", format=format).W_dec, SAE.W_dec)


def test_a_format_that_does_not_exist(tmp_path):
    for function in (lambda: load(tmp_path, format="npz"), lambda: save(SAE, "x", format="npz")):
        with pytest.raises(StoreError, match="one of saelens, dictionary_learning, sparsify"):
            function()


@pytest.mark.parametrize("format", WRITTEN)
def test_an_autoencoder_in_a_bucket(format, bucket):
    address = "gs://bucket/saes/layers.12"
    save(SAE, address, format=format)
    found = load(address)
    for name, array in SAE.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
    assert set(open_storage(address).names()) >= FORMATS[format].files
    with pytest.raises(StoreError, match="already; choose another"):
        save(SAE, address, format=format)


@REFUSED_DOWNLOADS
def test_a_bucket_without_one(bucket):
    with pytest.raises(StoreError, match="no autoencoder of a known format: there is no file"):
        load("gs://bucket/nothing")


def test_metadata_that_are_no_json_are_refused_before_anything_is_written(tmp_path):
    sae = dataclasses.replace(SAE, metadata={"array": np.zeros(2)})
    for format in WRITTEN:
        with pytest.raises(StoreError, match="metadata"):
            save(sae, tmp_path / format, format=format)
    assert not list(tmp_path.iterdir())
    save(dataclasses.replace(SAE, metadata={"a": [1, {"b": None}]}), tmp_path / "good")
    assert json.loads((tmp_path / "good" / "cfg.json").read_text())["metadata"]["a"]
