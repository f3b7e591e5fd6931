"""An extractor with a bucket: the folder is a spool, and what counts is in the cloud."""

import itertools
import json
import pickle

import pytest

from extraction import ActivationExtractionConfig, ActivationExtractor, ExistingRunError
from extraction.errors import StorageUnavailableError, StoreError
from extraction.run.totals import RunTotals
from extraction.storage.local import LocalStorage
from extraction.writing.upload import upload_folder
from tests.extraction.known_rows import WIDTH, known_block, known_values
from tests.extraction.uploads import assert_cloud_is_whole, batch_files, cloud_of, objects
from tests.fake_gcs.faults import Fault
from tests.fake_gcs.server import FakeGcs


def extractor_of(folder, **changes) -> ActivationExtractor:
    entry = {
        "output_dir": folder, "layers_to_extract": (6, 12), "hidden_dim": WIDTH,
        "model_name": "m", "save_every_n_samples": 2, "gcs_bucket": "gs://bucket/run",
    }  # fmt: skip
    return ActivationExtractor(ActivationExtractionConfig(**{**entry, **changes}))


def rows_in_cloud(server: FakeGcs, layer: int) -> list[list[float]]:
    found = objects(server)
    names = (f"layer_{layer}_batch_{number:06d}.pkl" for number in itertools.count(1))
    files = itertools.takewhile(found.__contains__, names)
    documents = [pickle.loads(found[name].data) for name in files]
    return [row["activation"].tolist() for file in documents for row in file["activations"]]


def test_an_extractor_uploads_and_leaves_an_empty_spool(tmp_path, environment):
    with extractor_of(tmp_path) as extractor:
        for first in range(0, 7, 3):
            extractor.add(known_block(first, 3, (6, 12)))
    records = assert_cloud_is_whole(environment, {1, 2, 3, 4, 5})
    assert list(extractor.batches) == RunTotals(records).batches()
    for hook, layer in enumerate((6, 12)):
        assert rows_in_cloud(environment, layer) == known_values(0, 9, hook).tolist()
    assert batch_files(tmp_path) == set()
    metadata = json.loads(objects(environment)["metadata.json"].data)
    assert (metadata["complete"], metadata["total_samples"]) == (True, 9)
    assert json.loads((tmp_path / "metadata.json").read_bytes()) == metadata
    with pytest.raises(ExistingRunError, match="gs://bucket/run already holds a run"):
        extractor_of(tmp_path / "another")


def test_an_extractor_may_keep_its_files_here(tmp_path, environment):
    with extractor_of(tmp_path, upload_to_cloud=False) as extractor:
        extractor.add(known_block(0, 2, (6, 12)))
    assert objects(environment) == {}
    assert len(batch_files(tmp_path)) == 3


def test_an_extractor_that_ends_early_leaves_what_it_uploaded(tmp_path, environment):
    with pytest.raises(KeyError), extractor_of(tmp_path) as extractor:  # noqa: PT012
        extractor.add(known_block(0, 5, (6, 12)))
        raise KeyError
    assert_cloud_is_whole(environment, {1, 2})
    metadata = json.loads(objects(environment)["metadata.json"].data)
    assert (metadata["complete"], metadata["total_samples"]) == (False, 4)


def test_an_extractor_whose_upload_fails_says_so_and_loses_nothing(tmp_path, environment):
    fault = environment.faults.add(Fault(kind="403", name_contains="_batch_"))
    extractor = extractor_of(tmp_path)
    with pytest.raises(StorageUnavailableError, match="permission"):  # noqa: PT012
        extractor.add(known_block(0, 5, (6, 12)))
        extractor.close()
    for _ in range(2):
        with pytest.raises(StoreError, match="failed earlier"):
            extractor.close()
    assert "metadata.json" not in objects(environment)
    # What is in the spool can be uploaded later.
    environment.faults.remove(fault)
    committed = {record.batch_id for record in extractor.batches}
    upload_folder(LocalStorage(tmp_path), cloud_of(environment))
    assert_cloud_is_whole(environment, committed)


@pytest.mark.parametrize("address", ["bucket/run", "/tmp/x", "gs://"])
def test_an_address_that_is_no_bucket_is_refused(tmp_path, environment, address):
    with pytest.raises(StoreError, match="gs://bucket/prefix"):
        extractor_of(tmp_path, gcs_bucket=address)
    assert list(tmp_path.iterdir()) == []
