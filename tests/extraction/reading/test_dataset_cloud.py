"""Reading from a bucket."""

import logging
import threading

import numpy as np
import pytest

from extraction.errors import CorruptBatchError, StorageUnavailableError, StoreError
from extraction.reading.dataset import ActivationDataset
from extraction.run_layout import record_name
from extraction.storage.gcs import GcsStorage
from tests.extraction.bucket_environment import REFUSED_DOWNLOADS, bucket, collected
from tests.extraction.known_runs import FORMS, OpenRun, expected_rows, write_run
from tests.fake_gcs.faults import Fault
from tests.fake_gcs.server import FakeGcs

__all__ = ["bucket", "collected"]

ROWS, LAYERS = 23, (6, 12)
ADDRESS = "gs://bucket/some/run"
SECOND = "some/run/layer_12_batch_000002.safetensors"


pytestmark = REFUSED_DOWNLOADS


@pytest.fixture
def run(bucket, tmp_path) -> FakeGcs:
    """A bucket with a run."""
    write_run(tmp_path / "spool", ROWS, LAYERS, gcs_bucket=ADDRESS)
    return bucket


def numbers_in(stream) -> list[int]:
    return [int(number) for batch in stream for number in batch["layer_6"][:, 0] // 1000]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_reads_from_a_bucket(bucket, tmp_path, form):
    write_run(
        tmp_path / "spool", ROWS, LAYERS, file_format=form[0], dtype=form[1], gcs_bucket=ADDRESS
    )
    dataset = ActivationDataset(ADDRESS, LAYERS)
    assert (dataset.info.complete, dataset.info.rows) == (True, ROWS)
    for hook, rows in enumerate(dataset[:].values()):
        np.testing.assert_array_equal(rows, expected_rows(range(ROWS), hook, form[1]))
        assert rows.flags.writeable
    assert dataset.keys([22, 0]).sample_idx.tolist() == [22, 0]
    for seed in (None, 3):
        batches = list(dataset.batches(5, shuffle_seed=seed, pool_rows=9))
        assert all(batch["layer_12"].flags.writeable for batch in batches)
        rows = np.concatenate([batch["layer_12"] for batch in batches])
        order = np.argsort(rows[:, 0], kind="stable")
        np.testing.assert_array_equal(rows[order], expected_rows(range(ROWS), 1, form[1]))


def test_a_local_copy_and_the_bucket_share_positions(run, tmp_path):
    stream = ActivationDataset(ADDRESS, LAYERS).batches(4, shuffle_seed=1, pool_rows=10)
    begun = numbers_in([next(stream), next(stream)])
    copy = tmp_path / "copy"
    for name, stored in run.objects("bucket").items():
        path = copy / name.removeprefix("some/run/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored.data)
    rest = ActivationDataset(copy, LAYERS).batches(
        4, shuffle_seed=1, pool_rows=10, start=stream.position
    )
    again = numbers_in(rest)
    assert again == numbers_in(stream)
    assert sorted(begun + again) == list(range(ROWS))


def test_a_run_that_is_being_written_there(bucket):
    run = OpenRun(GcsStorage(ADDRESS), LAYERS, planned=2)
    dataset = ActivationDataset(ADDRESS, LAYERS)
    run.commit(2, first=4, rows=4)
    assert dataset.refresh() == 4
    run.commit(1, first=0, rows=4)
    assert dataset.info.complete is False
    assert dataset.refresh() == 4
    assert dataset.info.complete is True
    assert numbers_in([dataset[:]]) == [4, 5, 6, 7, 0, 1, 2, 3]


def test_many_records_are_fetched_together_and_once(run, caplog):
    run.requests.clear()
    with caplog.at_level(logging.WARNING):
        dataset = ActivationDataset(ADDRESS, LAYERS)
        dataset.refresh()
        assert len(dataset.info.statistics) == 2
    read = [e.name for e in run.requests if e.method == "GET" and "/commits/" in (e.name or "")]
    assert sorted(read) == [f"some/run/{record_name(number)}" for number in range(1, 7)]
    assert caplog.records == []


def test_rows_by_number_download_only_their_files_and_once(run):
    dataset = ActivationDataset(ADDRESS, 12)
    run.requests.clear()
    for _ in range(3):
        assert dataset[[5, 6]].tolist() == expected_rows([5, 6], 1).tolist()
    names = {exchange.name for exchange in run.requests if exchange.name}
    assert names == {SECOND}
    assert len([exchange for exchange in run.requests if exchange.name == SECOND]) == 1


def test_another_object_in_a_files_place_is_found_at_opening_without_reading(run):
    content = bytearray(run.objects("bucket")[SECOND].data)
    content[-1] ^= 1
    run.put("bucket", SECOND, bytes(content))
    with pytest.raises(CorruptBatchError, match=r"layer_12_batch_000002.* crc32c"):
        ActivationDataset(ADDRESS, LAYERS)
    dataset = ActivationDataset(ADDRESS, LAYERS, on_bad="skip")
    assert numbers_in(dataset.batches(5)) == [0, 1, 2, 3, *range(8, ROWS)]
    assert list(dataset.skipped) == [2]
    assert not [e for e in run.requests if e.name == SECOND and e.method == "GET"]
    assert len(ActivationDataset(ADDRESS, LAYERS, verify_checksums=False)) == ROWS


def test_an_object_replaced_after_opening_is_found_when_it_is_read(run):
    dataset = ActivationDataset(ADDRESS, LAYERS)
    whole = run.objects("bucket")[SECOND].data
    for content in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], b""):
        run.put("bucket", SECOND, content)
        with pytest.raises(CorruptBatchError, match=r"layer_12_batch_000002\.safetensors"):
            list(dataset.batches(5))


@pytest.mark.parametrize(("kind", "times"), [
    ("503", 2), ("reset_before_commit", 2), ("corrupt_download", 1)
])  # fmt: skip
def test_what_passes_is_waited_for(run, kind, times):
    dataset = ActivationDataset(ADDRESS, LAYERS)
    fault = run.faults.add(Fault(kind=kind, method="GET", name_contains="_batch_", times=times))
    assert sorted(numbers_in(dataset.batches(5, shuffle_seed=1))) == list(range(ROWS))
    assert run.faults.hits(fault) == times


def test_an_outage_is_never_taken_for_damage(run):
    dataset = ActivationDataset(GcsStorage(ADDRESS, deadline=0.2), LAYERS, on_bad="skip")
    for seed in (None, 0):
        stream = dataset.batches(5, shuffle_seed=seed)
        with run.outage(), pytest.raises(StorageUnavailableError):
            next(stream)
        assert [t for t in threading.enumerate() if t.name.startswith("read-act")] == []
        assert list(stream) == []
    assert dataset.skipped == {}
    assert numbers_in(dataset.batches(5, start=dataset.batches(5).position)) == list(range(ROWS))


def test_a_prefix_without_a_run_is_refused(bucket):
    with pytest.raises(StoreError, match=r"gs://bucket/nothing holds no run"):
        ActivationDataset("gs://bucket/nothing")
    with pytest.raises(StoreError, match="abfss:// is not supported"):
        ActivationDataset("abfss://bucket/run")
